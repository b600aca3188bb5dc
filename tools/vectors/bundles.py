"""Chains of grants, root to leaf: what links them, and the rule that each broken link is refused by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from remit_schemas.budget import Budget
from remit_schemas.grant import Actor, mint, parse
from remit_schemas.scope import Detail
from tools.vectors.common import CHILD, GRANDCHILD, ISSUER, ISSUING, JWKS, NOW, ROOT, STRANGER, TXN, child_of, code_of


def invalid_links() -> Iterator[tuple[str, dict[str, Any]]]:
    """The rule that refuses, and what makes CHILD break it."""
    yield "bundle.sub", {"sub": "bob@example.com"}
    yield "bundle.tenant", {"tenant": "other"}
    yield "bundle.txn", {"txn": TXN[::-1], "jti": f"{TXN[::-1]}.{2:016x}.1"}
    yield "bundle.jti", {"jti": f"{TXN}.{1:016x}.2"}
    yield "bundle.par", {"par": "A" * 43}
    yield "bundle.actor", {"act": Actor("critic")}
    yield "bundle.act", {"act": Actor("planner", Actor("critic")), "depth": 2}
    yield "bundle.scope", {"authorization_details": (Detail("mcp/files/read_file"),)}
    yield "bundle.scope", {"authorization_details": (Detail("agent/**"),)}
    yield "bundle.budget", {"budget": Budget(500_001, 1, 1)}
    yield "bundle.budget", {"budget": Budget(1, 100_001, 1)}
    yield "bundle.budget", {"budget": Budget(1, 1, 21)}
    yield "bundle.exp", {"exp": NOW + 601}
    yield "bundle.max_depth", {"max_depth": 5}
    yield "bundle.labels", {"labels": ("*",)}
    yield "bundle.labels", {"labels": ("pii", "secret")}
    yield "bundle.cycle", {"aud": "planner"}


def bundles() -> dict[str, Any]:
    """Root to leaf, verified at ``now`` for ``audience``."""
    root, child, grandchild = (mint(claims, ISSUING) for claims in (ROOT, CHILD, GRANDCHILD))
    back = mint(child_of(CHILD, "planner"), ISSUING)
    cases: list[dict[str, Any]] = [
        {"name": "root-only", "tokens": [root], "audience": "planner", "expect": "valid"},
        {"name": "two", "tokens": [root, child], "audience": "researcher", "expect": "valid"},
        {"name": "three", "tokens": [root, child, grandchild], "audience": "files", "expect": "valid"},
        {
            "name": "allowed-cycle", "tokens": [root, child, back], "audience": "planner", "expect": "valid",
            "allowed_cycles": [["researcher", "planner"]],
        },
    ]  # fmt: skip
    refused = [
        (f"{rule.removeprefix('bundle.')}-{n}", [root, mint(msgspec.structs.replace(CHILD, **change), ISSUING)], rule)
        for n, (rule, change) in enumerate(invalid_links(), 1)
    ]
    refused += [
        ("empty", [], "bundle.root"),
        ("no-root", [child, grandchild], "bundle.root"),
        ("one-left-out", [root, grandchild], "bundle.par"),
        ("wrong-order", [child, root], "bundle.root"),
        ("cycle", [root, child, back], "bundle.cycle"),
        ("forged-root", [mint(ROOT, STRANGER), child], "grant.kid"),
        ("too-large", ["A" * 8192] * 8 + ["A"], "bundle.size"),
    ]
    for name, tokens, rule in refused:
        audience = parse(tokens[-1]).claims.aud if rule not in ("bundle.size",) and tokens else "planner"
        cases.append(
            {
                "name": name,
                "tokens": tokens,
                "audience": audience,
                "expect": "invalid",
                "code": code_of(rule),
                "rule": rule,
            }
        )
    wrong = {"expect": "invalid", "code": "GRANT_INVALID", "rule": "grant.audience"}
    cases.append({"name": "for-another", "tokens": [root, child], "audience": "files", **wrong})
    return {"v": 1, "issuer": ISSUER, "now": NOW, "jwks": JWKS, "cases": cases}
