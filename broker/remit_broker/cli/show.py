"""A chain as people read it: the tree of its hops, with who, what, how it was decided and what it cost."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.text import Text

from remit_broker.cli.printing import line

if TYPE_CHECKING:
    from rich.tree import Tree

    from remit_broker.core.evidence import Verdict

_MARK = {
    "ok": ("✓", "green"), "failed": ("✗", "yellow"), "open": ("…", "cyan"), "parked": ("⏸", "cyan"), "refused": ("✗", "red"),
}  # fmt: skip


def dollars(micros: int) -> str:
    """Millionths of a dollar as people write money."""
    return f"${micros / 1_000_000:.6f}".rstrip("0").rstrip(".") if micros else "$0"


def cost(budget: dict[str, int]) -> str:
    """A budget in a few characters."""
    parts = [dollars(budget["usd_micros"])]
    if budget["tokens"]:
        parts.append(f"{budget['tokens']} tokens")
    parts.append(count(budget["calls"], "call"))
    return " ".join(parts)


def count(number: int, what: str) -> str:
    """``1 call``, ``2 calls``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def tree(records: list[dict[str, Any]], refusals: list[dict[str, Any]]) -> Tree:
    """The chain of one txn from its records (in order) and the refusals under it."""
    from rich.tree import Tree

    root = records[0]
    later = {record["hop"]: _later(records, record) for record in records if record["kind"] == "hop.opened"}
    top = Tree(root_line(root, records[-1]))
    branches = {root["hop"]: top}
    waiting = sorted(refusals, key=lambda record: str(record["at"]))
    for record in records[1:]:
        if record["kind"] == "hop.opened":
            branch = branches.get(record["parent"], top)
            branches[record["hop"]] = branch.add(hop_line(record, later[record["hop"]]))
        elif record["kind"] in _APPROVALS:
            branches.get(record["hop"], top).add(_APPROVALS[record["kind"]](record))
        elif record["kind"] == "grant.revoked":
            why = f": {record['why']}" if record["why"] else ""
            branches.get(record["hop"], top).add(line((f"⊘ revoked by {record['who']}{why}", "red")))
    for record in waiting:
        branches.get(record["parent"] or "", top).add(refusal_line(record))
    return top


def _asked(record: dict[str, Any]) -> Text:
    rules = ", ".join(need["rule"] for need in record["needs"])
    return line(
        ("? ", "yellow"), f"approval {record['id']} of ", (record["resource"], "bold"), f" asked for by {record['caller']}",
        (f" ({rules})", "dim"),
    )  # fmt: skip


def _said(record: dict[str, Any]) -> Text:
    yes = record["verdict"] == "approve"
    why = f": {record['reason']}" if record["reason"] else ""
    mark, said = (("✓ ", "green"), "approved") if yes else (("⊘ ", "red"), "denied")
    return line(mark, f"{record['who']} {said} {record['id']}{why}")


_APPROVALS = {"approval.requested": _asked, "approval.decided": _said}


def _later(records: list[dict[str, Any]], opened: dict[str, Any]) -> list[dict[str, Any]]:
    """What became of a hop: its records after the opening."""
    return [record for record in records if record["hop"] == opened["hop"] and record["seq"] > opened["seq"]]


def root_line(root: dict[str, Any], last: dict[str, Any]) -> Text:
    """Who handed what to whom, and what became of it."""
    budget = cost(root["budget"])
    state = f"open, may spend {budget}"
    if last["kind"] == "txn.closed":
        how = "closed" if last["reason"] == "closed" else f"closed: {last['reason']}"
        state = f"{how}, spent {cost(last['spent'])} of {budget}"
    who = line((root["user"], "bold"), f" → {root['agent']}  ", (f"txn {root['txn']}", "dim"))
    return Text("\n").join([who, line((f"{root['at']}  {state}", "dim"))])


