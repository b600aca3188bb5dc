"""The kill switch as operators see it: revoke, reinstate, and what was done by whom and why."""

from __future__ import annotations

import difflib
from typing import Any

import msgspec

from remit_broker.core.admin import AdminRecord, broken
from remit_broker.core.listing import ChainFilter
from remit_broker.core.revocations import EVERYTHING, Entry, What, pattern
from remit_broker.core.times import rfc3339
from remit_broker.operator_ports import AdminLog, Directory, Index, RevocationList
from remit_broker.ports import Clock
from remit_schemas.errors import Code, Refusal, refusal
from remit_schemas.names import DEFAULT_TENANT

MAX_WHY = 512


class Stop(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``POST /api/revocations/reinstate``, and all of ``POST /api/revocations`` but grants and txns: exactly one of the five.

    ``unseen`` is for a user for whom no task was ever opened, whom an issuer may know all the same.
    """

    agent: str | None = None
    user: str | None = None
    tool: str | None = None
    tenant: str | None = None
    all: bool = False
    why: str = ""
    unseen: bool = False

    def what(self) -> tuple[What, str]:
        """The one thing that is named. Refuses MALFORMED where it is not exactly one."""
        pairs: tuple[tuple[What, str | None], ...] = (
            ("agent", self.agent),
            ("user", self.user),
            ("tool", self.tool),
            ("tenant", self.tenant),
        )
        named: list[tuple[What, str]] = [(kind, name) for kind, name in pairs if name is not None]
        if self.all:
            named.append(("all", EVERYTHING))
        if len(named) != 1:
            raise refusal(
                Code.MALFORMED, "name exactly one thing", rule="revoke.what",
                ask="one of agent, user, tool, tenant and all; to revoke, also grant or txn",
            )  # fmt: skip
        return named[0]


class KillSwitch:
    """Revokes what exists in one tenant, reinstates what is revoked, and lists both."""

    def __init__(
        self, tenant: str, listed: RevocationList, admin: AdminLog, directory: Directory, index: Index, clock: Clock
    ) -> None:
        self._tenant, self._list, self._admin = tenant, listed, admin
        self._directory, self._index, self._clock = directory, index, clock

    async def revoke(self, wish: Stop, who: str) -> dict[str, Any]:
        """Stop something on every replica, then record it. Refuses UNKNOWN_TARGET, with similar names, for what nobody knows."""
        kind, name = wish.what()
        await self._known(kind, name, wish.unseen)
        entry = self._entry(wish, who)
        # INVARIANT: a stop waits for no record, and what a crash keeps from being recorded is recorded at the next start
        # (test_what_was_stopped_and_not_recorded_is_recorded_at_the_next_start).
        await self._list.put(entry)
        try:
            record = await self._admin.append(entry)
        except Refusal as no:
            raise refusal(
                no.body.code, f"{entry} is revoked, but that could not be recorded", rule="revoke.unrecorded",
                ask="revoke it again; until then it is in no history", effect="happened", cause=no.cause,
            ) from None  # fmt: skip
        return _told(entry, record)

    async def reinstate(self, wish: Stop, who: str) -> dict[str, Any]:
        """Record that a revocation is lifted, then lift it. Refuses UNKNOWN_TARGET where it is not in force."""
        kind, name = wish.what()
        mine = [entry for entry in self.in_force() if entry.kind == kind]
        if name not in [entry.name for entry in mine]:
            what = "everything" if kind == "all" else f"{kind} {name[:64]}"
            raise refusal(
                Code.UNKNOWN_TARGET, f"{what} is not revoked", rule="reinstate.unknown",
                ask=_near(name, [entry.name for entry in mine]) or "remit revocations lists what is",
            )  # fmt: skip
        entry = msgspec.structs.replace(self._entry(wish, who), state="reinstated")
        # INVARIANT: nothing is let go on without a record (test_nothing_is_reinstated_without_a_record).
        record = await self._admin.append(entry)
        await self._list.put(entry)
        return _told(entry, record)

    async def announce(self, jti: str) -> None:
        """A grant was revoked in the ledger: what runs below it is to end, wherever it runs."""
        await self._list.announce(jti)

    def in_force(self) -> list[Entry]:
        """What is revoked now, oldest first."""
        return [entry for entry in self._list.entries() if entry.state == "revoked"]

    async def history(self) -> dict[str, Any]:
        """``history``: all that was ever revoked and reinstated, oldest first; ``chain``: how many records, and where it breaks."""
        records = await self._admin.history()
        rows = [_told(_entry(record), record) for record in records]
        return {"history": rows, "chain": {"records": len(records), "broken": broken(records)}}

    def _entry(self, wish: Stop, who: str) -> Entry:
        kind, name = wish.what()
        at, why = rfc3339(self._clock.now()), wish.why[:MAX_WHY]
        # What stops everything is no one tenant's, and stands in one place.
        tenant = DEFAULT_TENANT if kind == "all" else self._tenant
        return Entry(kind=kind, name=name, who=who, at=at, why=why, tenant=tenant)

    async def _known(self, kind: What, name: str, unseen: bool) -> None:
        if kind == "agent":
            names = [principal.name for principal in self._directory.principals()]
            if name not in names:
                raise _unknown(f"no agent or server is called {name[:64]!r}", _near(name, names), "remit agents list")
        elif kind == "tool":
            scope = pattern(name)
            served = [str(resource) for resource in self._directory.targets()]
            if not any(scope.covers(resource, {}) for resource in served):
                raise _unknown(
                    f"nothing that is attached fits {name[:128]!r}", _near(name, served), "remit servers list"
                )
        elif kind == "tenant" and name != self._tenant:
            raise unknown_tenant(name, [self._tenant])
        elif kind == "user" and not unseen:
            page = await self._index.chains(self._tenant, ChainFilter(user=name, limit=1))
            if not page.rows:
                near = _near(name, await self._index.users(self._tenant))
                raise _unknown(f"no task was ever opened for {name[:64]!r}", near, "remit chains, or say --unseen")


def _entry(record: AdminRecord) -> Entry:
    return Entry(
        kind=record.what, name=record.name, who=record.who, at=record.at, why=record.why, state=record.kind,
        tenant=record.tenant, detail=record.detail,
    )  # fmt: skip


def _told(entry: Entry, record: AdminRecord) -> dict[str, Any]:
    said: dict[str, Any] = msgspec.to_builtins(entry)
    return {entry.state: str(entry), **said, "record": record.seq, "hash": record.hash}


def unknown_tenant(name: str, known: list[str]) -> Exception:
    """Refuses UNKNOWN_TARGET. ``known`` are the tenants that the caller may hear of."""
    return _unknown(
        f"there is no tenant {name[:64]!r}", _near(name, known) or f"there is {', '.join(known)}", "remit.toml"
    )


def _near(name: str, known: list[str]) -> str:
    found = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {', '.join(found)}?" if found else ""


def _unknown(message: str, near: str, look: str) -> Exception:
    return refusal(Code.UNKNOWN_TARGET, message, rule="revoke.unknown", ask=near or f"look with {look}")
