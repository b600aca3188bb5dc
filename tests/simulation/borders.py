"""Tenants, judged from outside: what comes from one's account is stored, sent and answered as that one's and as nobody else's.

The server says which account a connection is in; the operator of a run says whose each task is. From these two everything follows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.simulation.checks import Checks

BUS = "BUS"
OTHER = "acme"
"""The tenant beside the default one, where a town has two."""


def named(name: str, tenant: str) -> str:
    """How a run calls an agent of a tenant; for the bus it is ``name`` in the tenant's own account."""
    return name if tenant == "default" else f"{tenant}/{name}"


def account_of(tenant: str) -> str:
    """The account of the NATS server in which a tenant's agents are."""
    return BUS if tenant == "default" else f"{BUS}_{tenant}"


def tenant_of(account: str) -> str:
    """Whose account it is."""
    return account.removeprefix(f"{BUS}_") if account != BUS else "default"


class Borders:
    """What is watched of tenants."""

    def __init__(self, checks: Checks) -> None:
        self._checks = checks
        self.owner: dict[str, str] = {}
        """By txn: the tenant of its first record."""

    def stored(self, subject: str, record: dict[str, Any]) -> None:
        """A record was stored under ``subject``: ``ledger.<tenant>.<txn>``, ``refusals.<tenant>``."""
        _, tenant, *more = subject.split(".")
        said = (record["tenant"], *([record["txn"]] if more else []))
        if (tenant, *more) != said:
            self._broken("subject", record, f"it stands in {subject}")
        if (txn := record["txn"]) and self.owner.setdefault(txn, record["tenant"]) != record["tenant"]:
            self._broken("record", record, f"task {txn} is {self.owner[txn]}'s")

    def opened(self, tenant: str, txn: str) -> None:
        """An operator opened a task for ``tenant``."""
        if self.owner.get(txn, tenant) != tenant:
            self._checks.broken("tenant.record", txn, f"it was opened for {tenant}, and is {self.owner[txn]}'s")

    def sent(self, what: str, account: str, txn: str, hop: str) -> None:
        """A dispatch or an answer about a hop goes out in an account."""
        owner = self.owner.get(txn)
        if owner is not None and owner != tenant_of(account):
            self._checks.broken(f"tenant.{what}", hop, f"it is {owner}'s, and was sent in {account}")

    def crossed(self, what: str, word: str) -> None:
        """Somebody tried to reach what is another tenant's, and this came of it."""
        self._checks.totals["crossed ids"] += 1
        if word in ("value", "input_required", "done"):
            self._checks.broken("tenant.crossed", what, f"it came through: {word}")

    def _broken(self, what: str, record: dict[str, Any], why: str) -> None:
        self._checks.broken(f"tenant.{what}", str(record["hop"]), f"{record['kind']} of {record['tenant']}: {why}")
