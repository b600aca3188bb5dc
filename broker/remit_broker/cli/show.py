"""A chain as people read it: the tree of its hops, with who, what, how it was decided and what it cost."""

from __future__ import annotations

from typing import Any

from rich.text import Text
from rich.tree import Tree

_MARK = {"ok": ("✓", "green"), "failed": ("✗", "yellow"), "open": ("…", "cyan"), "refused": ("✗", "red")}


def dollars(micros: int) -> str:
    """Millionths of a dollar as people write money."""
    return f"${micros / 1_000_000:.6f}".rstrip("0").rstrip(".") if micros else "$0"


def cost(budget: dict[str, int]) -> str:
    """A budget in a few characters."""
    parts = [dollars(budget["usd_micros"])]
    if budget["tokens"]:
        parts.append(f"{budget['tokens']} tokens")
    parts.append(f"{budget['calls']} call{'s' if budget['calls'] != 1 else ''}")
    return " ".join(parts)


def tree(records: list[dict[str, Any]], refusals: list[dict[str, Any]]) -> Tree:
    """The chain of one txn from its records (in order) and the refusals under it."""
    root = records[0]
    closed = {record["hop"]: record for record in records if record["kind"] == "hop.closed"}
    end = records[-1] if records[-1]["kind"] == "txn.closed" else None
    state = f"closed ({end['reason']}), spent {cost(end['spent'])}" if end else "open"
    top = Tree(
        Text.assemble(
            (root["user"], "bold"), f" → {root['agent']}  ",
            (f"txn {root['txn']}  {root['at']}  {state}, of {cost(root['budget'])}", "dim"),
        )
    )  # fmt: skip
    branches = {root["hop"]: top}
    waiting = sorted(refusals, key=lambda record: str(record["at"]))
    for record in records[1:]:
        if record["kind"] == "hop.opened":
            branch = branches.get(record["parent"], top)
            branches[record["hop"]] = branch.add(hop_line(record, closed.get(record["hop"])))
        elif record["kind"] == "grant.revoked":
            branches.get(record["hop"], top).add(Text(f"⊘ revoked by {record['who']}: {record['why']}", "red"))
    for record in waiting:
        branches.get(record["parent"] or "", top).add(refusal_line(record))
    return top


def hop_line(opened: dict[str, Any], closed: dict[str, Any] | None) -> Text:
    """One hop on one line."""
    outcome = closed["outcome"] if closed else "open"
    mark, colour = _MARK.get(outcome, ("✗", "red"))
    line = Text.assemble((f"{mark} ", colour), (opened["resource"], "bold"), (f"  {opened['hop']}  ", "dim"))
    if closed is None:
        line.append(f"running, holds {cost(opened['budget'])}", "cyan")
        return line
    line.append(f"{closed['ms']} ms  {cost(closed['spent'])}", "dim")
    if outcome != "ok":
        line.append(f"  {closed['code'] or outcome}: {closed['reason'] or 'the tool reports a failure'}", colour)
    if opened["redacted"] or closed["redacted"]:
        line.append(f"  redacted {len(opened['redacted']) + len(closed['redacted'])}", "yellow")
    return line


def refusal_line(record: dict[str, Any]) -> Text:
    """One refusal on one line, with what to ask for below it."""
    times = f" x{record['count']}" if record["count"] > 1 else ""
    line = Text.assemble(
        ("⊘ ", "red"), (record["resource"], "bold"), (f"  {record['hop']}  ", "dim"),
        (f"{record['code']}{times}", "red"), f" {record['message']} ", (f"[{record['rule']}]", "dim"),
    )  # fmt: skip
    if record["ask"]:
        line.append(f"\n  → {record['ask']}", "dim")
    return line
