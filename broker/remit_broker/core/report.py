"""An evidence file as one HTML page that is read without any software: what happened, on whose authority, and what is proved of it.

Pure. Whatever comes from the file is escaped; the page has no script, loads nothing, and forbids both to the browser.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from remit_broker.core.evidence import Verdict
from remit_broker.core.withholding import HIDDEN, shown

Local = Callable[[str], str]
"""A time of a record (RFC 3339 UTC) as the reader's clock shows it."""
Fields = Mapping[str, Any]

_STYLE: Final = """
:root{color-scheme:light dark;--fg:#1b1f24;--bg:#fff;--dim:#57606a;--line:#d0d7de;--thin:#eaeef2;--box:#f6f8fa}
:root{--ok:#116329;--no:#a40e26;--wait:#7d4e00;--okbox:#dafbe1;--nobox:#ffebe9}
@media(prefers-color-scheme:dark){:root{--fg:#e6edf3;--bg:#0d1117;--dim:#9198a1;--line:#3d444d;--thin:#262c36;--box:#161b22}
:root{--ok:#57d364;--no:#ff8182;--wait:#e3b341;--okbox:#0f2d18;--nobox:#3c1418}}
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:var(--fg);background:var(--bg)}
body,td,th{overflow-wrap:anywhere}h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem;border-bottom:1px solid var(--line)}
code,pre{font:13px/1.45 ui-monospace,monospace}.wide{overflow-x:auto}table{border-collapse:collapse;width:100%}
td,th{text-align:left;vertical-align:top;padding:.3rem .6rem;border-bottom:1px solid var(--thin);min-width:2.5rem}
ul.tree,ul.tree ul{list-style:none;border-left:2px solid var(--line);padding-left:1rem;margin:.3rem 0}
.ok{color:var(--ok)}.no{color:var(--no)}.wait{color:var(--wait)}.dim{color:var(--dim)}
pre{background:var(--box);padding:.6rem;overflow-x:auto;white-space:pre-wrap}
.verdict{padding:.8rem 1rem;border-radius:.4rem;font-weight:600}.verdict.ok{background:var(--okbox)}.verdict.no{background:var(--nobox)}
@media(max-width:40rem){ul.tree,ul.tree ul{padding-left:.5rem}.wide table{min-width:34rem}}
@media print{body{margin:0;max-width:none}details:not([open])>*{display:block}}
"""
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_UNITS: Final = (("usd_micros", "USD"), ("tokens", "tokens"), ("calls", "calls"))
COVERS: Final = (
    "Every record is as it was sealed, and in its place.",
    "Every grant was signed with a published key, names the record that authorised it, and is no wider than the one above it.",
    "The last record is in the log that the checkpoint was signed of, and with it all before it.",
    "Each refusal shown is in the log of refusals.",
)
DOES_NOT: Final = (
    "That the operator, who holds the keys, did not make up this whole chain before the checkpoint left, or leave another out. "
    "Checkpoints that a witness signed, or that you keep yourself, bound when that could have been.",
    "That the refusals shown are all: floods are counted together, and their stream discards its oldest.",
    "What arguments and results were that are not shown: records commit to them, and do not hold them.",
    "That a cost is what was really used: it is what the callee reported, or a configured price; unmetered says that neither was.",
    "What a model or a callee did outside the calls that are recorded here.",
)


