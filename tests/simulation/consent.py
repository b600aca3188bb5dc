"""Approvals, judged from what is stored and what is published: nothing of the broker, and nothing that it says of itself.

The books (:mod:`tests.support.ledger_books`) judge each record by the others: used once, in time, for what was approved, never by
the user where four eyes are asked for. Here stands what a reader of the ledger alone cannot know: which calls need an approval,
who may give one, what bytes were sent, and whether somebody was asked again who had been asked already.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import rfc8785

from tests.simulation.rules import CAREFUL, NOBODY
from tests.support.ledger_books import Approval, Books

if TYPE_CHECKING:
    from tests.simulation.checks import Checks

DIGEST_KEY = b"k" * 32
"""With which the brokers of a run take their digests."""
_BOUND = (
    "hop", "caller", "chain", "action", "resource", "definition", "args_digest", "labels", "scope", "resumes", "input_digest",
    "endorses",
)  # fmt: skip


class Consent:
    """What is watched of approvals. ``checks`` hears what is broken."""

    def __init__(self, checks: Checks) -> None:
        self._checks = checks

    def stored(self, books: Books, record: dict[str, Any], about: dict[str, Any]) -> None:
        """A record was stored; ``about`` is the hop it is of, as it was opened."""
        kind = record["kind"]
        if kind in ("hop.opened", "hop.resumed") and about["resource"] in CAREFUL:
            self._checks.totals["approvals used"] += record["approval"] is not None
            if record["approval"] is None:
                self._checks.broken(
                    "approval.none", record["hop"], f"{about['resource']} was opened, and nobody was asked"
                )
        elif kind == "approval.requested":
            self._asked(books, record)
        elif kind == "approval.decided":
            self._checks.totals[f"said {record['verdict']}"] += 1
            if record["user"] == NOBODY:
                self._checks.broken("approval.nobody", record["id"], f"{NOBODY} decided, whom no policy lets")

    def _asked(self, books: Books, record: dict[str, Any]) -> None:
        mine = _bound(record)
        for name, other in books.approvals.items():
            undecided = not other.yes and not other.denied and not other.used_by
            if name != record["id"] and undecided and _at(record) < other.asked["exp"] and _bound(other.asked) == mine:
                self._checks.broken(
                    "approval.asked-twice", record["id"], f"people were asked the same in {name}, which waits"
                )

    def dispatched(self, record: dict[str, Any], resource: str, args: bytes) -> None:
        """A call is sent that ``record`` opened or resumed."""
        if resource not in CAREFUL:
            return
        self._checks.totals["careful dispatches"] += 1
        if record["approval"] is None:
            self._checks.broken("approval.none", record["hop"], f"{resource} was sent, and nobody was asked")
        key = hmac.digest(DIGEST_KEY, b"remit digest " + record["txn"].encode(), hashlib.sha256)
        data = rfc8785.dumps(json.loads(args))
        sent = hmac.digest(hmac.digest(key, data, hashlib.sha256), data, hashlib.sha256).hex()
        if sent != record["args_digest"]:
            self._checks.broken("approval.bytes", record["hop"], "what is sent is not what the record says")


def waiting(books: list[Books]) -> list[tuple[tuple[str, str], Approval]]:
    """Requests that people have not settled, of tasks that are open: (tenant, txn), and the request."""
    return [
        (one.key, approval) for one in books if not one.closed
        for approval in one.approvals.values() if not (approval.denied or approval.used_by or approval.enough())
    ]  # fmt: skip


def _bound(record: dict[str, Any]) -> tuple[Any, ...]:
    needs = tuple(need["rule"] for need in record["needs"])
    return (record["decision"]["revision"], needs, *(record.get(name) for name in _BOUND))


def _at(record: dict[str, Any]) -> float:
    return datetime.fromisoformat(record["at"].replace("Z", "+00:00")).timestamp()