def hop_line(opened: dict[str, Any], later: list[dict[str, Any]]) -> Text:
    """One hop on one line, with what went wrong below it. ``later`` are its records after the opening."""
    states = [record for record in later if record["kind"] in ("hop.parked", "hop.resumed", "hop.closed")]
    last = states[-1] if states else opened
    closed = last if last["kind"] == "hop.closed" else None
    outcome = closed["outcome"] if closed else "parked" if last["kind"] == "hop.parked" else "open"
    mark, colour = _MARK.get(outcome, ("✗", "red"))
    head = line((f"{mark} ", colour), (opened["resource"], "bold"), (f"  {opened['hop']}  ", "dim"))
    if last["kind"] == "hop.parked":
        return head + line((f"waits for an input since {last['at']}, spent {cost(last['spent'])} so far", "cyan"))
    if closed is None:
        again = f", resumed at {last['at']}" if last["kind"] == "hop.resumed" else ""
        return head + line((f"running, holds {cost(last['budget'])}{again}", "cyan"))
    head += line((f"{closed['ms']} ms  {cost(closed['spent'])}", "dim"))
    if parks := sum(record["kind"] == "hop.parked" for record in later):
        head += line((f"  asked for an input {'once' if parks == 1 else f'{parks} times'}", "dim"))
    if closed.get("unmetered"):
        head += line(("  unmetered", "yellow"))
    if opened["decision"]["effect"] == "would_deny":
        head += line((f"  WOULD DENY {', '.join(opened['decision']['rules'])}", "yellow"))
    head += _labels(opened, later)
    if redacted := sum(len(record.get("redacted", ())) for record in (opened, *later)):
        head += line((f"  redacted {redacted}", "yellow"))
    if outcome == "ok":
        return head
    why = line((f"{closed['code'] or outcome}: {closed['reason'] or 'the tool reports a failure'}", colour))
    return Text("\n").join([head, why])


def _labels(opened: dict[str, Any], later: list[dict[str, Any]]) -> Text:
    """What went in and came out, and what an approval or an endorser took away."""
    sent = {label for record in (opened, *later) if record["kind"] != "hop.closed" for label in _sent(record)}
    back = {label for record in later if record["kind"] in ("hop.parked", "hop.closed") for label in record["labels"]}
    lost = {label for record in (opened, *later) for label in record.get("lowered", ())}
    shown = (("→", sent), ("←", back), ("lowered", lost))
    told = "".join(f"  {mark} {' '.join(sorted(names))}" for mark, names in shown if names)
    return line((told, "magenta"))


def _sent(record: dict[str, Any]) -> list[str]:
    return list(record["labels"]) if record["kind"] in ("hop.opened", "hop.resumed") else []


def refusal_line(record: dict[str, Any]) -> Text:
    """One refusal: what and by which rule, why, and what to ask for."""
    times = f" x{record['count']}" if record["count"] > 1 else ""
    head = line(
        ("⊘ ", "red"), (record["resource"], "bold"), (f"  {record['hop']}  ", "dim"),
        (f"{record['code']}{times}", "red"), (f" ({record['rule']})", "dim"),
    )  # fmt: skip
    lines = [head, line(record["message"])]
    if record["ask"]:
        lines.append(line((f"→ {record['ask']}", "dim")))
    return Text("\n").join(lines)


def explained(record: dict[str, Any]) -> list[Text]:
    """A record in a few lines: what was asked, what decided, what to ask for."""
    if record["kind"] == "hop.refused":
        found = [
            line(("refused ", "red"), f"{record['caller']} → ", (record["resource"], "bold"),
                 f" at {record['at']}, in stage {record['stage']}"),
            line(f"  {record['code']}: {record['message']}"),
            line(f"  rule: {record['rule']}"),
        ]  # fmt: skip
        return [*found, *([line(f"  → {record['ask']}")] if record["ask"] else []), *_decided(record)]
    if record["kind"] == "hop.opened":
        head = line(("opened ", "green"), f"{record['caller']} → ", (record["resource"], "bold"),
                    f" at {record['at']}, depth {record['depth']}",
                    f", with approval {record['approval']}" if record["approval"] else "")  # fmt: skip
        return [head, line(f"  held {cost(record['budget'])}"), *_decided(record), *_labelled(record)]
    if record["kind"] in _TOLD:
        return _TOLD[record["kind"]](record)
    if record["kind"] == "hop.closed":
        found = [line(f"closed {record['outcome']} after {record['ms']} ms, spent {cost(record['spent'])}")]
        why = line(f"  {record['code']}: {record['reason']} ({record['rule']})")
        return found + ([why] if record["code"] else []) + _labelled(record)
    if record["kind"] == "txn.opened":
        scopes = ", ".join(detail["resource"] for detail in record["scope"])
        head = line(f"{record['user']} handed a task to ", (record["agent"], "bold"), f" at {record['at']}")
        return [head, *_proved(record), line(f"  may spend {cost(record['budget'])}, on {scopes}")]
    return [line(f"{record['kind']} at {record['at']} by {record.get('who', record['by'])}")]


