"""What a listing of txns may be narrowed by, and what it shows."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec

from remit_schemas.budget import Budget
from remit_schemas.errors import Code, refusal

Cost = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
_PLACE: Final = re.compile(r"(\d{1,15})\.(\d{1,15})", re.ASCII)


class ChainFilter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which txns to list; what is None does not narrow, and a txn has to fit all that is given.

    ``agent`` is any principal of the chain, ``server`` an MCP server that was called, ``tool`` a resource or the beginning of one.
    ``decision``, ``rule`` and ``label`` are those of any record of the txn or of a call refused in it, ``code`` that of a failed hop or
    of a refusal; ``reason`` are words that all stand in the reasons of its records. ``min_usd_micros`` and ``max_usd_micros`` (both
    included) are about what the whole task was charged. ``since`` (included) and ``until`` (excluded) are RFC 3339 UTC. Newest first;
    ``cursor`` is what the page before ended with.
    """

    user: str | None = None
    agent: str | None = None
    server: str | None = None
    tool: str | None = None
    decision: Literal["allow", "deny", "would_deny"] | None = None
    rule: str | None = None
    code: str | None = None
    label: str | None = None
    reason: str | None = None
    min_usd_micros: Cost | None = None
    max_usd_micros: Cost | None = None
    since: str | None = None
    until: str | None = None
    limit: int = 50
    cursor: str | None = None


class ChainRow(msgspec.Struct, frozen=True, kw_only=True):
    """One txn in a listing. ``refused`` counts calls; ``broken`` says why its records do not hold together."""

    tenant: str
    txn: str
    user: str
    agent: str
    opened_at: str
    last_at: str
    closed_at: str | None
    reason: str | None
    continues: str | None
    hops: int
    open_hops: int
    refused: int
    limit: Budget
    spent: Budget
    records: int
    broken: str | None


class ChainPage(NamedTuple):
    """A page of a listing; ``cursor`` is None on the last."""

    rows: list[ChainRow]
    cursor: str | None


class ApprovalRow(msgspec.Struct, frozen=True, kw_only=True):
    """One request for an approval in a listing. ``verdict`` is there once it is settled, ``closed`` is whether its
    txn has ended; ``exp`` and ``use_until`` are Unix seconds. ``revision`` is that of the policies that asked."""

    txn: str
    id: str
    user: str
    resource: str
    at: str
    exp: int
    verdict: str | None
    use_until: int | None
    used_by: str | None
    closed: bool
    revision: str = ""

    def state(self, now: float, revision: str) -> str:
        """``waiting``, ``approved``, ``denied``, ``used``, ``expired`` or ``void``, under the policies of ``revision``."""
        if self.used_by or self.verdict == "deny":
            return "used" if self.used_by else "denied"
        if self.closed:
            return "void"
        until = self.exp if self.verdict is None or self.use_until is None else self.use_until
        if now >= until:
            return "expired"
        # INVARIANT: what nobody need decide on any more does not wait (test_a_request_under_other_policies_waits_no_more).
        return "void" if self.revision != revision else "waiting" if self.verdict is None else "approved"


class Untold(NamedTuple):
    """A request for an approval that waits, of which nobody was told. ``key`` is (tenant, txn, id)."""

    key: tuple[str, str, str]
    record: dict[str, Any]


class HopHit(NamedTuple):
    """A hop found by the beginning of its id. ``kind`` is ``hop`` or ``refused``."""

    kind: str
    txn: str | None
    hop: str
    resource: str
    at: str


class LogFilter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which records of the whole log: ``GET /api/records``. ``after`` is the cursor a page before ended with; ``since`` (included) and
    ``until`` (excluded) are RFC 3339 UTC.
    """

    after: str = ""
    since: str | None = None
    until: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 200

    def place(self) -> tuple[int, int]:
        """Where the page before ended in the ledger and in the refusals. Refuses MALFORMED for what is no cursor."""
        if not self.after:
            return 0, 0
        match = _PLACE.fullmatch(self.after)
        if match is None:
            raise refusal(
                Code.MALFORMED, "that is not a cursor a page ended with", rule="records.cursor", ask="start without one"
            )
        return int(match[1]), int(match[2])


class Logged(NamedTuple):
    """One record of the log: of which ``stream`` (``ledger`` or ``refusals``), where in it, and whose task it is about."""

    stream: str
    seq: int
    user: str | None
    record: dict[str, Any]


def cursor_after(place: tuple[int, int], page: list[Logged]) -> str:
    """The cursor after ``page``, which began after ``place``."""
    ledger = max([place[0], *(one.seq for one in page if one.stream == "ledger")])
    refusals = max([place[1], *(one.seq for one in page if one.stream == "refusals")])
    return f"{ledger}.{refusals}"
