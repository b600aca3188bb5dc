"""Caps over all tasks, judged from outside: by what the ledger of each tenant says that its hops hold and have cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.simulation.checks import Checks

CALL = {"usd_micros": 0, "tokens": 0, "calls": 1}
Caps = dict[tuple[str, str, str], dict[str, int]]
"""By (kind, name, window): the cap, for a window that lasts longer than any run."""


def _accounts(record: dict[str, Any], user: str) -> list[tuple[str, str]]:
    """What a hop is charged to."""
    kind, name, _ = record["resource"].split("/", 2)
    found = [("tenant", record["tenant"]), ("user", user), ("agent", record["caller"] if kind == "mcp" else name)]
    return [*found, ("tool", record["resource"])] if kind == "mcp" else found


class OverAllTasks:
    """What is watched of caps."""

    def __init__(self, checks: Checks, caps: Caps) -> None:
        self._checks, self.caps = checks, caps
        self._counted: dict[str, dict[str, int]] = {}
        """What each hop counts for in the accounts now, beside what it has used up before it was parked."""
        self._used: dict[str, dict[str, int]] = {}

    def dispatched(self, hop: str, record: dict[str, Any], key: tuple[str, str]) -> None:
        """What is dispatched was reserved before, in every account."""
        if not self.caps:
            return
        self._counted[hop] = dict(record["budget"]) if record["resource"].startswith("mcp/") else dict(CALL)
        for kind, name in _accounts(record, self._checks.books(key).user):
            for (of, who, _), cap in self.caps.items():
                if of == kind and (who == name or (who == "default" and (kind, name, _) not in self.caps)):
                    for unit, amount in cap.items():
                        spent = self._spent(key[0], kind, name, unit)
                        if spent > amount:
                            why = f"{kind} {name} has {spent} {unit} of {amount}"
                            self._checks.broken("account.overspent", hop, why)

    def ended(self, hop: str, record: dict[str, Any]) -> None:
        """A hop was closed or parked: it counts for what it has cost, where that is known."""
        counted = self._counted.get(hop)
        if counted is None or record.get("outcome") in ("unknown", "cancelled"):
            return
        for unit in counted:
            counted[unit] = min(counted[unit], record["cost"][unit] + CALL[unit])

    def parked(self, hop: str) -> None:
        """What a hop counts for so far stays; it will be counted again once it goes on."""
        for unit, amount in self._counted.pop(hop, {}).items():
            self._used.setdefault(hop, dict.fromkeys(CALL, 0))[unit] += amount

    def account(self, tenant: str, row: dict[str, Any]) -> None:
        """What an account says of itself when nothing runs."""
        checks, where = self._checks, f"{tenant}: {row['kind']} {row['name']}"
        if any(row["held"].values()):
            checks.broken("account.held", where, f"{row['held']} is held by nobody")
        if not checks.exact or "calls" not in row["cap"]:
            return
        least, most = self._calls_of(tenant, (row["kind"], row["name"]))
        if not least <= row["spent"]["calls"] <= most:
            why = f"it has {row['spent']['calls']} calls, by the tenant's own ledger {least}"
            checks.broken("account.differs", where, why)

    def _spent(self, tenant: str, kind: str, name: str, unit: str) -> int:
        total, checks = 0, self._checks
        for counts in (self._counted, self._used):
            for hop, counted in counts.items():
                seq = checks.opened.get(hop)
                if seq is None or checks.stored[seq][0][0] != tenant:
                    continue
                if (kind, name) in _accounts(checks.about[hop], checks.books(checks.stored[seq][0]).user):
                    total += counted[unit]
        return total

    def _calls_of(self, tenant: str, account: tuple[str, str]) -> tuple[int, int]:
        """How many calls the ledger of a tenant says that an account has spent: at least, and at most."""
        least, most, checks = 0, 0, self._checks
        for key, record in checks.stored.values():
            about = checks.about.get(record["hop"])
            if about is None or key[0] != tenant or account not in _accounts(about, checks.books(key).user):
                continue
            if record["kind"] in ("hop.opened", "hop.resumed"):
                least += 1
                most += record["budget"]["calls"] if about["resource"].startswith("mcp/") else 1
            elif record["kind"] in ("hop.closed", "hop.parked"):
                most += record["cost"]["calls"]
        return least, most
