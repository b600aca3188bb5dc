"""Records of every kind with their canonical bytes and hashes, and sequences with the place of the first fault."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from remit_schemas.budget import ZERO, Budget
from remit_schemas.canonical import canonical
from remit_schemas.records import GENESIS, Decision, Epochs, Finding, hash_of, parse_record, plain
from tools.vectors.common import CHILD, ROOT, TXN

AT: Final = "2027-01-15T08:00:00.000Z"


def chain_of_records() -> list[dict[str, Any]]:
    """One record of each kind, sealed: a txn with one hop from its opening to its end, a revocation, the end."""
    first, second = f"{1:016x}", f"{2:016x}"
    decision, epochs = Decision("allow", ("starter.grant",), "ef" * 32), Epochs("ef" * 32, 3)
    bodies: tuple[dict[str, Any], ...] = (
        {
            "kind": "txn.opened", "hop": first, "user": "ann@example.com", "agent": "planner", "auth": "local",
            "jti": ROOT.jti, "scope": ROOT.authorization_details, "budget": ROOT.budget, "exp": ROOT.exp,
            "max_depth": 4, "labels": ["pii"],
        },
        {
            "kind": "hop.opened", "hop": second, "parent": first, "caller": "planner",
            "resource": "agent/researcher/brief", "depth": 1, "jti": CHILD.jti, "scope": CHILD.authorization_details,
            "budget": CHILD.budget, "exp": CHILD.exp, "deadline": CHILD.exp * 1000, "max_depth": 4,
            "args_digest": "ab" * 32, "args_size": 17, "definition": "cd" * 32, "decision": decision, "epochs": epochs,
            "findings": [Finding("secret.aws_access_key", "/note")], "redacted": ["/note"],
            "link": f"00-{'a' * 32}-{'b' * 16}-01",
        },
        {"kind": "grant.renewed", "hop": second, "jti": f"{TXN}.{second}.2", "exp": CHILD.exp},
        {
            "kind": "hop.parked", "hop": second, "cost": Budget(3, 0, 0), "spent": Budget(3, 0, 1), "overrun": ZERO,
            "request_digest": "12" * 32, "request_size": 40, "connection": "c" * 22, "reason": "input_required",
            "decision": decision, "labels": ["web"],
        },
        {
            "kind": "hop.resumed", "hop": second, "jti": f"{TXN}.{second}.3", "scope": CHILD.authorization_details,
            "budget": CHILD.budget, "exp": CHILD.exp, "deadline": CHILD.exp * 1000, "max_depth": 4,
            "args_digest": "ab" * 32, "input_digest": "34" * 32, "input_size": 5, "decision": decision, "epochs": epochs,
            "labels": ["pii"],
        },
        {
            "kind": "hop.closed", "hop": second, "outcome": "failed", "cost": Budget(4, 0, 0), "spent": Budget(7, 0, 2),
            "overrun": ZERO, "effect": "happened", "ms": 12,
            "reason": '\u00fcn\u00efcode, "quotes", \u20ac and \U0001f600',
        },
        {"kind": "grant.revoked", "hop": first, "jti": ROOT.jti, "who": "ann@example.com", "why": "enough"},
        {"kind": "txn.closed", "hop": first, "reason": "revoked", "who": "broker", "spent": Budget(7, 0, 2),
         "overrun": ZERO},
    )  # fmt: skip
    chain: list[dict[str, Any]] = []
    for seq, body in enumerate(bodies):
        prev = chain[-1]["hash"] if chain else GENESIS
        common = {"v": 1, "tenant": "default", "txn": TXN, "seq": seq, "at": AT, "prev": prev, "by": "b1"}
        chain.append(resealed(plain(parse_record(msgspec.to_builtins(common | body)))))
    return chain


def resealed(record: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The record with changes and a hash that fits them."""
    changed = {**record, **changes}
    return {**changed, "hash": hash_of(changed)}


def records() -> dict[str, Any]:
    """Canonical bytes and hashes of records, and sequences of them with the place of the first fault."""
    chain = chain_of_records()
    a, b, c = chain[:3]
    sealed = [
        {"record": r, "canonical": canonical({k: v for k, v in r.items() if k != "hash"}).decode(), "hash": r["hash"]}
        for r in chain
    ]
    broken = (
        ("changed-body", [a, {**b, "depth": 2}, c], 1, "hash"),
        ("changed-and-resealed", [a, resealed(b, depth=2), c], 2, "prev"),
        ("left-out", [a, c], 1, "seq"),
        ("left-out-and-renumbered", [a, resealed(c, seq=1)], 1, "prev"),
        ("swapped", [a, c, b], 1, "seq"),
        ("beginning-cut-off", [b, c], 0, "seq"),
        ("repeated", [a, a, b], 1, "seq"),
        ("no-genesis", [resealed(a, prev="1" * 64)], 0, "prev"),
    )
    chains: list[dict[str, Any]] = [{"name": "whole", "records": chain, "expect": "valid"}]
    chains += [
        {"name": name, "records": found, "expect": "invalid", "seq": at, "fault": fault}
        for name, found, at, fault in broken
    ]
    return {"v": 1, "sealed": sealed, "chains": chains}
