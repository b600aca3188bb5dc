"""What the vectors have in common: keys, times, ids and a chain of three grants, all fixed, so that two runs write the same bytes."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

import msgspec

from remit_schemas.base64url import encode
from remit_schemas.budget import ONE_CALL, Budget
from remit_schemas.grant import Actor, Claims, mint, parse
from remit_schemas.keys import CHECKPOINT, KeySet, SigningKey
from remit_schemas.scope import Detail

ISSUER: Final = "https://remit.example"
NOW: Final = 1_800_000_000
TXN: Final = "4bf92f3577b34da6a3ce929d0e0e4736"


def key(name: str, use: str = "grant") -> SigningKey:
    """The key of a name: its seed is the SHA-256 of the name."""
    return SigningKey.from_seed(hashlib.sha256(f"remit vectors {name}".encode()).digest(), use)


ISSUING, CHECKPOINTS, STRANGER = key("grant"), key("checkpoint", CHECKPOINT), key("stranger")
JWKS: Final = KeySet([ISSUING.public, CHECKPOINTS.public]).to_jwks()
HEADER: Final = {"alg": "Ed25519", "typ": "dlg+jwt", "kid": ISSUING.kid}

ROOT: Final = Claims(
    iss=ISSUER, sub="ann@example.com", tenant="default", aud="planner", iat=NOW, exp=NOW + 600,
    jti=f"{TXN}.{1:016x}.1", txn=TXN, depth=0, max_depth=4, rec="0" * 64,
    authorization_details=(
        Detail("agent/researcher/*"), Detail("mcp/files/read_file", {"path": {"prefix": "docs/"}}),
    ),
    budget=Budget(500_000, 100_000, 20), labels=("pii", "web"),
)  # fmt: skip


def child_of(parent: Claims, aud: str, **changes: Any) -> Claims:
    """A child that holds all its parent holds, one deeper, with ``changes``."""
    number = parent.depth + 2
    child = msgspec.structs.replace(
        parent, aud=aud, act=Actor(parent.aud, parent.act), depth=parent.depth + 1, jti=f"{TXN}.{number:016x}.1",
        par=parse(mint(parent, ISSUING)).digest, rec=f"{number:064x}",
    )  # fmt: skip
    return msgspec.structs.replace(child, **changes)


CHILD: Final = child_of(ROOT, "researcher", exp=NOW + 60)
GRANDCHILD: Final = child_of(
    CHILD, "files", budget=ONE_CALL, labels=(),
    authorization_details=(Detail("mcp/files/read_file", {"path": {"eq": "docs/a.md"}}),),
)  # fmt: skip


def payload(**changes: Any) -> bytes:
    """The claims of CHILD as JSON, with ``changes``; ``...`` leaves a claim out."""
    values = {**msgspec.to_builtins(CHILD), **changes}
    return json.dumps({k: v for k, v in values.items() if v is not ...}, separators=(",", ":")).encode()


def signed(claims: bytes, header: Any = HEADER, by: SigningKey = ISSUING) -> str:
    """Any claims under any header, rightly signed."""
    head = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    signing_input = f"{encode(head)}.{encode(claims)}"
    return f"{signing_input}.{encode(by.sign(signing_input.encode()))}"


def code_of(rule: str) -> str:
    """The code that goes with a rule."""
    return {"grant.size": "TOO_LARGE", "bundle.size": "TOO_LARGE", "grant.expired": "GRANT_EXPIRED"}.get(
        rule, "GRANT_INVALID"
    )
