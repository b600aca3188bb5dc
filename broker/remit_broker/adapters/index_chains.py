"""Listings of tasks: a page is read from where its first row stands, in the order in which it is shown, by whichever filter is rarest.

Nothing is sorted and nothing is counted, however many tasks there are. What two filters have in common that hardly meet is looked for
among the tasks of the rarer one.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from remit_broker.core.listing import ChainFilter, ChainPage, ChainRow
from remit_broker.core.marks import LONGEST, digits, words
from remit_schemas.budget import Budget
from remit_schemas.errors import Code, refusal

MAX_ROWS: Final = 500
MOST_VALUES: Final = 64
"""Names that begin with what is looked for, up to which each is looked up by itself."""
_RARE: Final = 2000
"""Tasks of a filter that are counted to find the rarest one."""

CHAIN: Final = """
SELECT t.tenant, t.txn, user, agent, t.opened_at, last_at, closed_at, reason, continues, hops, open_hops,
    (SELECT coalesce(sum(count), 0) FROM refusal r WHERE r.tenant = t.tenant AND r.txn = t.txn),
    limit_usd_micros, limit_tokens, limit_calls, spent_usd_micros, spent_tokens, spent_calls, last_seq + 1, b.why
"""
_PAGE: Final = (
    "WITH found(at, txn) AS ({arms} ORDER BY 1 DESC, 2 DESC LIMIT :rows) "
    + CHAIN
    + "FROM found CROSS JOIN txn t ON (t.tenant, t.txn) = (:tenant, found.txn) "
    "LEFT JOIN broken b ON (b.tenant, b.txn) = (t.tenant, t.txn) ORDER BY t.opened_at DESC, t.txn DESC"
)
_MARKED: Final = (
    "SELECT m.opened_at, m.txn FROM mark m WHERE m.tenant = :tenant AND m.kind = :{kind} AND m.value = :{value}"
)
_ANY: Final = "SELECT m.opened_at, m.txn FROM txn m WHERE m.tenant = :tenant"
_TOO: Final = (
    "AND EXISTS (SELECT 1 FROM mark x WHERE x.tenant = :tenant AND x.kind = :{kind} AND x.value IN ({values}) "
    "AND x.opened_at = m.opened_at AND x.txn = m.txn)"
)
_CALLED: Final = (
    "AND EXISTS (SELECT 1 FROM hop h WHERE (h.tenant, h.txn) = (:tenant, m.txn) "
    "AND h.resource >= :low AND h.resource < :high)"
)
_COST: Final = (
    "AND EXISTS (SELECT 1 FROM txn c WHERE (c.tenant, c.txn) = (:tenant, m.txn) AND c.spent_usd_micros {than})"
)
_BOUNDS: Final = {
    "since": "AND m.opened_at >= :since",
    "until": "AND m.opened_at < :until",
    "cursor": "AND (m.opened_at, m.txn) < (:cursor_at, :cursor_txn)",
}
_VALUES: Final = """
WITH RECURSIVE v(value) AS (
    SELECT min(value) FROM mark WHERE tenant = :tenant AND kind = :kind AND value >= :low AND value < :high
    UNION ALL
    SELECT (
        SELECT min(value) FROM mark WHERE tenant = :tenant AND kind = :kind
            AND value > v.value || iif(:kind = 'tool' AND v.value LIKE '%/', :last, '') AND value < :high
    ) FROM v WHERE v.value IS NOT NULL
) SELECT value FROM v WHERE value IS NOT NULL LIMIT :most
"""
_LAST: Final = "\U0010ffff"


class _Wanted(NamedTuple):
    """One filter: a task has it that is marked with one of ``values``."""

    kind: str
    values: tuple[str, ...]


class ChainQueries:
    """Reads listings. Mixed into the index, which has the connection."""

    async def chains(self, tenant: str, wanted: ChainFilter) -> ChainPage:
        """A page of txns, newest first. Raises a MALFORMED refusal for a cursor that no page ended with."""
        limit = max(1, min(wanted.limit, MAX_ROWS))
        given: dict[str, Any] = {"tenant": tenant, "rows": limit + 1}
        filters, checks = await self._filters(tenant, wanted, given)
        for name in _BOUNDS:
            if (value := getattr(wanted, name)) is not None:
                given[name] = value
                checks.append(_BOUNDS[name])
        if wanted.cursor is not None:
            given["cursor_at"], given["cursor_txn"] = _cursor(given.pop("cursor"))
        if any(not one.values for one in filters):
            return ChainPage([], None)
        filters = await self._rarest_first(tenant, filters)
        found = [chain_row(row) for row in await self._all(_page(filters, checks, given), given)]
        more = _make_cursor(found[limit - 1]) if len(found) > limit else None
        return ChainPage(found[:limit], more)

    async def users(self, tenant: str) -> list[str]:
        """Everybody a task was ever opened for, up to ten thousand."""
        return await self._values(tenant, "user", "", _LAST, 10_000)

    async def _filters(
        self, tenant: str, wanted: ChainFilter, given: dict[str, Any]
    ) -> tuple[list[_Wanted], list[str]]:
        """What tasks must be marked with, and what else is asked of each."""
        plain = {name: getattr(wanted, name) for name in ("user", "agent", "decision", "rule", "code", "label")}
        filters = [_Wanted(name, (value[:LONGEST],)) for name, value in plain.items() if value is not None]
        checks = []
        if wanted.server is not None:
            filters.append(_Wanted("tool", (f"mcp/{wanted.server}/"[:LONGEST],)))
        if wanted.tool is not None:
            low = wanted.tool.rstrip("*")
            values = await self._values(tenant, "tool", low, f"{low}{_LAST}", MOST_VALUES + 1)
            if len(values) <= MOST_VALUES:
                filters.append(_Wanted("tool", tuple(values)))
            else:
                checks.append(_CALLED)
                given |= {"low": low, "high": f"{low}{_LAST}"}
        if wanted.reason is not None:
            filters += [_Wanted("word", (word,)) for word in _words(wanted.reason)]
        if wanted.min_usd_micros:
            checks.append(_COST.format(than=">= :least"))
            given["least"] = wanted.min_usd_micros
            costs = await self._values(tenant, "cost", digits(wanted.min_usd_micros), _LAST, MOST_VALUES)
            filters.append(_Wanted("cost", tuple(costs)))
        if wanted.max_usd_micros is not None:
            checks.append(_COST.format(than="<= :most"))
            given["most"] = wanted.max_usd_micros
        return filters, checks

    async def _rarest_first(self, tenant: str, filters: list[_Wanted]) -> list[_Wanted]:
        if len(filters) < 2:
            return filters
        counted = []
        for one in filters:
            names = ",".join("?" * len(one.values))
            query = f"SELECT count(*) FROM (SELECT 1 FROM mark WHERE tenant = ? AND kind = ? AND value IN ({names}) LIMIT ?)"  # noqa: S608 - marks alone
            counted.append(((await self._all(query, (tenant, one.kind, *one.values, _RARE)))[0][0], one))
        return [one for _, one in sorted(counted, key=lambda pair: pair[0])]

    async def _values(self, tenant: str, kind: str, low: str, high: str, most: int) -> list[str]:
        """Values of a kind of mark from ``low`` to before ``high``, in order: one look for each, however often it is there.

        Of tools none whose server stands for it: what is called is marked with the names of all above it, too.
        """
        given = {"tenant": tenant, "kind": kind, "low": low, "high": high, "last": _LAST, "most": most}
        return [value for (value,) in await self._all(_VALUES, given)]

    async def _all(self, query: str, given: Any) -> list[Any]:
        raise NotImplementedError


def _words(text: str) -> list[str]:
    if not (found := words(text)):
        raise refusal(
            Code.MALFORMED, "there is no word in what is looked for", rule="api.query",
            ask="words of two letters or more, as they stand in a reason",
        )  # fmt: skip
    return found


def _page(filters: list[_Wanted], checks: list[str], given: dict[str, Any]) -> str:
    """The statement, of constants and names of what is ``given``: an arm for each value of the first filter, merged as read."""
    others = [*checks, *(_too(number, one, given) for number, one in enumerate(filters[1:], start=1))]
    arms = [" ".join([arm, *others]) for arm in _arms(filters[0] if filters else None, given)]
    return _PAGE.format(arms=" UNION ".join(arms))


def _arms(first: _Wanted | None, given: dict[str, Any]) -> Iterator[str]:
    if first is None:
        yield _ANY
        return
    given["k0"] = first.kind
    for number, value in enumerate(first.values):
        given[f"v0_{number}"] = value
        yield _MARKED.format(kind="k0", value=f"v0_{number}")


def _too(place: int, one: _Wanted, given: dict[str, Any]) -> str:
    given[f"k{place}"] = one.kind
    names = {f"v{place}_{number}": value for number, value in enumerate(one.values)}
    given |= names
    return _TOO.format(kind=f"k{place}", values=",".join(f":{name}" for name in names))


def chain_row(row: Any) -> ChainRow:
    """One row of :data:`CHAIN`."""
    return ChainRow(
        tenant=row[0], txn=row[1], user=row[2], agent=row[3], opened_at=row[4], last_at=row[5], closed_at=row[6],
        reason=row[7], continues=row[8], hops=row[9], open_hops=row[10], refused=row[11], limit=Budget(*row[12:15]),
        spent=Budget(*row[15:18]), records=row[18], broken=row[19],
    )  # fmt: skip


def _make_cursor(row: ChainRow) -> str:
    return base64.urlsafe_b64encode(f"{row.opened_at} {row.txn}".encode()).decode()


def _cursor(text: str) -> tuple[str, str]:
    try:
        at, _, txn = base64.urlsafe_b64decode(text.encode()).decode().partition(" ")
    except (binascii.Error, UnicodeError):
        at = txn = ""
    if not txn:
        raise refusal(
            Code.MALFORMED,
            "the cursor is not one that a page ended with",
            rule="index.cursor",
            ask="start at the first page",
        )
    return at, txn
