"""Scopes: what they cover, how they meet, which is within which; and the one token of each name in a subject."""

from __future__ import annotations

from typing import Any, Final

FILE: Final = "mcp/files/read_file"
DOCS: Final = FILE + '{"path":{"prefix":"docs/"}}'
COVERS: Final[tuple[tuple[list[str], str, dict[str, Any], bool], ...]] = (
    ([FILE], FILE, {}, True),
    ([FILE], FILE, {"path": "anything"}, True),
    ([FILE], "mcp/files/write_file", {}, False),
    (["mcp/files/*"], FILE, {}, True),
    (["mcp/*/read_file"], FILE, {}, True),
    (["mcp/**"], FILE, {}, True),
    (["agent/**"], FILE, {}, False),
    (["agent/a/b", "mcp/**"], FILE, {}, True),
    ([], FILE, {}, False),
    ([DOCS], FILE, {"path": "docs/a.md"}, True),
    ([DOCS], FILE, {"path": "docs/../etc/passwd"}, False),
    ([DOCS], FILE, {"path": "etc/passwd"}, False),
    ([DOCS], FILE, {}, False),
    ([DOCS], FILE, {"path": 7}, False),
    ([FILE + '{"path":{"optional":true,"prefix":"docs/"}}'], FILE, {}, True),
    ([FILE + '{"path":{"optional":true,"prefix":"docs/"}}'], FILE, {"path": "x"}, False),
    ([FILE + '{"n":{"eq":1}}'], FILE, {"n": 1}, True),
    ([FILE + '{"n":{"eq":1}}'], FILE, {"n": True}, False),
    ([FILE + '{"n":{"eq":1}}'], FILE, {"n": "1"}, False),
    ([FILE + '{"n":{"in":[1,2]}}'], FILE, {"n": 2}, True),
    ([FILE + '{"n":{"range":{"max":5,"min":1}}}'], FILE, {"n": 5}, True),
    ([FILE + '{"n":{"range":{"max":5,"min":1}}}'], FILE, {"n": 6}, False),
    ([FILE + '{"s":{"max_len":3}}'], FILE, {"s": "abcd"}, False),
    ([FILE + '{"s":{"any":true}}'], FILE, {}, False),
)  # fmt: skip
MEETS: Final[tuple[tuple[list[str], list[str], list[str]], ...]] = (
    (["mcp/files/*"], [FILE], [FILE]),
    (["mcp/files/*"], ["mcp/*/read_file"], [FILE]),
    (["mcp/**"], ["agent/**"], []),
    (["mcp/a/b", "mcp/c/d"], ["mcp/c/*"], ["mcp/c/d"]),
    ([FILE], [DOCS], [DOCS]),
    ([DOCS], [FILE + '{"path":{"prefix":"docs/a"}}'], [FILE + '{"path":{"prefix":"docs/a"}}']),
    ([DOCS], [FILE + '{"path":{"prefix":"etc/"}}'], []),
    ([FILE + '{"n":{"in":[1,2,3]}}'], [FILE + '{"n":{"range":{"min":3}}}'], [FILE + '{"n":{"eq":3}}']),
    ([FILE + '{"n":{"eq":1}}'], [FILE + '{"m":{"eq":2}}'], [FILE + '{"m":{"eq":2},"n":{"eq":1}}']),
)  # fmt: skip
WITHIN: Final[tuple[tuple[list[str], list[str], bool], ...]] = (
    ([FILE], ["mcp/files/*"], True),
    (["mcp/files/*"], [FILE], False),
    ([FILE], [FILE], True),
    ([], [FILE], True),
    ([FILE], [], False),
    ([DOCS], [FILE], True),
    ([FILE], [DOCS], False),
    ([FILE + '{"path":{"eq":"docs/a"}}'], [DOCS], True),
    ([FILE + '{"path":{"eq":"docs/../a"}}'], [DOCS], False),
    ([FILE + '{"path":{"optional":true,"prefix":"docs/"}}'], [DOCS], False),
    ([FILE, "agent/a/b"], ["mcp/**"], False),
)  # fmt: skip
MALFORMED_SCOPES: Final = (
    "", "mcp", "mcp/files", "mcp/files/read_*", "mcp/**/x", "db/a/b", "mcp/Files/a",
    FILE + '{"path":{"prefix":"../"}}', FILE + '{"path":{"regex":".*"}}', FILE + '{"path":"docs/"}',
    FILE + '{"n":{"range":[1,5]}}', FILE + '{"n":{"eq":9007199254740992}}',
)  # fmt: skip
NAMES: Final = {
    "read_file": "read_file", "UPPER-9": "UPPER-9", "-": "-", "$resource": "$resource", "$": "$", "x$y": "x=24y",
    "a.b": "a=2Eb",
    "a b": "a=20b", "a=b": "a=3Db", "a>b": "a=3Eb", "caf\u00e9": "caf=C3=A9", "\u65e5\u672c": "=E6=97=A5=E6=9C=AC",
}  # fmt: skip
NO_NAME: Final = ("a.b", "=6", "=6G", "=61", "caf=c3=a9", "=C3", "a b", "x$y", "=24resource", "é")


def scopes() -> dict[str, Any]:
    """Details as on the command line: ``<pattern>{constraints}``."""
    return {
        "v": 1,
        "covers": [{"scope": s, "resource": r, "args": args, "covers": covers} for s, r, args, covers in COVERS],
        "meets": [{"a": a, "b": b, "meet": meet} for a, b, meet in MEETS],
        "within": [{"a": a, "b": b, "within": within} for a, b, within in WITHIN],
        "malformed": list(MALFORMED_SCOPES),
    }


def names() -> dict[str, Any]:
    """Segments of a name and their one token in a NATS subject, and texts that are nobody's token."""
    return {
        "v": 1,
        "tokens": [{"name": name, "token": token} for name, token in NAMES.items()],
        "no_token": list(NO_NAME),
    }
