"""A person's decision about one call, signed by the broker: what was decided is checked with public keys alone.

A compact JWS like a grant, with a type of its own, so that neither passes for the other. It names the record of the request by
its hash, and through it everything that was asked: the arguments by their digest, the chain, the policies.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from remit_schemas import jws
from remit_schemas.canonical import loads
from remit_schemas.errors import Code, Refusal, refusal
from remit_schemas.keys import KeySet, SigningKey

TYP: Final = "remit-approval+jwt"
MAX_PAYLOAD: Final = 6 * 1024


class Decided(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The claims. ``request`` is the hash of the ``approval.requested`` record; ``iat`` and ``exp`` are Unix seconds.

    ``sub`` is the person as a user, ``who`` as the API knew them, ``auth`` by what. ``revision`` is that of the policies.
    """

    iss: str
    tenant: str
    txn: str
    id: str
    request: str
    resource: str
    args_digest: str
    chain: tuple[str, ...]
    revision: str
    verdict: Literal["approve", "deny"]
    sub: str
    who: str
    auth: str
    iat: int
    exp: int
    roles: tuple[str, ...] = ()
    reason: str = ""


def sign(decided: Decided, key: SigningKey) -> str:
    """The compact JWS."""
    return jws.sign(msgspec.json.encode(decided), TYP, key)


def verify(token: str, keys: KeySet) -> Decided:
    """What was decided, where one of ``keys`` signed it. Refuses APPROVAL_INVALID."""
    try:
        parts = jws.split(token)
        header = jws.parse_header(parts.header)
        # INVARIANT: a grant is no decision, and a decision is no grant (test_a_grant_does_not_pass_for_a_decision).
        if header.typ != TYP:
            raise _invalid(f"typ must be {TYP}")
        jws.check_signature(parts, header, keys.get(header.kid))
        return msgspec.convert(loads(parts.payload, max_bytes=MAX_PAYLOAD), Decided, strict=True)
    except Refusal as no:
        raise _invalid(no.body.message) from None
    except (msgspec.ValidationError, ValueError):
        raise _invalid("the claims are not those of a decision") from None


def _invalid(why: str) -> Refusal:
    return refusal(
        Code.APPROVAL_INVALID,
        f"no signed decision: {why}",
        rule="approval.token",
        ask="the decision as the broker wrote it",
    )
