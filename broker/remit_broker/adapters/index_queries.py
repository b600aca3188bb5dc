"""The questions that the index answers. Every one names its tenant, but for the scans, which serve all of them."""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

import aiosqlite

from remit_broker.adapters.index_chains import CHAIN, MAX_ROWS, ChainQueries, chain_row
from remit_broker.adapters.index_log import LogQueries
from remit_broker.core.listing import ApprovalRow, ChainRow, HopHit, Untold
from remit_broker.core.near import by_beginning

_NEARLY: Final = 5000
"""Records within which clocks of replicas may differ."""


class RunningHop(NamedTuple):
    """A hop that is open, and the replica that runs it."""

    tenant: str
    txn: str
    hop: str
    by: str


class OpenHop(NamedTuple):
    """A hop that is open past its deadline (Unix milliseconds)."""

    tenant: str
    txn: str
    hop: str
    deadline: int


class IdleTxn(NamedTuple):
    """A txn in which nothing has happened for long; ``seq`` is that of its last record."""

    tenant: str
    txn: str
    seq: int


_SUMMARY: Final = (
    f"{CHAIN} FROM txn t LEFT JOIN broken b ON (b.tenant, b.txn) = (t.tenant, t.txn) "
    "WHERE (t.tenant, t.txn) = (:tenant, :txn)"
)
_REVISION: Final = "json_extract(r.body, '$.decision.revision')"
_APPROVAL: Final = f"""
SELECT a.txn, a.id, a.user, a.resource, a.at, a.exp, a.verdict, a.use_until, a.used_by, t.closed_at IS NOT NULL, {_REVISION}
FROM approval a LEFT JOIN txn t ON (t.tenant, t.txn) = (a.tenant, a.txn)
LEFT JOIN record r ON (r.tenant, r.txn, r.seq) = (a.tenant, a.txn, a.seq)
"""  # noqa: S608 - constants
_LIVES: Final = "a.used_by IS NULL AND coalesce(a.verdict, '') <> 'deny'"
_UNTIL: Final = "iif(a.verdict IS NULL, a.exp, coalesce(a.use_until, a.exp))"
_IN_STATE: Final = {
    # In the words of ApprovalRow.state (test_a_state_in_sql_is_the_one_in_words); the first as its index has it.
    "waiting": f"AND a.verdict IS NULL AND a.used_by IS NULL AND a.exp > :now AND t.closed_at IS NULL AND {_REVISION} = :revision",
    "approved": f"AND a.verdict = 'approve' AND a.used_by IS NULL AND {_UNTIL} > :now AND t.closed_at IS NULL "
    f"AND {_REVISION} = :revision",
    "denied": "AND a.verdict = 'deny' AND a.used_by IS NULL",
    "used": "AND a.used_by IS NOT NULL",
    "expired": f"AND {_LIVES} AND t.closed_at IS NULL AND {_UNTIL} <= :now",
    "void": f"AND {_LIVES} AND (t.closed_at IS NOT NULL OR ({_UNTIL} > :now AND {_REVISION} <> :revision))",
    "all": "",
}


