"""What operators have revoked, as plain values: who or what, by whom, why, when, and whether it is still so."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from remit_schemas.errors import Code, refusal
from remit_schemas.names import DEFAULT_TENANT, Resource
from remit_schemas.scope import Detail, Scope, parse_scope

What = Literal[
    "agent",
    "user",
    "tool",
    "tenant",
    "all",
    "observe",
    "exception",
    "audit",
    "hold",
    "erasure",
    "principal",
    "definitions",
]
"""What an entry is about: something that can be stopped, a ruling about policy (``core/rulings.py``), records that somebody read, what
the vault has of a user (``core/vault.py``), who may connect, or the definitions of a server."""
State = Literal[
    "revoked", "reinstated", "observed", "enforced", "allowed", "withdrawn", "read", "held", "released", "erasing", "erased",
    "spared", "registered", "removed", "accepted",
]  # fmt: skip
EVERYTHING = "everything"
"""The name of the one entry of kind ``all``."""


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One thing and what was last said of it. ``name`` is an agent, a user, a tenant, or a resource pattern; ``at`` is RFC 3339 UTC.

    Of a ruling ``name`` is ``policy <id>``, ``server <name>``, or the id of a refused call, and ``detail`` the JSON of an exception;
    of a principal ``detail`` is the public nkey, of definitions the JSON of their digests.
    ``tenant`` is where that name means something. An entry of kind ``all`` is every tenant's and stands in the default one.
    """

    kind: What
    name: str
    who: str
    at: str
    why: str = ""
    state: State = "revoked"
    detail: str = ""
    tenant: str = DEFAULT_TENANT

    def __str__(self) -> str:
        return "everything" if self.kind == "all" else f"{self.kind} {self.name}"


class Revoked:
    """The entries of one tenant, by what they stop; and the one that stops everything."""

    def __init__(self) -> None:
        self.last: dict[tuple[What, str], Entry] = {}
        self._patterns: dict[str, Scope] = {}

    def apply(self, entry: Entry) -> None:
        """Take note of an entry; a later one about the same thing replaces it. Refuses MALFORMED for what is no pattern."""
        if entry.kind == "tool":
            scope = pattern(entry.name)
            self._patterns.pop(entry.name, None)
            if entry.state == "revoked":
                self._patterns[entry.name] = scope
        self.last[entry.kind, entry.name] = entry

    def forget(self, kind: What, name: str) -> None:
        """The entry is gone altogether."""
        self.last.pop((kind, name), None)
        self._patterns.pop(name, None) if kind == "tool" else None

    @property
    def paused(self) -> Entry | None:
        """The entry that stops everything."""
        return self._in_force("all", EVERYTHING)

    def agent(self, name: str) -> Entry | None:
        """The entry that stops an agent or server."""
        return self._in_force("agent", name)

    def tenant(self, name: str) -> Entry | None:
        """The entry that stops a tenant."""
        return self._in_force("tenant", name)

    def check(self, actors: Iterable[str], user: str, resource: Resource | None = None) -> Entry | None:
        """The first entry that stops a call of ``resource`` by ``actors`` for ``user``; tenant and pause are not looked at."""
        if not self.last:
            return None
        if found := self._in_force("user", user):
            return found
        for name in actors:
            if found := self.agent(name):
                return found
        if resource is None:
            return None
        return self.agent(resource.name) or self._tool(resource)

    def _tool(self, resource: Resource) -> Entry | None:
        for name, scope in self._patterns.items():
            if scope.covers(str(resource), {}):
                return self.last["tool", name]
        return None

    def _in_force(self, kind: What, name: str) -> Entry | None:
        entry = self.last.get((kind, name))
        return entry if entry is not None and entry.state == "revoked" else None


def pattern(text: str) -> Scope:
    """The resources a tool's revocation covers. Refuses MALFORMED where ``text`` is no plain resource pattern."""
    detail: Detail = parse_scope(text)
    if detail.args:
        raise refusal(
            Code.MALFORMED, "a revocation covers resources, whatever their arguments", rule="revoke.pattern",
            ask="name a resource or a pattern without arguments, such as mcp/files/*",
        )  # fmt: skip
    return Scope.of((detail,))
