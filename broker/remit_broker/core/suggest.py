"""The least policy that permits what was observed: exactly those agents, those resources, for those users, no deeper, with no other
findings, labels and tiers than there were.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from remit_broker.core.findings import class_of
from remit_broker.core.replay import Past

_NOT_ID = re.compile(r"[^a-z0-9]+")
_ID: Final = 52
_HEAD: Final = (
    "// Suggested from {count} calls between {first} and {last}. Nothing wider is permitted than what was observed.\n"
)


def suggested(pasts: Iterable[Past]) -> str:
    """The text of a policy file; empty where nothing was let through."""
    groups: dict[tuple[str, str, str, str], list[Past]] = {}
    for past in pasts:
        if past.then in ("allow", "would_deny"):
            asked = past.question
            groups.setdefault((asked.caller, asked.action, asked.resource.kind, str(asked.resource)), []).append(past)
    if not groups:
        return ""
    every = [past for some in groups.values() for past in some]
    head = _HEAD.format(
        count=sum(past.count for past in every), first=min(p.at for p in every), last=max(p.at for p in every)
    )
    taken: set[str] = set()
    parts = [_permits(key, groups[key], taken) for key in sorted(groups)]
    return "\n".join([head, *parts])


def _permits(key: tuple[str, str, str, str], pasts: Sequence[Past], taken: set[str]) -> str:
    caller, action, kind, resource = key
    asked = [past.question for past in pasts]
    target = f"{'Tool' if kind == 'mcp' else 'Skill'}::{_text(resource)}"
    named = _name(f"{caller}-{action}-{resource.split('/', 1)[1]}", taken)
    users = sorted({f"{one.tenant}\0{one.user}" for one in asked})
    who = " || ".join(
        f"(context.user == User::{_text(name)} && context.user.tenant == {_text(tenant)})"
        for tenant, name in (user.split("\0", 1) for user in users)
    )
    limits = [
        f"({who})",
        f"context.depth <= {max(one.depth for one in asked)}",
        f"context.loops <= {max(one.loops for one in asked)}",
        _only("context.tiers", {tier for one in asked for tier in one.tiers}),
        _only("context.actors", {actor for one in asked for actor in one.actors}),
        _only("context.labels", {label for one in asked for label in one.labels}),
    ]
    found = _only("context.findings", {kind for one in asked for kind in one.findings})
    count, times = sum(past.count for past in pasts), "times" if len(pasts) != 1 else "time"
    classes = sorted({class_of(kind) for one in asked for kind in one.findings} | {"secret"})
    return "\n".join(
        [
            f'@id("{named}")',
            f"@reason({_text(f'observed {count} {times}, last at {max(past.at for past in pasts)}')})",
            f'permit (principal == Agent::{_text(caller)}, action == Action::"{action}", resource == {target})',
            "when {\n  " + " &&\n  ".join([*limits, found]) + "\n};\n",
            f'@id("{_name(f"{named}-answer", taken)}")',
            '@reason("the answer of what was observed, with secrets in it replaced")',
            f'@redact("{",".join(one for one in classes if one == "secret")}")',
            f'permit (principal == Agent::{_text(caller)}, action == Action::"release", resource == {target})',
            f"when {{ ({who}) && !context.findings.containsAny([{_text('scan.unredactable')}, {_text('scan.over_cap')}]) }};\n",
        ]
    )


def _only(what: str, values: set[str]) -> str:
    return f"[{', '.join(_text(one) for one in sorted(values))}].containsAll({what})" if values else f"{what}.isEmpty()"


def _name(text: str, taken: set[str]) -> str:
    base = _NOT_ID.sub("-", text.lower()).strip("-")[:_ID] or "observed"
    found, number = base, 2
    while found in taken:
        found, number = f"{base}-{number}", number + 1
    taken.add(found)
    return found


def _text(value: str) -> str:
    """A string literal of Cedar: printable ASCII stays, everything else is written by its number."""
    return '"' + "".join(_letter(letter) for letter in value) + '"'


def _letter(letter: str) -> str:
    if letter in '"\\':
        return "\\" + letter
    return letter if letter.isascii() and letter.isprintable() else f"\\u{{{ord(letter):x}}}"