class IndexQueries(ChainQueries, LogQueries):
    """Reads through a connection that cannot write."""

    def __init__(self, reader: aiosqlite.Connection) -> None:
        self._reader = reader

    async def head(self, tenant: str, txn: str) -> tuple[int, str, int] | None:
        """The last record of a txn that was seen: its number, its hash, and where it stood in the stream."""
        query = "SELECT last_seq, last_hash, last_stream_seq FROM txn WHERE tenant = ? AND txn = ?"
        rows = await self._all(query, (tenant, txn))
        return (int(rows[0][0]), str(rows[0][1]), int(rows[0][2])) if rows else None

    async def summary(self, tenant: str, txn: str) -> ChainRow | None:
        """One txn as a listing shows it."""
        rows = await self._all(_SUMMARY, {"tenant": tenant, "txn": txn})
        return chain_row(rows[0]) if rows else None

    async def chain(self, tenant: str, txn: str) -> list[dict[str, Any]]:
        """The entries of a txn in order, each ``{"record": …, "grant": token or None}``; empty where there is none."""
        query = "SELECT body, grant_token FROM record WHERE tenant = ? AND txn = ? ORDER BY seq"
        return [{"record": json.loads(body), "grant": token} for body, token in await self._all(query, (tenant, txn))]

    async def refusals(self, tenant: str, txn: str) -> list[dict[str, Any]]:
        """The records of the calls that were refused in a txn, in the order in which they were written."""
        query = "SELECT body FROM refusal WHERE tenant = ? AND txn = ? ORDER BY stream_seq"
        return [json.loads(body) for (body,) in await self._all(query, (tenant, txn))]

    async def recent_refusals(self, tenant: str, since: str, limit: int = 100) -> list[dict[str, Any]]:
        """The newest refusals of a tenant at or after ``since`` (RFC 3339), those outside any txn included."""
        query = "SELECT body FROM refusal WHERE tenant = ? AND at >= ? ORDER BY at DESC, stream_seq DESC LIMIT ?"
        return [json.loads(body) for (body,) in await self._all(query, (tenant, since, min(limit, MAX_ROWS)))]

    async def answers(
        self, tenant: str, after: int, limit: int
    ) -> list[tuple[int, dict[str, Any], dict[str, Any], str]]:
        """Records of ends and of questions in order after a place: each with its place, what opened its hop, and its user."""
        query = (
            "SELECT r.stream_seq, r.txn, r.body, t.user FROM record r INDEXED BY record_by_tenant "
            "CROSS JOIN txn t ON (t.tenant, t.txn) = (r.tenant, r.txn) "
            "WHERE r.tenant = ? AND r.kind IN ('hop.closed', 'hop.parked') AND r.stream_seq > ? ORDER BY r.stream_seq LIMIT ?"
        )
        rows = [
            (seq, txn, json.loads(body), user)
            for seq, txn, body, user in await self._all(query, (tenant, after, limit))
        ]
        # A task's openings are read once for a page: a join by hop would read the task anew for each of its ends.
        opened: dict[tuple[str, str], dict[str, Any]] = {}
        for txn in dict.fromkeys(txn for _, txn, _, _ in rows):
            query = "SELECT hop, body FROM record WHERE tenant = ? AND txn = ? AND kind = 'hop.opened'"
            opened |= {(txn, hop): json.loads(body) for hop, body in await self._all(query, (tenant, txn))}
        return [
            (seq, raw, opened[txn, raw["hop"]], user) for seq, txn, raw, user in rows if (txn, raw["hop"]) in opened
        ]

    async def decisions(
        self, tenant: str, after: int, kind: str, limit: int, since: str = ""
    ) -> list[tuple[int, dict[str, Any], str]]:
        """Records of calls that were ``opened`` or ``refused``, in order after a place: each with its place and its user.

        None from before ``since`` (RFC 3339).
        """
        after = max(after, await self._before(since)) if since and kind == "opened" else after
        if kind == "opened":
            query = (
                "SELECT r.stream_seq, r.body, t.user FROM record r INDEXED BY record_by_tenant "
                "CROSS JOIN txn t ON (t.tenant, t.txn) = (r.tenant, r.txn) "
                "WHERE r.tenant = ? AND r.kind = 'hop.opened' AND r.stream_seq > ? AND r.at >= ? ORDER BY r.stream_seq LIMIT ?"
            )
        else:
            query = (
                "SELECT stream_seq, body, coalesce(user, '') FROM refusal INDEXED BY refusal_by_tenant "
                "WHERE tenant = ? AND stream_seq > ? AND at >= ? ORDER BY stream_seq LIMIT ?"
            )
        rows = await self._all(query, (tenant, after, since, limit))
        return [(seq, json.loads(body), user) for seq, body, user in rows]

    async def _before(self, since: str) -> int:
        """A place in the ledger before which everything is older than ``since``: by halves, as times nearly follow the stream."""
        low, high = 0, (await self._all("SELECT coalesce(max(stream_seq), 0) FROM record", ()))[0][0]
        while low < high:
            middle = (low + high) // 2
            query = "SELECT at FROM record WHERE stream_seq > ? ORDER BY stream_seq LIMIT 1"
            found = await self._all(query, (middle,))
            low, high = (middle + 1, high) if found and found[0][0] < since else (low, middle)
        return max(0, low - _NEARLY)

    async def hops_like(self, tenant: str, prefix: str, limit: int = 10) -> list[HopHit]:
        """Hops and refusals whose id begins with ``prefix``; ``<txn>.<hop>`` (each or its beginning) narrows.

        The ``+`` keeps the planner from looking through all txns of the tenant for a hop that it has an index of.
        """
        txn, _, hop = prefix.rpartition(".")
        query = """
            SELECT 'hop', txn, hop, resource, opened_at FROM hop
            WHERE tenant = :tenant AND hop >= :hop AND hop < :hop_end AND +txn >= :txn AND +txn < :txn_end
            UNION ALL
            SELECT 'refused', txn, hop, resource, at FROM refusal
            WHERE tenant = :tenant AND hop >= :hop AND hop < :hop_end
                AND coalesce(txn, '') >= :txn AND coalesce(txn, '') < :txn_end
            ORDER BY 5 DESC LIMIT :rows
        """
        given = {"tenant": tenant, "hop": hop, "hop_end": f"{hop}~", "txn": txn, "txn_end": f"{txn}~", "rows": limit}
        return [HopHit(*row) for row in await self._all(query, given)]

    async def refusal(self, tenant: str, hop: str) -> dict[str, Any] | None:
        """The record of a refused call by its id."""
        query = "SELECT body FROM refusal WHERE tenant = ? AND hop = ? ORDER BY stream_seq LIMIT 1"
        rows = await self._all(query, (tenant, hop))
        return json.loads(rows[0][0]) if rows else None

    async def approvals(self, tenant: str, prefix: str = "", limit: int = MAX_ROWS) -> list[ApprovalRow]:
        """Requests for approvals, newest first, whose id begins with ``prefix``; ``<txn>.<id>`` (each or its beginning) narrows."""
        txn, _, name = prefix.rpartition(".")
        where = """
            WHERE a.tenant = :tenant AND a.id >= :id AND a.id < :id_end AND +a.txn >= :txn AND +a.txn < :txn_end
            ORDER BY a.at DESC, a.id LIMIT :rows
        """
        given = {"tenant": tenant, "id": name, "id_end": f"{name}~", "txn": txn, "txn_end": f"{txn}~", "rows": limit}
        return [_approval(row) for row in await self._all(_APPROVAL + where, given)]

    async def approvals_in(self, tenant: str, state: str, now: float, revision: str, limit: int) -> list[ApprovalRow]:
        """Those in a state (or ``all``) at ``now`` (Unix seconds) under the policies of ``revision``, newest first."""
        where = f"WHERE a.tenant = :tenant {_IN_STATE[state]} ORDER BY a.at DESC, a.id LIMIT :rows"
        given = {"tenant": tenant, "now": now, "revision": revision, "rows": limit}
        return [_approval(row) for row in await self._all(_APPROVAL + where, given)]

    async def untold(self, now: int, limit: int = 50) -> list[Untold]:
        """Requests of all tenants that wait at ``now`` (Unix seconds) and of which nobody was told, the oldest first."""
        query = """
            SELECT a.tenant, a.txn, a.id, r.body FROM approval a
            JOIN txn t ON (t.tenant, t.txn) = (a.tenant, a.txn) AND t.closed_at IS NULL
            JOIN record r ON (r.tenant, r.txn, r.seq) = (a.tenant, a.txn, a.seq)
            WHERE a.told = 0 AND a.verdict IS NULL AND a.exp > ? ORDER BY a.at LIMIT ?
        """
        rows = await self._all(query, (now, limit))
        return [Untold((tenant, txn, name), json.loads(body)) for tenant, txn, name, body in rows]

    async def find(self, tenant: str, prefix: str, limit: int = 10) -> list[str]:
        """The ids of txns that begin with ``prefix``."""
        query = "SELECT txn FROM txn WHERE tenant = ? AND txn >= ? AND txn < ? ORDER BY txn LIMIT ?"
        return [txn for (txn,) in await self._all(query, (tenant, prefix, f"{prefix}~", limit))]

    async def near(self, tenant: str, txn: str) -> list[str]:
        """Ids of txns that begin as ``txn`` does, those that agree for longest first."""
        before = "SELECT txn FROM txn WHERE tenant = ? AND txn < ? ORDER BY txn DESC LIMIT 3"
        after = "SELECT txn FROM txn WHERE tenant = ? AND txn >= ? ORDER BY txn LIMIT 3"
        rows = [*await self._all(before, (tenant, txn)), *await self._all(after, (tenant, txn))]
        return by_beginning(txn, [found for (found,) in rows])

    async def open_tenants(self) -> dict[str, int]:
        """How many tasks are open in each tenant, of those that have any."""
        query = "SELECT tenant, count(*) FROM txn WHERE closed_at IS NULL GROUP BY tenant"
        return dict(await self._all(query, ()))

    async def overdue(self, now_ms: int, grace_ms: int, limit: int = MAX_ROWS) -> list[OpenHop]:
        """Hops of all tenants that are open more than ``grace_ms`` past their deadline, the oldest first. None that is parked."""
        query = (
            "SELECT tenant, txn, hop, deadline FROM hop "
            "WHERE closed_at IS NULL AND parked_at IS NULL AND deadline < ? ORDER BY deadline LIMIT ?"
        )
        return [OpenHop(*row) for row in await self._all(query, (now_ms - grace_ms, limit))]

    async def running_hops(self, before: str, limit: int = MAX_ROWS) -> list[RunningHop]:
        """Hops of all tenants that are open since ``before`` (RFC 3339) or longer, with the replica that opened or resumed each."""
        query = (
            "SELECT h.tenant, h.txn, h.hop, (SELECT json_extract(r.body, '$.by') FROM record r "
            "WHERE (r.tenant, r.txn, r.hop) = (h.tenant, h.txn, h.hop) AND r.kind IN ('hop.opened', 'hop.resumed') "
            "ORDER BY r.seq DESC LIMIT 1) FROM hop h WHERE h.closed_at IS NULL AND h.parked_at IS NULL AND h.opened_at < ? LIMIT ?"
        )
        return [RunningHop(*row) for row in await self._all(query, (before, limit))]

    async def idle_txns(self, before: str, limit: int = MAX_ROWS) -> list[IdleTxn]:
        """Txns that are open, have no hop that is open or parked and no record since ``before`` (RFC 3339)."""
        query = (
            "SELECT tenant, txn, last_seq FROM txn WHERE closed_at IS NULL AND open_hops = 0 AND last_at < ? "
            "AND (tenant, txn) NOT IN (SELECT tenant, txn FROM broken) ORDER BY last_at LIMIT ?"
        )
        return [IdleTxn(*row) for row in await self._all(query, (before, limit))]

    async def expired_txns(self, now: int, limit: int = MAX_ROWS) -> list[tuple[str, str]]:
        """(tenant, txn) that are open although their root grant expired before ``now`` (Unix seconds)."""
        # To a broken one nothing can be appended: it would be found again and again.
        query = (
            "SELECT tenant, txn FROM txn WHERE closed_at IS NULL AND exp < ? "
            "AND (tenant, txn) NOT IN (SELECT tenant, txn FROM broken) ORDER BY exp LIMIT ?"
        )
        return [(tenant, txn) for tenant, txn in await self._all(query, (now, limit))]

    async def counts(self) -> dict[str, int]:
        """Totals over all tenants, for metrics: txns, open_txns, hops, open_hops, refusals, broken, records."""
        query = """
            SELECT (SELECT count(*) FROM txn), (SELECT count(*) FROM txn WHERE closed_at IS NULL),
                (SELECT count(*) FROM hop), (SELECT count(*) FROM hop WHERE closed_at IS NULL),
                (SELECT coalesce(sum(count), 0) FROM refusal), (SELECT count(*) FROM broken),
                (SELECT count(*) FROM record)
        """
        names = ("txns", "open_txns", "hops", "open_hops", "refusals", "broken", "records")
        return dict(zip(names, (await self._all(query, ()))[0], strict=True))

    async def open_now(self, now: int) -> dict[str, int]:
        """What has not ended, over all tenants; ``now`` is Unix seconds. Looks at nothing that has ended."""
        query = """
            SELECT (SELECT count(*) FROM txn WHERE closed_at IS NULL),
                (SELECT count(*) FROM hop WHERE closed_at IS NULL AND parked_at IS NULL AND deadline >= 0),
                (SELECT coalesce(sum(open_hops), 0) FROM txn WHERE closed_at IS NULL),
                (SELECT count(*) FROM approval a JOIN txn t ON (t.tenant, t.txn) = (a.tenant, a.txn)
                    WHERE t.closed_at IS NULL AND a.verdict IS NULL AND a.exp > ?),
                (SELECT count(*) FROM broken)
        """
        tasks, hops, standing, approvals, broken = (await self._all(query, (now,)))[0]
        return {"tasks": tasks, "hops": hops, "parked": standing - hops, "approvals": approvals, "broken": broken}

    async def _all(self, query: str, given: Any) -> list[Any]:
        async with self._reader.execute(query, given) as rows:
            return list(await rows.fetchall())


def _approval(row: Any) -> ApprovalRow:
    return ApprovalRow(
        txn=row[0], id=row[1], user=row[2], resource=row[3], at=row[4], exp=row[5], verdict=row[6], use_until=row[7],
        used_by=row[8], closed=bool(row[9]), revision=row[10] or "",
    )  # fmt: skip
