"""After the trouble: everything is read back and judged, and said with the counts that show whether it proves anything."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections import Counter
from collections.abc import Mapping
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from tests.chaos.brokers import CAPS, OTHER
from tests.chaos.journal import read
from tests.chaos.people import CAREFUL
from tests.chaos.stream import Stored, everything
from tests.chaos.town import Town
from tests.support.ledger_checker import Checker, Violation

SETTLE = 120.0
"""Seconds for the scans to close what was left open: a deadline of at most 4 s, the grace, and some for a loaded machine."""
_HALTED = re.compile(r"lost records|has halted|the projection failed", re.I)


class Report(NamedTuple):
    """What a run found."""

    counts: dict[str, int]
    violations: list[Violation]
    proof: str
    """Why the run proves nothing, or empty."""
    laps: Mapping[str, float] = MappingProxyType({})
    """Seconds that its parts took."""

    @property
    def ok(self) -> bool:
        return not self.violations and not self.proof

    def lines(self) -> list[str]:
        """For people."""
        shown = [f"  {name:<48}{count:>9,}" for name, count in self.counts.items()]
        if self.proof:
            shown.append(f"  proves nothing: {self.proof}")
        shown += [f"  VIOLATION {one}" for one in self.violations[:50]]
        shown.append("  " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.laps.items()))
        return [*shown, f"  {len(self.violations)} violations"]


async def judge(town: Town) -> Report:
    """Wait until everything has ended, read it all, and judge. The faults must be over."""
    seed = town.keys.seed("core")
    found: list[Violation] = []
    await _settled(town, seed)
    refusals = await everything(town.urls, seed, "REFUSALS")
    await asyncio.sleep(3)  # what was leased and not used goes back after two
    accounts = [
        {**row, "tenant": tenant} for tenant in ("default", OTHER)
        for row in (await town.ask(f"/api/budgets?tenant={tenant}"))["budgets"]
    ]  # fmt: skip
    jwks = await town.ask("/.well-known/jwks.json")
    keys = {key["kid"]: base64.urlsafe_b64decode(key["x"] + "=") for key in jwks["keys"]}
    events = sorted(read(town.folder / "journals"), key=itemgetter("at"))
    # After what anybody saw of it: tasks that expire are closed all the time.
    entries = await everything(town.urls, seed, "LEDGER")
    checker = Checker(CAPS, keys, skew=0.002)
    for entry in entries:
        checker.entry({"at": entry.seq, "stored": entry.stored, **entry.body})
    for event in events:
        if event["what"] in ("dispatched", "heard", "acked", "seen"):
            checker.event(event)
    found += checker.finish(refusals=[one.body["record"] for one in refusals], accounts=accounts)
    found += _halts(town.folder)
    found += borders(entries, refusals, events) + unapproved(entries)
    found += [
        Violation("broker.fault", f"{event['txn']}.{event.get('hop')}", json.dumps(event["frame"]["error"]))
        for event in events
        if event["what"] == "heard" and event["frame"].get("error", {}).get("rule") == "broker.fault"
    ]
    flight = in_flight(entries, events)
    counts = _counts(town, checker, events, flight) | {
        "approvals used": sum(bool(entry.body["record"].get("approval")) for entry in entries),
        "approvals pending when something died or froze": pending(entries, events),
        "ids of another tenant tried": sum(event["what"] == "crossed" for event in events),
    }
    proof = "" if sum(flight.values()) else "nothing was in flight when something died or froze"
    if not checker.counts["hop.opened"]:
        proof = "no hop was opened"
    return Report(counts, found, proof)


async def _settled(town: Town, seed: str) -> None:
    """Wait until no hop is open in the ledger, or the time for that is over."""
    until = asyncio.get_running_loop().time() + SETTLE
    while True:
        entries = await everything(town.urls, seed, "LEDGER")
        last = {}
        for record in (entry.body["record"] for entry in entries):
            if record["kind"] in ("hop.opened", "hop.resumed", "hop.parked", "hop.closed"):
                last[record["txn"], record["hop"]] = record["kind"]
        if not {"hop.opened", "hop.resumed"} & set(last.values()) or asyncio.get_running_loop().time() > until:
            return
        await asyncio.sleep(1)


def _halts(folder: Path) -> list[Violation]:
    """Nothing that happens here loses a record, so no broker may say that one was lost."""
    found = []
    for path in folder.glob("b*.stderr"):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if _HALTED.search(line):
                found.append(Violation("ledger.halted", path.stem, line[:300]))
    return found


def _faults(folder: Path) -> Counter[str]:
    """What brokers logged as faults, by where: most are of a bus that was taken from them."""
    found: Counter[str] = Counter()
    for path in folder.glob("b*.stderr"):
        found.update(re.findall(r"fault in ([\w.-]+):", path.read_text(encoding="utf-8", errors="replace")))
    return found


def in_flight(entries: list[Stored], events: list[dict[str, Any]]) -> Counter[str]:
    """How many hops were open when something died or froze, by what that was: a broker's own, a callee's, all of a NATS server's."""
    spans: dict[str, list[Any]] = {}
    for entry in entries:
        record = entry.body["record"]
        key = f"{record['txn']}.{record['hop']}"
        if record["kind"] == "hop.opened":
            spans[key] = [entry.stored, float("inf"), record]
        elif record["kind"] == "hop.closed" and key in spans:
            spans[key][1] = entry.stored
    found: Counter[str] = Counter()
    for event in events:
        if event["what"] not in ("death", "freeze"):
            continue
        for began, ended, record in spans.values():
            if began <= event["at"] < ended and _concerns(event, record):
                found[f"{event['what']}.{event['kind']}"] += 1
    return found


