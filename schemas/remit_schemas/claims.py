"""The claims of a grant, their types, and what must hold among them (RFC 7519, RFC 8693 §4.1, RFC 9396 §2).

Unknown claims are refused: a claim that restricts must not be overlooked by a verifier that does not know it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Final

import msgspec

from remit_schemas.budget import Budget
from remit_schemas.canonical import MAX_INTEGER
from remit_schemas.errors import Code, Refusal, refusal
from remit_schemas.names import Jti, is_principal, is_tenant, is_txn, parse_jti
from remit_schemas.scope import Detail

MAX_DEPTH: Final = 16
"""Most delegations between the user's own first agent and a holder."""

ANY_LABEL: Final = "*"
"""In a ceiling of labels: data with any label."""

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=63)]
Identifier = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Seconds = Annotated[int, msgspec.Meta(ge=0, le=MAX_INTEGER)]
Depth = Annotated[int, msgspec.Meta(ge=0, le=MAX_DEPTH)]
Sha256Text = Annotated[str, msgspec.Meta(min_length=43, max_length=43, pattern="^[A-Za-z0-9_-]{43}$")]
Sha256Hex = Annotated[str, msgspec.Meta(min_length=64, max_length=64, pattern="^[0-9a-f]{64}$")]
Label = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]

_LABEL = re.compile(r"[a-z0-9][a-z0-9_.:/-]{0,63}")


class Actor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Who delegated, and inside it who delegated to that one (RFC 8693 §4.1). ``sub`` is the name of an agent."""

    sub: Name
    act: Actor | None = None


class Confirmation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The key a holder must prove (RFC 7800): the thumbprint of its JWK (RFC 7638)."""

    jkt: Sha256Text


class Claims(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What a grant says. ``act`` and ``par`` are absent in a root held by the user's own first agent, and only there.

    ``iss`` issuer · ``sub`` the user, the same along a chain · ``aud`` the one holder · ``iat``, ``exp`` Unix seconds ·
    ``jti`` ``<txn>.<hop>.<n>`` · ``act`` who delegated, newest outermost · ``cnf`` key binding of a holder that the bus
    does not authenticate · ``depth`` number of actors · ``max_depth`` deepest descendant allowed · ``par`` base64url
    SHA-256 of the parent's signing input · ``rec`` hash of the ledger record that authorised it ·
    ``authorization_details`` the scope · ``budget`` what it and its descendants may use · ``labels`` the ceiling:
    which data labels may reach the holder, ``["*"]`` for any, ``[]`` for unlabelled data only.
    """

    iss: Identifier
    sub: Identifier
    tenant: Name
    aud: Name
    iat: Seconds
    exp: Seconds
    jti: Annotated[str, msgspec.Meta(max_length=64)]
    txn: Annotated[str, msgspec.Meta(min_length=32, max_length=32)]
    act: Actor | None = None
    cnf: Confirmation | None = None
    depth: Depth
    max_depth: Depth
    par: Sha256Text | None = None
    rec: Sha256Hex
    authorization_details: tuple[Detail, ...]
    budget: Budget
    labels: Annotated[tuple[Label, ...], msgspec.Meta(max_length=64)]


def check(claims: Claims) -> Jti:
    """What types cannot say. Returns the parsed ``jti``; raises GRANT_INVALID with the rule that refused."""
    if not is_tenant(claims.tenant) or not claims.sub.isprintable() or not claims.iss.isprintable():
        raise _refused("grant.claims", "iss, sub or tenant is malformed")
    if not claims.exp > claims.iat:
        raise _refused("grant.times", "exp must be after iat")
    _check_lineage(claims)
    _check_labels(claims.labels)
    jti = parse_jti(claims.jti)
    if jti is None or jti.txn != claims.txn or not is_txn(claims.txn):
        raise _refused("grant.jti", "jti must be <txn>.<hop>.<n> with the grant's own txn")
    return jti


def actors(act: Actor | None) -> tuple[str, ...]:
    """The nested actors as names, newest first."""
    names: list[str] = []
    while act is not None:
        names.append(act.sub)
        act = act.act
    return tuple(names)


def meet_labels(a: Iterable[str], b: Iterable[str]) -> tuple[str, ...]:
    """The ceiling that both allow, sorted."""
    left, right = set(a), set(b)
    if ANY_LABEL in left:
        return tuple(sorted(right))
    return tuple(sorted(left if ANY_LABEL in right else left & right))


def labels_within(labels: Iterable[str], ceiling: Iterable[str]) -> bool:
    """Whether every one of ``labels`` (of data, or a narrower ceiling) is allowed by ``ceiling``."""
    allowed = set(ceiling)
    return ANY_LABEL in allowed or set(labels) <= allowed


def _check_lineage(claims: Claims) -> None:
    chain = actors(claims.act)
    if not all(map(is_principal, (claims.aud, *chain))):
        raise _refused("grant.claims", "aud and every act.sub must be names of agents or servers")
    if claims.depth != len(chain) or claims.depth > claims.max_depth:
        raise _refused("grant.depth", "depth must be the number of actors, and at most max_depth")
    if (claims.par is None) != (claims.act is None):
        raise _refused("grant.par", "par and act are both absent in a root, and both present elsewhere")


def _check_labels(labels: tuple[str, ...]) -> None:
    if len(set(labels)) != len(labels) or (labels != (ANY_LABEL,) and not all(map(_LABEL.fullmatch, labels))):
        raise _refused("grant.labels", 'labels must be distinct lower-case words, or exactly ["*"]')


def _refused(rule: str, message: str) -> Refusal:
    return refusal(Code.GRANT_INVALID, message, rule=rule, ask="present a grant as the broker issued it")