def _proved(record: dict[str, Any]) -> list[Text]:
    """How the user was known, and what they are: records before there were issuers say nothing of that."""
    by = f"  known by {record['auth']}"
    if issuer := record.get("issuer"):
        by = (
            f"  proved by {issuer}"
            + (f" to {record['client']}" if record["client"] else "")
            + f", token {record['token']}"
        )
    told = [f"{what} {', '.join(record[what])}" for what in ("roles", "groups") if record.get(what)]
    return [line(by, *(("; " + "; ".join(told),) if told else ()))]


def _renewed(record: dict[str, Any]) -> list[Text]:
    until = datetime.fromtimestamp(record["exp"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return [line(f"its grant was renewed at {record['at']}, until {until}")]


def _parked(record: dict[str, Any]) -> list[Text]:
    head = line(("parked ", "cyan"), f"at {record['at']}: {record['reason']}, spent {cost(record['spent'])} so far")
    return [head, *_decided(record), *_labelled(record)]


def _resumed(record: dict[str, Any]) -> list[Text]:
    head = line(("resumed ", "green"), f"at {record['at']} with an input of {record['input_size']} bytes")
    return [head, line(f"  held {cost(record['budget'])} more"), *_decided(record), *_labelled(record)]


def _labelled(record: dict[str, Any]) -> list[Text]:
    """The labels that a record speaks of, each kind on a line."""
    own = "labels of what is sent" if record["kind"] in ("hop.opened", "hop.resumed") else "labels of what came back"
    by = f" by {record['endorser']}" if record.get("endorser") else ""
    kinds = (
        ("labels", own),
        ("brings", "its target brings"),
        ("lowers", f"may be lowered{by}"),
        ("lowered", "lowered"),
    )
    return [line(f"  {said}: {', '.join(record[name])}") for name, said in kinds if record.get(name)]


def _asked_lines(record: dict[str, Any]) -> list[Text]:
    until = datetime.fromtimestamp(record["exp"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return [_asked(record), line(f"  at {record['at']}, until {until}: {record['reason']}"), *_decided(record)]


def _said_lines(record: dict[str, Any]) -> list[Text]:
    return [_said(record), line(f"  at {record['at']}, known by {record['auth']}, signed")]


_TOLD = {
    "approval.requested": _asked_lines,
    "approval.decided": _said_lines,
    "grant.renewed": _renewed,
    "hop.parked": _parked,
    "hop.resumed": _resumed,
}


def _decided(record: dict[str, Any]) -> list[Text]:
    decision = record["decision"]
    lines = []
    if decision:
        rules = ", ".join(decision["rules"]) or "no policy permits it (default deny)"
        lines.append(line(f"  policy: {decision['effect']} by {rules}, revision {decision['revision'][:12]}"))
    if record["findings"]:
        seen = ", ".join(f"{f['kind']} at {f['where'] or '/'}" for f in record["findings"])
        lines.append(line(f"  found: {seen}"))
    return lines


def on_whose_authority(told: dict[str, Any]) -> list[Text]:
    """For whom a hop was made, through whom, and who approved it."""
    lines = [line(f"  on behalf of {told['user']} (known by {told['auth']}), through {' → '.join(told['chain'])}")]
    for one in told["approvals"]:
        said = "approved" if one["verdict"] == "approve" else "denied"
        lines.append(line(f"  {said} by {one['who']} at {one['at']}" + (f": {one['reason']}" if one["reason"] else "")))
    return lines


def verdict_lines(verdict: Verdict) -> list[Text]:
    """What a verification found, check by check."""
    lines = [
        line(("  ✓ ", "green") if check.ok else ("  ✗ ", "red"), f"{check.check}: {check.where}")
        for check in verdict.checks
    ]
    return [*lines, line(("verified", "bold green") if verdict.verified else ("NOT verified", "bold red"))]
