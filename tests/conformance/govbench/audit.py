"""What Remit's records say of the calls of tools in one task. Only records are read: nothing the adapter knows by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tests.conformance.govbench.mapping import SERVER

PREFIX = f"mcp/{SERVER}/"


def entries(records: Sequence[dict[str, Any]], refusals: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One for each call of a tool that was opened or refused, with the fields of the benchmark's ``AuditEntry``."""
    opened = next(record for record in records if record["kind"] == "txn.opened")
    hops = {record["hop"]: record for record in records if record["kind"] == "hop.opened"}
    for record in sorted((*hops.values(), *refusals), key=lambda one: str(one["at"])):
        if not str(record.get("resource", "")).startswith(PREFIX):
            continue
        decision = record.get("decision") or {}
        facts = record.get("facts") or {}
        yield {
            "timestamp": record["at"],
            "tenant": record["tenant"],
            "actor_uid": opened["user"],
            "actor_email": None,  # records name a user once, by what the issuer's mapping calls the user
            "tool": record["resource"].removeprefix(PREFIX),
            "decision": _decision(record, decision),
            "reason": _reason(record, decision),
            "trace_id": record["txn"],
            "delegation_chain": chain(record.get("parent", ""), hops),
            "extra": {"hop": record["hop"], "caller": record.get("caller"), "tier": facts.get("tier"), "facts": facts},
        }


def chain(hop: str, hops: dict[str, dict[str, Any]]) -> list[str]:
    """The agents to which work was handed on the way to ``hop``. The user's own client holds the root and is none of them."""
    names: list[str] = []
    while hop in hops:
        names.insert(0, hops[hop]["resource"].split("/")[1])
        hop = hops[hop]["parent"]
    return names


def _decision(record: dict[str, Any], decision: dict[str, Any]) -> str:
    if record["kind"] != "hop.opened":
        return "deny"
    if record.get("redacted"):
        return "redact"
    flagged = decision.get("effect") == "would_deny" or any(r.startswith("flag-") for r in decision.get("rules", ()))
    return "flag" if flagged else "allow"


def _reason(record: dict[str, Any], decision: dict[str, Any]) -> str:
    if record["kind"] == "hop.opened":
        return ",".join(decision.get("rules", ()))
    return f"{record.get('code', '')} {record.get('rule', '')}".strip()
