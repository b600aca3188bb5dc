"""The records of a tenant in the order of the streams, a page at a time: what exports and listings of the whole log read."""

from __future__ import annotations

import json
from typing import Any, Final

from remit_broker.core.listing import LogFilter, Logged
from remit_broker.core.times import rfc3339, seconds_of

DRIFT: Final = 600.0
"""Seconds by which the clocks of replicas may differ: so much earlier than ``since`` is looked."""

_LEDGER: Final = (
    "SELECT r.stream_seq, t.user, r.body FROM record r INDEXED BY record_by_tenant "
    "LEFT JOIN txn t ON (t.tenant, t.txn) = (r.tenant, r.txn) "
    "WHERE r.tenant = :tenant AND r.stream_seq > :after AND r.at >= :since AND r.at < :until ORDER BY r.stream_seq LIMIT :rows"
)
_REFUSALS: Final = (
    "SELECT stream_seq, user, body FROM refusal INDEXED BY refusal_by_tenant "
    "WHERE tenant = :tenant AND stream_seq > :after AND at >= :since AND at < :until ORDER BY stream_seq LIMIT :rows"
)
_NEXT_AT: Final = {
    table: f"SELECT stream_seq, at FROM {table} WHERE stream_seq >= ? ORDER BY stream_seq LIMIT 1"  # noqa: S608 - constants
    for table in ("record", "refusal")
}
_LAST: Final = {table: f"SELECT coalesce(max(stream_seq), 0) FROM {table}" for table in _NEXT_AT}  # noqa: S608 - constants


class LogQueries:
    """Reads the log. Mixed into the index, which has the connection."""

    async def log(self, tenant: str, wanted: LogFilter) -> list[Logged]:
        """At most ``wanted.limit`` records of each stream after ``wanted.after``, together in order of time."""
        ledger, refusals = wanted.place()
        given = {"tenant": tenant, "since": wanted.since or "", "until": wanted.until or "~", "rows": wanted.limit}
        if wanted.since and not wanted.after:
            ledger, refusals = await self._seek("record", wanted.since), await self._seek("refusal", wanted.since)
        found = [
            Logged(stream, seq, user, json.loads(body))
            for stream, query, after in (("ledger", _LEDGER, ledger), ("refusals", _REFUSALS, refusals))
            for seq, user, body in await self._all(query, given | {"after": after})
        ]
        return sorted(found, key=lambda one: (one.record["at"], one.stream, one.seq))

    async def _seek(self, table: str, since: str) -> int:
        """A place in a stream before everything at or after ``since``: there is no index by time over all records, and time goes
        with the stream but for the drift of clocks.
        """
        early = rfc3339(max(0.0, seconds_of(since) - DRIFT))
        # Everything up to `low` is earlier; what follows `high` is not.
        low, high = 0, int((await self._all(_LAST[table], ()))[0][0])
        while low < high:
            middle = (low + high) // 2
            rows = await self._all(_NEXT_AT[table], (middle + 1,))
            if rows and rows[0][1] < early:
                low = int(rows[0][0])
            else:
                high = middle
        return low

    async def _all(self, query: str, given: Any) -> list[Any]:
        raise NotImplementedError
