"""Looking for secrets in nested JSON, and replacing them. What is found is reported by kind and place, never as text."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import re2  # type: ignore[import-untyped,unused-ignore]

from remit_broker.adapters.secret_kinds import KEYED, KINDS, looks_assigned
from remit_broker.core.findings import MAX_PLACES, OVER_CAP, UNREDACTABLE, pointer, summary, within
from remit_schemas.errors import Code, refusal
from remit_schemas.records import Finding

MAX_BYTES: Final = 2 << 20
"""Bytes of strings and names searched in one value; twice what a message on the bus can hold."""

MAX_ITEMS: Final = 200_000
"""Strings, names and containers visited in one value."""

MAX_NESTING: Final = 200
"""Levels followed; more than the 64 that are accepted anywhere."""

_DENSE: Final = 8
"""Bytes of JSON that an item takes at least in what is worth sending: more items than so many are too much to be searched."""

_SHORTEST: Final = 8
_LONGEST_NAME: Final = 64
_ROUNDS: Final = 3
_PASSWORD: Final = "secret.password"  # noqa: S105 - the name of a kind, not a password
_BETWEEN: Final = "\n\x00\n"
"""Stands between strings that are searched together: no secret goes across it."""


class Span(NamedTuple):
    """A secret in a text: bytes ``start`` to ``end`` of its UTF-8 form."""

    start: int
    end: int
    kind: str


def _options() -> re2.Options:
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.log_errors = False
    options.max_mem = 64 << 20
    return options


class SecretDetectors:
    """Detectors of secrets (``secret.*``). Linear in the size of what is searched, whatever is in it."""

    def __init__(self, largest: int = 0) -> None:
        """``largest`` is in bytes of JSON: what a result may have that comes in parts is searched too."""
        self._max_bytes = max(MAX_BYTES, 2 * largest)
        self._max_items = max(MAX_ITEMS, largest // _DENSE)
        options = _options()
        self._gate = re2.Set.SearchSet(options)
        for kind in KINDS:
            self._gate.Add(kind.pattern.encode())
        self._gate.Compile()
        self._kinds = [
            (f"secret.{kind.name}", re2.compile(kind.pattern.encode(), options), kind.check) for kind in KINDS
        ]
        keyed = re2.compile(KEYED.encode(), options)
        self._names_secret = functools.lru_cache(4096)(
            lambda name: len(name) <= _LONGEST_NAME and keyed.search(_bytes(name)) is not None
        )

    def scan(self, value: Any) -> tuple[Finding, ...]:
        """What is found in every string and every name of a member of ``value``.

        Where there is more than is searched, ``scan.over_cap`` says so; ``scan.unredactable`` marks secrets in names.
        """
        texts = self._texts(value)
        if texts is not None and not self._possible(texts[0]) and not any(map(self._names_secret, texts[1])):
            return ()
        walk = _Walk(self._max_bytes, self._max_items)
        found: list[tuple[str, str]] = []
        for text, path, is_name in walk.strings(value):
            if spans := self.spans(text, None if is_name else path):
                where = self._pointer(path)
                found.extend((span.kind, where) for span in spans)
                if is_name:
                    found.append((UNREDACTABLE, where))
        if walk.over:
            found.append((OVER_CAP, ""))
        return summary(found)

    def redact(self, value: Any, classes: Sequence[str]) -> tuple[Any, tuple[str, ...]]:
        """``value`` with what was found replaced by placeholders, and pointers to the strings that changed.

        ``classes`` are classes or kinds (``secret``, ``secret.jwt``). Equal secrets get equal placeholders, such as
        ``[redacted:secret.jwt#1]``. Names of members stay as they are: what is in them cannot be replaced. Refuses
        TOO_LARGE for what is nested beyond reason.
        """
        redaction = _Redaction(self, classes)
        changed = redaction.apply(value, ())
        places = tuple(dict.fromkeys(redaction.places))
        return changed, places if len(places) <= MAX_PLACES else (*places[: MAX_PLACES - 1], "")

    def spans(self, text: bytes, path: tuple[str, ...] | None = None) -> list[Span]:
        """The secrets in one text, in order, none within another. ``path`` leads to it, where it is a member's value."""
        spans: list[Span] = []
        for index in self._possible(text):
            kind, regex, check = self._kinds[index]
            for match in regex.finditer(text):
                start, end = match.span(1 if regex.groups else 0)
                if start >= 0 and (check is None or check(text[start:end])):
                    spans.append(Span(start, end, kind))
        if not spans and path and self._names_secret(path[-1]) and looks_assigned(text):
            spans.append(Span(0, len(text), _PASSWORD))
        return _apart(spans) if len(spans) > 1 else spans

    def _possible(self, text: bytes) -> list[int]:
        """The kinds that may be in ``text``: one pass for all patterns, so that what holds no secret costs little."""
        if len(text) < _SHORTEST:
            return []
        # INVARIANT: the set misses nothing that a pattern of its own finds; it would answer with nothing if it ran out
        # of memory, so it has far more than it needs (test_every_kind_is_found_in_a_long_text_of_all_kinds).
        found: list[int] | None = self._gate.Match(text)
        return found or []

    def _pointer(self, path: tuple[str, ...]) -> str:
        # INVARIANT: a place never shows a secret, so a name that holds one is replaced in the pointer
        # (test_no_finding_and_no_place_contains_the_secret).
        return pointer([_PLACEHOLDER_NAME if self.spans(_bytes(token)) else token for token in path])

    def _texts(self, value: Any) -> tuple[bytes, list[str]] | None:
        """All strings and names as one text, and the names; None where there is more than is searched."""
        texts: list[str] = []
        names: list[str] = []
        level, items, depth = [value], 1, 0
        while level:
            below: list[Any] = []
            for item in level:
                if isinstance(item, str):
                    texts.append(item)
                elif isinstance(item, dict):
                    names.extend(map(str, item))
                    below.extend(item.values())
                elif isinstance(item, list | tuple):
                    below.extend(item)
            items, depth, level = items + len(below), depth + 1, below
            if items + len(names) > self._max_items or depth > MAX_NESTING:
                return None
        text = _bytes(_BETWEEN.join(texts + names))
        return (text, names) if len(text) <= self._max_bytes else None


_PLACEHOLDER_NAME: Final = "[redacted]"


class _Walk:
    """Every string and name in a value with its path, until the caps are reached."""

    def __init__(self, max_bytes: int, max_items: int) -> None:
        self.over = False
        self._left = (max_bytes, max_items)

    def strings(self, value: Any) -> Iterator[tuple[bytes, tuple[str, ...], bool]]:
        """``(text, path, whether it is a name)``. The path of a name is that of the member it names."""
        left_bytes, left_items = self._left
        pending: list[tuple[Any, tuple[str, ...], bool]] = [(value, (), False)]
        while pending:
            item, path, is_name = pending.pop()
            left_items -= 1
            if isinstance(item, str):
                text = _bytes(item)
                left_bytes -= len(text)
                if left_bytes >= 0 and left_items >= 0:
                    yield text, path, is_name
            elif isinstance(item, dict | list | tuple) and len(path) >= MAX_NESTING:
                self.over = True
            elif isinstance(item, dict):
                if len(item) <= left_items:
                    pending.extend((below, (*path, str(name)), False) for name, below in item.items())
                    pending.extend((str(name), (*path, str(name)), True) for name in item)
                else:
                    left_items = -1
            elif isinstance(item, list | tuple):
                if len(item) <= left_items:
                    pending.extend((below, (*path, str(index)), False) for index, below in enumerate(item))
                else:
                    left_items = -1
            # INVARIANT: what is not searched is reported (test_more_than_is_searched_is_a_finding).
            if left_bytes < 0 or left_items < 0:
                self.over = True
                return


class _Redaction:
    """One redaction: the placeholders given so far, and where."""

    def __init__(self, detectors: SecretDetectors, classes: Sequence[str]) -> None:
        self._detectors = detectors
        self._classes = tuple(classes)
        self._numbers: dict[tuple[str, bytes], int] = {}
        self._last: dict[str, int] = {}
        self.places: list[str] = []

    def apply(self, value: Any, path: tuple[str, ...]) -> Any:
        """``value`` with every string redacted; containers keep their shape."""
        if len(path) > MAX_NESTING:
            raise refusal(
                Code.TOO_LARGE, "nested too deeply to be redacted", rule="redact.depth", ask="nest less deeply"
            )
        if isinstance(value, str):
            return self._text(value, path)
        if isinstance(value, dict):
            return {name: self.apply(below, (*path, str(name))) for name, below in value.items()}
        if isinstance(value, list | tuple):
            return [self.apply(below, (*path, str(index))) for index, below in enumerate(value)]
        return value

    def _text(self, value: str, path: tuple[str, ...]) -> str:
        before = text = _bytes(value)
        for _ in range(_ROUNDS):
            spans = self._wanted(text, path)
            if not spans:
                break
            text = self._replace(text, spans)
        else:
            # Where replacing keeps making new matches, nothing of the text is kept.
            if rest := self._wanted(text, path):
                text = self._placeholder(rest[0].kind, before)
        if text is before:
            return value
        self.places.append(self._detectors._pointer(path))
        return text.decode(errors="surrogatepass")

    def _wanted(self, text: bytes, path: tuple[str, ...]) -> list[Span]:
        return [span for span in self._detectors.spans(text, path) if within(span.kind, self._classes)]

    def _replace(self, text: bytes, spans: list[Span]) -> bytes:
        parts, at = [], 0
        for span in spans:
            parts += [text[at : span.start], self._placeholder(span.kind, text[span.start : span.end])]
            at = span.end
        return b"".join([*parts, text[at:]])

    def _placeholder(self, kind: str, secret: bytes) -> bytes:
        number = self._numbers.get((kind, secret))
        if number is None:
            number = self._numbers[kind, secret] = self._last[kind] = self._last.get(kind, 0) + 1
        return f"[redacted:{kind}#{number}]".encode()


def _bytes(text: str) -> bytes:
    # Lone surrogates are possible in JSON strings; they must neither hide a secret nor stop the search.
    return text.encode(errors="surrogatepass")


def _apart(spans: list[Span]) -> list[Span]:
    """Overlapping spans become one that covers them all, of the kind that comes first in the table."""
    ranks = {f"secret.{kind.name}": rank for rank, kind in enumerate(KINDS)}
    apart: list[Span] = []
    for span in sorted(spans):
        if apart and span.start < apart[-1].end:
            last = apart[-1]
            kind = min(last.kind, span.kind, key=ranks.__getitem__)
            apart[-1] = Span(last.start, max(last.end, span.end), kind)
        else:
            apart.append(span)
    return apart
