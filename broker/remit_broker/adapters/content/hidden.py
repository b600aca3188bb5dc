"""The kinds of characters that a person does not see and a model, a shell or a terminal reads."""

from __future__ import annotations

from typing import Final

from remit_broker.adapters.content.kinds import Kind


def _no_flag(text: bytes) -> bool:
    """The flags of England, Scotland, Wales and of states are a black flag, a few tags and the tag that ends them."""
    return not (text.startswith(b"\xf0\x9f\x8f\xb4") and text.endswith(b"\xf3\xa0\x81\xbf") and len(text) <= 4 * 8)


_LIKE_LATIN: Final = (
    r"(?:\xd0[\x85\x86\x88\x90\x92\x95\x9a\x9c-\xa3\xa5\xb0\xb5\xbe]|\xd1[\x80\x81\x83\x85\x95\x96\x98]"
    r"|\xce[\x91\x92\x95-\x97\x99\x9a\x9c\x9d\x9f\xa1\xa4\xa5\xa7\xbf]|\xcf[\x81\x85])"
)
"""Letters of the Cyrillic and the Greek alphabet that look like Latin ones."""

MIXED: Final = rf"[A-Za-z]{_LIKE_LATIN}+[A-Za-z]|{_LIKE_LATIN}[A-Za-z]{{1,12}}{_LIKE_LATIN}"

KINDS: Final[tuple[Kind, ...]] = tuple(
    Kind(f"hidden.{name}", pattern, pattern if key is None else key, check)
    for name, pattern, key, check in (
        # U+202A to U+202E and U+2066 to U+2069; the marks of single characters (U+200E, U+200F) are common in Hebrew and Arabic.
        ("bidi", r"\xe2\x80[\xaa-\xae]|\xe2\x81[\xa6-\xa9]", None, None),
        # U+E0000 to U+E007F: ASCII that is not shown.
        ("tags", r"((?:\xf0\x9f\x8f\xb4)?(?:\xf3\xa0[\x80\x81][\x80-\xbf])+)", r"\xf3\xa0[\x80\x81]", _no_flag),
        # One selector after a character is ordinary; a row of them carries bytes.
        (
            "variation",
            r"(?:\xef\xb8[\x80-\x8f]|\xf3\xa0[\x84-\x87][\x80-\xbf]){2,}",
            r"\xef\xb8[\x80-\x8f](?:\xef\xb8|\xf3\xa0)|\xf3\xa0[\x84-\x87]",
            None,
        ),
        # Joiners belong into emoji and several scripts, between ASCII letters nowhere; a mark of byte order into the first place.
        (
            "zero_width",
            r"(?:\xe2\x80\x8b|\xe2\x81[\xa0-\xa4]|\xe1\xa0\x8e|\xe3\x85\xa4)+|[0-9A-Za-z]((?:\xe2\x80[\x8b-\x8f]|\xc2\xad)+)[0-9A-Za-z]"
            r"|[\x00-\xff]((?:\xef\xbb\xbf)+)",
            r"\xe2\x80[\x8b-\x8f]|\xe2\x81[\xa0-\xa4]|\xe1\xa0\x8e|\xe3\x85\xa4|\xef\xbb\xbf|\xc2\xad",
            None,
        ),
        ("homoglyph", MIXED, None, None),
        # Colours are common in the output of programs; what moves the cursor, sets a title, writes a link or conceals is not.
        (
            "terminal",
            r"\x1b(?:\[[0-9;?]*[@-ln-~]|\[(?:[0-9]*;)*8m|[^\[])",
            r"\x1b",
            None,
        ),
        ("control", r"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f]+|(?:\xc2[\x80-\x84\x86-\x9f])+", None, None),
    )
)
