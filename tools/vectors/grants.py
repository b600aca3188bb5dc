"""Single grants: valid ones with what they give, and invalid ones with the rule that refuses each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from remit_schemas.base64url import encode
from remit_schemas.grant import mint, parse
from tools.vectors.common import (
    CHECKPOINTS,
    CHILD,
    GRANDCHILD,
    HEADER,
    ISSUER,
    ISSUING,
    JWKS,
    NOW,
    ROOT,
    STRANGER,
    TXN,
    code_of,
    payload,
    signed,
)  # fmt: skip


def valid_grants() -> Iterator[dict[str, Any]]:
    """Each with the claims and the chain that it gives."""
    bound = msgspec.structs.replace(CHILD, cnf={"jkt": ISSUING.kid})
    spaced = json.dumps(msgspec.to_builtins(CHILD), indent=1, sort_keys=True).encode()
    for name, text in (
        ("root", mint(ROOT, ISSUING)),
        ("child", mint(CHILD, ISSUING)),
        ("grandchild", mint(GRANDCHILD, ISSUING)),
        ("key-bound", signed(msgspec.json.encode(bound))),
        ("other-order-and-white-space", signed(spaced, dict(sorted(HEADER.items())))),
        ("issued-thirty-seconds-ahead", signed(payload(iat=NOW + 30))),
        ("empty-scope", signed(payload(authorization_details=[]))),
    ):
        claims = json.loads(parse(text).parts.payload)
        actors, act = [claims["aud"]], claims.get("act")
        while act:
            actors, act = [*actors, act["sub"]], act.get("act")
        yield {
            "name": name, "token": text, "audience": claims["aud"], "expect": "valid",
            "claims": claims, "chain": actors, "digest": parse(text).digest,
        }  # fmt: skip


def invalid_grants() -> Iterator[tuple[str, str, str]]:
    """Name, token, and the rule that refuses it."""
    good = mint(CHILD, ISSUING)
    head, body, signature = good.split(".")
    yield "empty", "", "grant.form"
    yield "two-parts", f"{head}.{body}", "grant.form"
    yield "no-signature", f"{head}.{body}.", "grant.form"
    yield "four-parts", good + ".AAAA", "grant.form"
    yield "padded", good + "==", "grant.form"
    yield "white-space", good + "\n", "grant.form"
    yield "unused-bits", good[:-1] + chr(ord(good[-1]) + 1), "grant.form"
    yield "json-serialisation", json.dumps({"protected": head, "payload": body, "signature": signature}), "grant.form"
    yield "too-large", "A" * 8193, "grant.size"
    for member, value in {
        "crit": ["exp"], "b64": False, "jku": "https://evil.example/", "jwk": STRANGER.public.to_jwk(), "x5u": "https://evil.example/",
        "x5c": [], "cty": "JWT", "zip": "DEF",
    }.items():  # fmt: skip
        yield f"header-{member}", signed(payload(), HEADER | {member: value}), "grant.header"
    yield "header-without-typ", signed(payload(), {"alg": "Ed25519", "kid": ISSUING.kid}), "grant.header"
    yield (
        "header-duplicate",
        signed(payload(), json.dumps(HEADER).replace("{", '{"alg":"none",').encode()),
        "grant.header",
    )
    for alg in ("none", "EdDSA", "HS256", "ed25519"):
        yield f"alg-{alg}", signed(payload(), HEADER | {"alg": alg}), "grant.alg"
    yield "unknown-key", mint(CHILD, STRANGER), "grant.kid"
    yield "signed-by-another", signed(payload(), by=STRANGER), "grant.signature"
    yield "changed-claims", f"{head}.{encode(payload(sub='root'))}.{signature}", "grant.signature"
    yield "short-signature", f"{head}.{body}.{signature[:42]}A", "grant.signature"
    yield "checkpoint-key", signed(payload(), HEADER | {"kid": CHECKPOINTS.kid}, CHECKPOINTS), "grant.key_use"
    yield "typ-JWT", signed(payload(), HEADER | {"typ": "JWT"}), "grant.typ"
    yield "duplicate-claim", signed(payload().replace(b"{", b'{"sub":"root",', 1)), "grant.json"
    yield "nan", signed(payload().replace(b'"depth":1', b'"depth":NaN')), "grant.json"
    yield "large-integer", signed(payload().replace(str(NOW + 60).encode(), b"9007199254740992")), "grant.json"
    for name, rule, change in INVALID_CLAIMS:
        yield name, signed(payload(**change)), rule
    yield "expired-to-the-second", signed(payload(iat=NOW - 60, exp=NOW)), "grant.expired"


INVALID_CLAIMS: Final[tuple[tuple[str, str, dict[str, Any]], ...]] = (
    ("another-issuer", "grant.issuer", {"iss": "https://evil.example"}),
    ("another-audience", "grant.audience", {"aud": "critic"}),
    ("audience-list", "grant.audience", {"aud": ["researcher"]}),
    ("no-exp", "grant.times", {"exp": ...}),
    ("exp-float", "grant.times", {"exp": NOW + 60.5}),
    ("exp-text", "grant.times", {"exp": str(NOW + 60)}),
    ("iat-boolean", "grant.times", {"iat": True}),
    ("exp-before-iat", "grant.times", {"iat": NOW + 30, "exp": NOW + 29}),
    ("issued-in-the-future", "grant.iat", {"iat": NOW + 31}),
    ("unknown-claim", "grant.claims", {"nbf": 0}),
    ("null-claim", "grant.claims", {"cnf": None}),
    ("null-actor", "grant.claims", {"act": {"sub": "planner", "act": None}}),
    ("actor-with-issuer", "grant.claims", {"act": {"sub": "planner", "iss": ISSUER}}),
    ("no-rec", "grant.claims", {"rec": ...}),
    ("budget-without-calls", "grant.claims", {"budget": {"usd_micros": 1, "tokens": 1}}),
    ("budget-negative", "grant.claims", {"budget": {"usd_micros": 1, "tokens": 1, "calls": -1}}),
    ("max-depth-17", "grant.claims", {"max_depth": 17}),
    ("detail-of-another-type", "grant.claims", {"authorization_details": [{"type": "x", "resource": "mcp/a/b"}]}),
    ("detail-without-pattern", "grant.scope", {"authorization_details": [{"resource": "mcp"}]}),
    ("depth-not-actors", "grant.depth", {"depth": 2}),
    ("depth-over-max", "grant.depth", {"max_depth": 0}),
    ("actors-without-parent", "grant.par", {"par": ...}),
    ("parent-without-actors", "grant.par", {"act": ..., "depth": 0}),
    ("labels-star-and-more", "grant.labels", {"labels": ["*", "pii"]}),
    ("jti-of-another-txn", "grant.jti", {"jti": f"{TXN[::-1]}.{2:016x}.1"}),
    ("jti-n-zero", "grant.jti", {"jti": f"{TXN}.{2:016x}.0"}),
)


def grants() -> dict[str, Any]:
    """Single grants, verified at ``now`` for ``audience``."""
    invalid = [
        {
            "name": name,
            "token": text,
            "audience": "researcher",
            "expect": "invalid",
            "code": code_of(rule),
            "rule": rule,
        }
        for name, text, rule in invalid_grants()
    ]
    return {"v": 1, "issuer": ISSUER, "now": NOW, "jwks": JWKS, "cases": [*valid_grants(), *invalid]}
