"""What a tool can do to the world, by what it says it does: words are weak evidence, so each finding says which word it was."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from remit_broker.core.scan.finding import Finding, Severity, quoted, words
from remit_broker.core.scan.schemas import NETWORK, arguments, parts_of, words_of


class _Power(NamedTuple):
    rule: str
    severity: Severity
    words: frozenset[str]
    what: str
    ask: str


POWERS: Final = (
    _Power(
        "danger.exec", "high",
        words("exec execute shell bash sh powershell terminal subprocess eval python spawn sudo"),
        "runs programs or code",
        "contain the server, permit it to few, and approve each call: @approve in a policy",
    ),
    _Power(
        "danger.destroys", "medium",
        words("delete remove drop destroy erase truncate purge wipe kill reset revert overwrite rm"),
        "destroys or takes back",
        "approve each call, or leave it out of what is granted",
    ),
    _Power(
        "danger.writes", "low",
        words("write create update insert upsert edit move rename upload put patch commit push merge deploy install add"),
        "changes something",
        "grant it by name where it is needed, not with mcp/NAME/*",
    ),
    _Power(
        "danger.sends", "medium",
        words("send mail email sms publish post tweet notify share pay transfer purchase order invite"),
        "sends something out",
        "forbid it after untrusted content by labels (docs/labels.md), or approve each call",
    ),
)  # fmt: skip
_FETCHES: Final = words(
    "fetch get download request http https browse crawl scrape open navigate load import proxy webhook call visit url web"
)
_CHOSEN: Final = re.compile(r"\{|(?:https?|wss?|ftp)://[^/{}]*\{", re.IGNORECASE)
"""Where the reader of a template chooses the host, or the address as a whole."""
_READS: Final = words(
    "get list read search find show describe view count check status lookup query fetch inspect diff log"
)
"""What comes after one of these in a name is what is read: ``get_commit`` commits nothing."""


def abilities(where: str, tool: dict[str, Any]) -> Iterator[Finding]:
    """What ``tool`` can do that somebody should know of before it is granted."""
    name = str(tool.get("name", ""))
    said = words_of(name)
    raw = tool.get("annotations")
    hints: dict[str, Any] = raw if isinstance(raw, dict) else {}
    verbs = _verbs(name)
    powers = [power for power in POWERS if verbs & power.words]
    for power in powers:
        yield Finding(
            rule=power.rule, severity=power.severity, where=where, message=f"by its name it {power.what}",
            evidence=quoted(name), ask=power.ask,
        )  # fmt: skip
    # INVARIANT: a hint is a claim of the server, and one that its name belies is reported (test_a_hint_that_its_name_belies).
    if hints.get("readOnlyHint") is True and any(power.rule != "danger.sends" for power in powers):
        yield Finding(
            rule="danger.hint", severity="high", where=f"{where}/annotations",
            message="says that it only reads, and by its name it does not", evidence=quoted(name),
            ask="do not let policy rely on its annotations",
        )  # fmt: skip
    if not hints:
        yield Finding(
            rule="danger.unannotated", severity="info", where=where,
            message="has no annotations, so it counts as destructive and open to the world (the protocol's defaults)",
            ask="ask its author for annotations; the starter policy asks for an approval of each call",
        )  # fmt: skip
    elif hints.get("destructiveHint") is True and hints.get("readOnlyHint") is not True:
        yield Finding(
            rule="danger.destructive", severity="low", where=f"{where}/annotations",
            message="says that it is destructive", ask="approve each call",
        )  # fmt: skip
    yield from _reaches(where, tool, said)


def _verbs(name: str) -> frozenset[str]:
    """The words of a name up to the first that says that something is read."""
    parts = parts_of(name)
    first = next((index for index, part in enumerate(parts) if part in _READS), len(parts))
    return frozenset(parts[:first])


def templates(items: list[dict[str, Any]]) -> Iterator[Finding]:
    """SSRF by reading: a template of resources whose reader chooses the host, or the whole address."""
    for item in items:
        uri = item.get("uriTemplate")
        if not isinstance(uri, str) or not _CHOSEN.match(uri):
            continue
        yield Finding(
            rule="ssrf.template", severity="high",
            where=f"template {quoted(uri)[:100]}",
            message="whoever reads it chooses the host: also one that only the server can reach",
            evidence=quoted(uri), ask='constrain it in scopes: mcp/NAME/$resource{"uri":{"prefix":"https://example.com/"}}',
        )  # fmt: skip


def _reaches(where: str, tool: dict[str, Any], said: frozenset[str]) -> Iterator[Finding]:
    """SSRF: whoever chooses the address of a request that the server makes uses its place in the network."""
    for argument in arguments(tool.get("inputSchema")):
        if not argument.words & NETWORK or argument.bound:
            continue
        fetches = bool((said | words_of(str(tool.get("description", ""))[:2000])) & _FETCHES)
        yield Finding(
            rule="ssrf.argument", severity="high" if fetches else "medium",
            where=f"{where}/inputSchema{argument.pointer}",
            message="takes an address of any kind"
            + (", and by what it says of itself it connects to it: also to what only this machine can reach" if fetches else ""),
            evidence=quoted(argument.schema.get("description", "")),
            ask='contain the server without a network, or constrain the argument in scopes: {"url":{"prefix":"https://example.com/"}}',
        )  # fmt: skip
