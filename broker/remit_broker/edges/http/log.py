"""``/api/records``, ``/api/find``, ``/api/accesses``: the whole log of a tenant as operators read it, and who has read it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.requests import Request

from remit_broker.core.admin import broken
from remit_broker.core.history import answered, past_of
from remit_broker.core.issuers import Ability
from remit_broker.core.listing import LogFilter, cursor_after
from remit_broker.core.revocations import Entry
from remit_broker.core.times import rfc3339, utc
from remit_broker.operator_ports import AdminLog, Index
from remit_broker.ports import Clock
from remit_schemas.errors import Code, refusal

if TYPE_CHECKING:
    from remit_broker.edges.http.desk import Call

AUDITED: Final = {
    "/api/records": "records", "/api/records/{hop}": "records", "/api/find/{prefix}": "records", "/api/chains": "chains",
    "/api/chains/{txn}": "chains", "/api/chains/{txn}/evidence": "evidence", "/api/vault": "vault",
    "/api/vault/{hop}": "contents",
    "/api/policy/decisions": "decisions", "/api/policy/rulings": "rulings", "/api/approvals": "approvals",
    "/api/approvals/{id}": "approval", "/api/revocations": "revocations", "/api/budgets": "budgets", "/api/accesses": "accesses",
}  # fmt: skip
"""Routes that read what happened, and what is recorded of that."""
STATE: Final = frozenset({
    "/api/status", "/api/agents", "/api/servers", "/api/servers/{name}/changes", "/api/checkpoint", "/api/secrets", "/api/openapi.json",
})  # fmt: skip
"""Routes that read what is there now, and nothing of what anybody did (test_every_read_is_of_what_is_or_is_recorded)."""
EACH: Final = ("evidence", "contents")
"""What is recorded each time that it is read."""
HOUR: Final = 3600
REMEMBERED: Final = 10_000


class LogDesk:
    """The log of one tenant, over the index, and the chain of who read it."""

    def __init__(
        self, index: Index, caught_up: Callable[[], Awaitable[None]], accesses: AdminLog, clock: Clock
    ) -> None:
        self.index, self.caught_up, self._accesses, self._clock = index, caught_up, accesses, clock
        self._noted: dict[tuple[str, str], int] = {}

    async def noted(self, who: str, tenant: str, what: str) -> None:
        """Record that ``who`` reads ``what``: evidence and contents each time, anything else once an hour. Refuses LEDGER_UNAVAILABLE.

        INVARIANT: nobody reads what happened without a record of that (test_reading_the_records_is_itself_recorded).
        """
        now, key = self._clock.now(), (who, what)
        hour = int(now // HOUR)
        if self._noted.get(key) == hour and not what.startswith(EACH):
            return
        await self._accesses.append(
            Entry(kind="audit", name=what, who=who, at=rfc3339(now), state="read", tenant=tenant)
        )
        if len(self._noted) > REMEMBERED:
            self._noted.clear()
        self._noted[key] = hour

    async def accesses(self) -> dict[str, Any]:
        """Who read what, oldest first, and whether the chain of that is whole."""
        records = await self._accesses.history()
        rows = [
            {"at": one.at, "who": one.who, "what": one.name, "record": one.seq, "hash": one.hash} for one in records
        ]
        return {"accesses": rows, "chain": {"records": len(records), "broken": broken(records)}}

    async def page(self, tenant: str, wanted: LogFilter) -> dict[str, Any]:
        """A page of the log, and where the next one begins. Refuses MALFORMED for a cursor that is none."""
        await self.caught_up()
        found = await self.index.log(tenant, wanted)
        full = any(sum(one.stream == name for one in found) == wanted.limit for name in ("ledger", "refusals"))
        rows = [{"stream": one.stream, "user": one.user, "record": one.record} for one in found]
        return {"records": rows, "cursor": cursor_after(wanted.place(), found), "more": full}


async def _records(request: Request, at: Call) -> Any:
    raw: dict[str, Any] = {key: value for key, value in request.query_params.items() if key != "tenant"}
    try:
        wanted = msgspec.convert(raw, LogFilter, strict=False)
        times = {key: utc(value) for key in ("since", "until") if (value := getattr(wanted, key)) is not None}
    except ValueError as error:  # msgspec.ValidationError is one
        raise refusal(Code.MALFORMED, str(error), rule="api.query", ask="see remit audit export --help") from None
    return await at.desk.log.page(at.tenant, msgspec.structs.replace(wanted, **times))


async def _accesses(request: Request, at: Call) -> Any:
    return await at.desk.log.accesses()


async def _find(request: Request, at: Call) -> Any:
    log = at.desk.log
    await log.caught_up()
    prefix = str(request.path_params["prefix"]).lower()
    txns = await log.index.find(at.tenant, prefix)
    hops = await log.index.hops_like(at.tenant, prefix)
    found = [*({"txn": txn, "hop": ""} for txn in txns), *(hit._asdict() for hit in hops)]
    return {"found": found, "near": [] if found else await log.index.near(at.tenant, prefix)}


def authority(records: list[dict[str, Any]], mine: list[dict[str, Any]]) -> dict[str, Any]:
    """On whose behalf a hop was, through whom, and who approved it: ``mine`` are its records, of those of its task."""
    opened = {record["hop"]: record for record in records if record["kind"] == "hop.opened"}
    chain, above = list[str](), opened.get(mine[0]["hop"], {}).get("parent")
    while above in opened:
        chain.insert(0, opened[above]["resource"].split("/")[1])
        above = opened[above]["parent"]
    first, used = records[0], {record.get("approval") for record in mine} - {None}
    decided = [record for record in records if record["kind"] == "approval.decided" and record["id"] in used]
    return {
        "user": first["user"], "auth": first["auth"], "chain": [*first.get("before", ()), first["agent"], *chain],
        "approvals": [{name: one[name] for name in ("id", "verdict", "who", "at", "reason")} for one in decided],
    }  # fmt: skip


async def _record(request: Request, at: Call) -> Any:
    hop, log = str(request.path_params["hop"]), at.desk.log
    await log.caught_up()
    hits = [hit for hit in await log.index.hops_like(at.tenant, hop) if hit.hop == hop]
    if not hits:
        raise refusal(Code.UNKNOWN_TARGET, f"no hop {hop[:64]}", rule="api.unknown-hop", ask="remit chain TXN")
    if hits[0].kind == "refused":
        refused = await log.index.refusal(at.tenant, hop)
        asked = past_of(refused, refused["user"] or "") if refused else None
        return {"txn": hits[0].txn, "hop": hop, "records": [refused], "asked": asked}
    entries = await log.index.chain(at.tenant, hits[0].txn or "")
    mine = [entry["record"] for entry in entries if entry["record"]["hop"] == hop]
    opened = next((record for record in mine if record["kind"] == "hop.opened"), None)
    user = entries[0]["record"]["user"]
    asked = past_of(opened, user) if opened else None
    ends = [
        record for record in mine if opened and record["kind"] in ("hop.closed", "hop.parked") and record["decision"]
    ]
    told = answered(ends[-1], opened, user) if opened and ends else None
    return {
        "txn": hits[0].txn, "hop": hop, "records": mine, "asked": asked, "answered": told,
        "authority": authority([entry["record"] for entry in entries], mine),
    }  # fmt: skip


ROUTES: Final[tuple[tuple[str, str, Ability, Callable[[Request, Call], Awaitable[Any]]], ...]] = (
    ("GET", "/api/records", "read", _records),
    ("GET", "/api/records/{hop}", "read", _record),
    ("GET", "/api/find/{prefix}", "read", _find),
    ("GET", "/api/accesses", "read", _accesses),
)