def pending(entries: list[Stored], events: list[dict[str, Any]]) -> int:
    """How many requests for approvals waited for people when something died or froze, over all of these."""
    spans: dict[str, list[float]] = {}
    for entry in entries:
        record = entry.body["record"]
        if record["kind"] == "approval.requested":
            spans[record["id"]] = [entry.stored, float(record["exp"])]
        elif record["kind"] == "approval.decided" and record["settled"] and record["id"] in spans:
            spans[record["id"]][1] = entry.stored
    died = [event["at"] for event in events if event["what"] in ("death", "freeze")]
    return sum(began <= at < ended for at in died for began, ended in spans.values())


def unapproved(entries: list[Stored]) -> list[Violation]:
    """The starter policies want an approval for each call of the tool that destroys: nothing of it is opened without one."""
    careful: dict[str, str] = {}
    found = []
    for record in (entry.body["record"] for entry in entries):
        if record["kind"] == "hop.opened":
            careful[record["hop"]] = record["resource"]
        asked = careful.get(record["hop"]) == CAREFUL
        if asked and record["kind"] in ("hop.opened", "hop.resumed") and not record["approval"]:
            found.append(Violation("approval.none", f"{record['txn']}.{record['hop']}", "nobody was asked"))
    return found


def borders(entries: list[Stored], refusals: list[Stored], events: list[dict[str, Any]]) -> list[Violation]:
    """What is one tenant's is stored, sent and answered as that one's, and as nobody else's."""
    found: list[Violation] = []
    owner: dict[str, str] = {}
    for entry in [*entries, *refusals]:
        record = entry.body["record"]
        _, mine, *of = entry.subject.split(".")
        where = f"{record['tenant']} {record['txn']}.{record['hop']}"
        if [mine, *of] != [record["tenant"], *([record["txn"]] if of else [])]:
            found.append(Violation("tenant.subject", where, f"it stands in {entry.subject}"))
        if of and owner.setdefault(record["txn"], record["tenant"]) != record["tenant"]:
            found.append(Violation("tenant.record", where, f"that task is {owner[record['txn']]}'s"))
    for event in events:
        txn, tenant = str(event.get("txn")), event.get("tenant")
        if event["what"] in ("acked", "dispatched") and tenant and owner.get(txn, tenant) != tenant:
            found.append(Violation(f"tenant.{event['what']}", txn, f"it is {owner[txn]}'s, {tenant} has it"))
        if event["what"] == "crossed" and {"accepted", "result"} & set(event["frames"]):
            found.append(Violation("tenant.crossed", txn, f"{tenant} reached it: {event['frames']}"))
        if event["what"] == "decided" and event["by"] != tenant:
            found.append(Violation("tenant.crossed", txn, f"an approver of {event['by']} decided on it"))
    return found


def _concerns(event: dict[str, Any], record: dict[str, Any]) -> bool:
    if event["kind"] == "server":
        return True
    if event["kind"] == "broker":
        return bool(event["replica"]) and record["by"] == event["replica"]
    name, mine = event["name"].rstrip("2"), "" if record["tenant"] == "default" else f"{record['tenant']}-"
    return name in (mine + record["caller"], mine + record["resource"].split("/")[1])


def _counts(town: Town, checker: Checker, events: list[dict[str, Any]], flight: Counter[str]) -> dict[str, int]:
    seen = checker.counts
    heard = Counter(
        f"{event['frame']['error']['code']} {event['frame']['error']['rule'][:24]}"
        for event in events
        if event["what"] == "heard" and "error" in event["frame"]
    )
    shown = {
        "txns": seen["txn.opened"],
        "hops": seen["hop.opened"],
        "hops closed as unknown": seen["orphans"],
        "parked": seen["hop.parked"],
        "resumed": seen["hop.resumed"],
        "grants renewed": seen["grant.renewed"],
        "approvals asked for": seen["approval.requested"],
        "decisions on them": seen["approval.decided"],
        "calls refused": seen["hop.refused"],
        "refused, and stored all the same": seen["refused.unknown"],
        "dispatches received": seen["dispatched"],
        "dispatches past their deadline": seen["dispatched.late"],
        "results released": seen["heard.result"],
        "lost races": sum(broker.total("remit_ledger_races_total") for broker in town.brokers),
        "ambiguous acks": sum(broker.total("remit_ledger_ambiguous_total") for broker in town.brokers),
    }
    shown |= {f"fault in {where}": count for where, count in sorted(_faults(town.folder).items())}
    shown |= {f"in flight at a {name.replace('.', ' of a ')}": count for name, count in sorted(flight.items())}
    shown |= {
        name.replace(".", " of a "): count
        for name, count in sorted(town.counts.items())
        if not name.startswith("fault.")
    }
    shown |= {
        name.replace("fault.", "fault: "): count
        for name, count in sorted(town.counts.items())
        if name.startswith("fault.")
    }
    return shown | {f"answered {code}": count for code, count in sorted(heard.items())}


def save(report: Report, path: Path) -> None:
    """Keep it beside the journals."""
    said = {"counts": report.counts, "proof": report.proof, "violations": [one._asdict() for one in report.violations]}
    path.write_text(json.dumps(said, indent=1), encoding="utf-8")