def page(evidence: Fields, verdict: Verdict, local: Local) -> str:
    """The whole document. ``evidence`` is one whose records hold together."""
    records: list[Fields] = [*shown(evidence).records]
    first, last = records[0], records[-1]
    hops = {record["hop"]: record for record in records if record["kind"] == "hop.opened"}
    ends = {record["hop"]: record for record in records if record["kind"] == "hop.closed"}
    parts = [
        _h("h1", f"What was done for {first['user']}"),
        _verdict(verdict),
        _summary(first, last, evidence, local),
        "<h2>Who called whom</h2>",
        _tree(first, hops, ends, evidence["refusals"], _approvers(records), local),
        "<h2>What each hand-over was narrowed to</h2>",
        _narrowing(first, hops),
        "<h2>Rules</h2>",
        _rules(records, evidence["refusals"], evidence.get("policies") or {}),
        "<h2>Approvals</h2>",
        _approvals(records, local),
        "<h2>Cost</h2>",
        _cost(first, hops, ends, last),
        "<h2>What is withheld of people</h2>",
        _withheld(evidence, records),
        "<h2>What was sent and answered</h2>",
        _payloads(evidence.get("payloads"), records, verdict),
        "<h2>Everything, in order</h2>",
        _timeline(records, evidence["refusals"], local),
        "<h2>What was checked</h2>",
        _checks(verdict),
        "<h2>What this proves</h2>",
        _list(COVERS if last["kind"] == "txn.closed" else COVERS[:3], "li"),
        _h(
            "p",
            "The task is closed: nothing can follow its last record, so nothing of the chain is missing."
            if last["kind"] == "txn.closed"
            else "The task was still open: more may have followed, and there is no proof that this is all.",
        ),
        "<h2>What this cannot prove</h2>",
        _list(DOES_NOT, "li"),
        "<h2>Check it yourself</h2>",
        _h(
            "p",
            "This page is a reading aid, not the proof. The proof is the evidence file, with the keys that you got from the issuer:",
        ),
        _h("pre", "remit evidence verify EVIDENCE --keys jwks.json\npython3 remit_verify.py EVIDENCE --keys jwks.json"),
    ]
    title = _e(f"Evidence of {evidence['txn']}")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_e(_POLICY)}">'
        f'<meta name="referrer" content="no-referrer"><title>{title}</title><style>{_STYLE}</style></head><body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _e(value: Any) -> str:
    """Text of others, as text. What would be invisible or turn the direction of writing is shown as what it is."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    shown = "".join(c if c == "\n" or c.isprintable() else f"\\u{ord(c):04x}" for c in text)
    # INVARIANT: nothing of a file becomes markup (test_nothing_of_a_file_becomes_markup).
    return html.escape(shown, quote=True)


def _h(tag: str, text: Any, kind: str = "") -> str:
    mark = f' class="{kind}"' if kind else ""
    return f"<{tag}{mark}>{_e(text)}</{tag}>"


def _list(items: Sequence[str], tag: str) -> str:
    return "<ul>" + "".join(_h(tag, item) for item in items) + "</ul>"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return _h("p", "None.", "dim")
    top = "".join(_h("th", each) for each in head)
    body = "".join("<tr>" + "".join(_h("td", cell) for cell in row) + "</tr>" for row in rows)
    shown = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    return f'<div class="{"wide" if shown else "pairs"}"><table>{shown}<tbody>{body}</tbody></table></div>'


def _verdict(verdict: Verdict) -> str:
    if verdict.verified:
        return _h("p", "✓ Verified: every check of the evidence holds.", "verdict ok")
    bad = [check.check for check in verdict.checks if not check.ok]
    return _h("p", f"✗ Not verified. Do not rely on this page: {', '.join(bad)}.", "verdict no")


def _summary(first: Fields, last: Fields, evidence: Fields, local: Local) -> str:
    closed = last["kind"] == "txn.closed"
    by = f"{first['auth']}" + (f", {first['issuer']}" if first.get("issuer") else "")
    rows = [
        ("Task", evidence["txn"]),
        ("On behalf of", first["user"] + (f" (known by {by})" if first["auth"] != HIDDEN else "")),
        ("Roles and groups then", ", ".join([*first.get("roles", ()), *first.get("groups", ())]) or "none"),
        ("First agent", first["agent"]),
        ("Opened", f"{local(first['at'])} ({first['at']})"),
        ("Ended", f"{local(last['at'])}: {last['reason']} by {last['who']}" if closed else "not yet"),
        ("Continues", first.get("continues") or "no earlier task"),
        ("Tenant", first["tenant"]),
    ]
    return _table(("", ""), rows)


def _approvers(records: Sequence[Fields]) -> dict[str, str]:
    """By request, who approved it."""
    found: dict[str, str] = {}
    for record in records:
        if record["kind"] == "approval.decided" and record["verdict"] == "approve":
            found[record["id"]] = ", ".join([*filter(None, [found.get(record["id"])]), record["who"]])
    return found


def _tree(
    first: Fields,
    hops: Mapping[str, Fields],
    ends: Mapping[str, Fields],
    refusals: Sequence[Fields],
    approvers: Mapping[str, str],
    local: Local,
) -> str:
    below: dict[str, list[str]] = {}
    for hop in hops.values():
        below.setdefault(hop["parent"], []).append(hop["hop"])
    refused: dict[str, list[Fields]] = {}
    for no in refusals:
        refused.setdefault(str(no.get("parent") or first["hop"]), []).append(no)

    def branch(name: str, depth: int) -> str:
        inner = "".join(branch(child, depth + 1) for child in below.get(name, ())) if depth < 64 else ""
        inner += "".join(map(_refused, refused.get(name, ())))
        inner = f'<ul class="tree">{inner}</ul>' if inner else ""
        if name == first["hop"]:
            return f"<li><strong>{_e(first['user'])}</strong> → {_e(first['agent'])}{inner}</li>"
        hop, end = hops[name], ends.get(name)
        how = ("wait", "open") if end is None else ("ok" if end["outcome"] == "ok" else "no", end["outcome"])
        took = "" if end is None else f", {end['ms']} ms"
        about = f"{local(hop['at'])}{took}, by {', '.join(hop['decision']['rules']) or 'no rule'}"
        if hop.get("approval"):
            about += f", approved by {approvers.get(hop['approval'], 'nobody')}"
        if end is not None:
            about += f", charged {_money(end['spent'])}"
        call = f"{_h('span', how[1], how[0])} {_e(hop['caller'])} → {_h('code', hop['resource'])}"
        return f"<li>{call} {_h('span', about, 'dim')}{inner}</li>"

    return f'<ul class="tree">{branch(first["hop"], 0)}</ul>'


def _refused(no: Fields) -> str:
    many = f"{no['count']} times" if no.get("count", 1) > 1 else ""
    call = f"{_h('span', '✗ refused', 'no')} {_e(no['caller'])} → {_h('code', no['resource'])}"
    return f"<li>{call} {_e(no['code'])}: {_e(no['message'])} {_h('span', many, 'dim')}</li>"


def _scope(details: Sequence[Fields]) -> str:
    return "; ".join(
        one["resource"] + (f" {json.dumps(one['args'], ensure_ascii=False)}" if one.get("args") else "")
        for one in details
    )


def _money(budget: Fields) -> str:
    return ", ".join(
        f"{budget[u] / 1_000_000:.6g} USD"
        if u == "usd_micros"
        else f"{budget[u]} {name[:-1] if budget[u] == 1 else name}"
        for u, name in _UNITS
    )


def _narrowing(first: Fields, hops: Mapping[str, Fields]) -> str:
    rows = [(first["agent"], "the task", _scope(first["scope"]), _money(first["budget"]), first["max_depth"], "")]
    rows += [
        (hop["resource"].split("/")[1], hop["resource"], _scope(hop["scope"]) or "nothing further", _money(hop["budget"]),
         hop["max_depth"], ", ".join([*hop.get("labels", ()), *(f"redacted {where}" for where in hop.get("redacted", ()))]))
        for hop in hops.values()
    ]  # fmt: skip
    return _table(("Holder", "For", "May use", "At most", "Depth at most", "Labels, what was removed"), rows)


def _rules(records: Sequence[Fields], refusals: Sequence[Fields], policies: Mapping[str, Any]) -> str:
    used: dict[tuple[str, str], set[str]] = {}
    for record in [*records, *refusals]:
        if decision := record.get("decision"):
            for rule in decision["rules"]:
                used.setdefault((decision["revision"], rule), set()).add(decision["effect"])
    parts = [
        _table(
            ("Rule", "Decided", "Policy set"), [(r, ", ".join(sorted(how)), rev[:12]) for (rev, r), how in used.items()]
        )
    ]
    for revision in dict.fromkeys(revision for revision, _ in used):
        texts = policies.get(revision)
        if not isinstance(texts, Mapping):
            parts.append(_h("p", f"The texts of policy set {revision} are not in this file.", "dim"))
            continue
        parts.append(_h("p", f"Policy set {revision}, as it was:"))
        parts += [
            f"<details><summary>{_e(name)}</summary>{_h('pre', text)}</details>" for name, text in sorted(texts.items())
        ]
    return "".join(parts)


def _approvals(records: Sequence[Fields], local: Local) -> str:
    rows, asked = [], {record["id"]: record["resource"] for record in records if record["kind"] == "approval.requested"}
    for record in records:
        if record["kind"] == "approval.requested":
            needs = "; ".join(f"{need['count']} by {need['rule']}" for need in record["needs"])
            rows.append(
                (
                    local(record["at"]),
                    f"{record['resource']}: asked for ({record['id']})",
                    record["caller"],
                    needs,
                    record["reason"],
                )
            )
        elif record["kind"] == "approval.decided":
            who = f"{record['who']} ({record['auth']})"
            said = "approved" if record["verdict"] == "approve" else "denied"
            what = f"{asked.get(record['id'], '')}: {said} ({record['id']})"
            rows.append((local(record["at"]), what, who, "", record["reason"]))
        elif record.get("approval"):
            what = f"{asked.get(record['approval'], '')}: used ({record['approval']})"
            rows.append((local(record["at"]), what, record.get("caller", ""), "", ""))
    return _table(("When", "What", "Who", "Demanded", "Reason"), rows)


def _cost(first: Fields, hops: Mapping[str, Fields], ends: Mapping[str, Fields], last: Fields) -> str:
    rows = [
        (hop["resource"], _money(hop["budget"]), _money(ends[name]["cost"]) if name in ends else "open",
         "not metered" if name in ends and ends[name].get("unmetered") else "")
        for name, hop in hops.items()
    ]  # fmt: skip
    total = _money(last["spent"]) if last["kind"] == "txn.closed" else "not settled yet"
    return _table(("Call", "Held", "Used itself", ""), rows) + _h(
        "p", f"In all: {total}, of at most {_money(first['budget'])}."
    )


def _withheld(evidence: Fields, records: Sequence[Fields]) -> str:
    if "personal" not in evidence:
        return _h("p", "Nothing: this file shows the personal fields of its records.", "dim")
    closed = [place.partition(".") for place in shown(evidence).withheld]
    rows = [(number, records[int(number)]["kind"], field) for number, _, field in closed]
    return _table(("Record", "Kind", "Field"), rows) + _h(
        "p",
        "In their place the records have salted commitments: nobody can guess the values from them, and each can be opened by "
        "itself with its salt, which the operator has. Refused calls are left out of such a file, and so are the grants where the "
        "user is withheld.",
    )


def _payloads(told: Any, records: Sequence[Fields], verdict: Verdict) -> str:
    """INVARIANT: nothing is shown as what was sent that the records do not commit to (test_a_report_shows_no_forged_content)."""
    good = next((check.ok for check in verdict.checks if check.check == "payloads"), False)
    if not good:
        return _h("p", "What the file has of it is not what the records commit to, and is not shown.", "no")
    if not told:
        return _h("p", "Withheld: the records commit to it, and this file does not have it.", "dim")
    return "".join(
        f"<details><summary>{_e(_of(one, records))}</summary>{_h('pre', one['text'])}</details>"
        for one in sorted(told, key=lambda one: one["record"])
    )


def _of(told: Fields, records: Sequence[Fields]) -> str:
    record = records[told["record"]]
    opened = next((one for one in records if one["kind"] == "hop.opened" and one["hop"] == record["hop"]), record)
    return (
        f"Record {told['record']}, {told['field'].removesuffix('_digest')} of {opened.get('resource', record['hop'])}"
    )


def _timeline(records: Sequence[Fields], refusals: Sequence[Fields], local: Local) -> str:
    about = {record["hop"]: record["resource"] for record in records if record["kind"] == "hop.opened"}
    about |= {record["id"]: record["resource"] for record in records if record["kind"] == "approval.requested"}
    rows = [(record["at"], record["seq"], record["kind"], _what(record, about)) for record in records]
    rows += [
        (no["at"], "", "hop.refused", f"{no['caller']} → {no['resource']}: {no['code']} ({no['rule']}) {no['message']}")
        for no in refusals
    ]
    rows.sort(key=lambda row: row[0])
    return _table(("When", "Record", "Kind", "What"), [(f"{local(at)} ({at})", *rest) for at, *rest in rows])


def _what(record: Fields, about: Mapping[str, str]) -> str:
    """``about`` says of each hop and each request which resource it is of."""
    kind = record["kind"]
    if kind == "txn.opened":
        return f"{record['user']} delegates to {record['agent']}"
    if kind == "hop.opened":
        rules = ", ".join(record["decision"]["rules"])
        return f"{record['caller']} → {record['resource']}, arguments of {record['args_size']} bytes, by {rules}"
    if kind == "hop.closed":
        return f"{about.get(record['hop'], '')}: {record['outcome']}, effect {record['effect']}" + (
            f": {record['code']} {record.get('reason', '')}" if record.get("code") else ""
        )
    if kind == "approval.requested":
        return f"{record['caller']} asks for {record['resource']}: {record['reason']}"
    if kind == "approval.decided":
        said = "approves" if record["verdict"] == "approve" else "denies"
        return f"{record['who']} {said} {about.get(record['id'], record['id'])}" + (
            f": {record['reason']}" if record["reason"] else ""
        )
    if kind in ("grant.revoked", "txn.closed"):
        return f"by {record['who']}: {record.get('why') or record.get('reason', '')}"
    return about.get(record["hop"], f"hop {record['hop']}") + (f": {record['reason']}" if record.get("reason") else "")


def _checks(verdict: Verdict) -> str:
    return _table(
        ("", "Check", "What was found"), [("✓" if one.ok else "✗", one.check, one.where) for one in verdict.checks]
    )
