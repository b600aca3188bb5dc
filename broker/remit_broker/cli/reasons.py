"""Why policy decided as it did: the text of the rules, where they stand, and the smallest change that would have permitted it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from remit_broker.adapters.errors import ConfigError
from remit_broker.cli.printing import line, out


def reasons(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """``rules`` (``id``, ``where``, ``text``) as they stand now, ``same_revision``, ``changes`` each enough by itself, ``lift``; the
    same of the ``answer``, where one was decided on.
    """
    asked = record.get("asked")
    if not asked:
        return {"rules": [], "same_revision": None, "changes": [], "lift": [], "answer": None}
    from remit_broker.adapters.cedar import Policies

    try:
        policies = Policies.read(folder)
    except ConfigError as bad:
        return {"rules": [], "same_revision": None, "changes": [], "lift": [], "answer": None, "trouble": str(bad)}
    decided = [one for one in record["records"] if one.get("decision")]
    ends = [one for one in decided if one["kind"] in ("hop.closed", "hop.parked")]
    answer = record.get("answered")
    return {
        **_told(asked, decided[0]["decision"], policies),
        "answer": _told(answer, ends[-1]["decision"], policies) if answer and ends else None,
    }


def _told(raw: dict[str, Any], decided: dict[str, Any], policies: Any) -> dict[str, Any]:
    import msgspec

    from remit_broker.core.nearest import lifted, mentioned, ways
    from remit_broker.core.replay import Past

    past = msgspec.convert(raw, Past, strict=False)
    sources = {source.rule.id: source for source in policies.sources}
    rules = [
        {
            "id": name,
            "where": sources[name].where if name in sources else "",
            "text": sources[name].text if name in sources else "",
        }
        for name in past.rules
    ]
    changes: list[str] = []
    lift: tuple[str, ...] = ()
    if past.then in ("deny", "approve", "would_deny"):
        known = mentioned(source.body for source in policies.sources)
        changes = ways(past.question, policies.decide, known)
        lift = lifted(past.question, policies.decide) if past.then == "deny" else ()
    same = decided["revision"] == policies.revision
    return {"then": past.then, "rules": rules, "same_revision": same, "changes": changes, "lift": list(lift)}


def show_reasons(told: dict[str, Any]) -> None:
    """For people."""
    if trouble := told.get("trouble"):
        out.print(line((f"  the policies here cannot be read: {trouble}", "yellow")))
    _show(told, "remit allow ID --for 1h")
    answer = told["answer"]
    if answer and answer["then"] != "allow":
        out.print(line(("  the answer, which had come by then:", "bold")))
        # There is no exception for what is not done again: the next answer may be another one.
        _show(answer, "remit observe --policy ID lets such answers through, and records them")


def _show(told: dict[str, Any], how: str) -> None:
    for rule in told["rules"]:
        out.print(line(("  " + (rule["where"] or f"{rule['id']}: not in the policies here"), "bold")))
        for text in rule["text"].splitlines():
            out.print(line(f"    {text}"))
    if told["same_revision"] is False:
        out.print(line(("  the policies have changed since: what follows is about those of now", "yellow")))
    for number, change in enumerate(told["changes"]):
        out.print(line("  it would be permitted " if number == 0 else "  or ", change))
    if told["lift"]:
        out.print(line(f"  or without {', '.join(told['lift'])}: {how}"))
