"""The grant: a short-lived signed token that lets exactly one holder act for one user within a scope and a budget.

A grant is read in two steps that give two types. :func:`parse` takes a token apart and believes nothing
(:class:`UnverifiedGrant`); :func:`verify` is the only way to a :class:`Grant`, and whatever acts takes a ``Grant``.
The order of the checks is part of the format: size, header, signature, ``typ``, ``iss``, ``aud``, times, and only then
the other claims, so that nobody without a key reaches more code than is needed to turn them away.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final, NoReturn

import msgspec

from remit_schemas import jws
from remit_schemas.base64url import encode
from remit_schemas.canonical import loads
from remit_schemas.claims import Actor, Claims, Confirmation, actors, check
from remit_schemas.errors import Code, Refusal, refusal
from remit_schemas.keys import GRANT, KeySet, SigningKey
from remit_schemas.names import Jti
from remit_schemas.scope import Scope

__all__ = ["Actor", "Claims", "Confirmation", "Grant", "UnverifiedGrant", "mint", "parse", "verify", "verify_ancestor"]

TYP: Final = "dlg+jwt"
MAX_LEAF: Final = jws.MAX_TOKEN
IAT_SKEW: Final = 30
"""Seconds by which ``iat`` may lie ahead of the verifier's clock. ``exp`` has no such allowance."""

_ASK = "present a grant as the broker issued it"


class UnverifiedGrant:
    """A token taken apart. Nothing in it may be acted on: whoever wants to needs :func:`verify`."""

    __slots__ = ("_claims", "_digest", "header", "parts", "token")

    def __init__(self, token: str, header: jws.Header, parts: jws.Parts) -> None:
        self.token: Final = token
        self.header: Final = header
        self.parts: Final = parts
        self._claims: Claims | None = None
        self._digest: str | None = None

    @property
    def signing_input(self) -> bytes:
        """What the signature is over."""
        return self.parts.signing_input

    @property
    def digest(self) -> str:
        """base64url SHA-256 of the signing input: what a child names in ``par``."""
        if self._digest is None:
            self._digest = encode(hashlib.sha256(self.parts.signing_input).digest())
        return self._digest

    @property
    def claims(self) -> Claims:
        """What the token *claims*, typed and consistent, but perhaps nobody's. Raises GRANT_INVALID."""
        if self._claims is None:
            self._claims = _claims(_payload(self))
        return self._claims

    def __repr__(self) -> str:
        return f"UnverifiedGrant(kid={self.header.kid!r}, digest={self.digest!r})"


class Grant:
    """A grant that was verified, and for whom. Immutable; made by :func:`verify` and :func:`verify_ancestor` only.

    ``claims`` are the verified claims, ``scope`` the ``authorization_details`` as a lattice element, ``jti`` the parsed
    id, ``token`` the compact JWS, ``digest`` what a child of it names in ``par``, ``kid`` the key that signed it.
    """

    __slots__ = ("chain", "claims", "digest", "jti", "kid", "scope", "token")

    claims: Claims
    scope: Scope
    jti: Jti
    token: str
    digest: str
    kid: str
    chain: tuple[str, ...]
    """Who acts, newest first: the holder (``aud``), who delegated to it, … up to the user's own first agent."""

    # INVARIANT: a Grant exists only because a signature was verified (test_a_grant_cannot_be_built_directly).
    def __init__(self) -> None:
        raise TypeError("a Grant is made by remit_schemas.grant.verify only")

    def __init_subclass__(cls) -> None:
        raise TypeError("Grant has no subclasses")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a Grant is immutable: {name}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a Grant is immutable: {name}")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Grant is not pickled or copied: pass the token and verify it again")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grant) and self.token == other.token

    def __hash__(self) -> int:
        return hash(self.token)

    def __repr__(self) -> str:
        return f"Grant({self.jti!s}, sub={self.claims.sub!r}, chain={self.chain!r})"


def parse(token: str) -> UnverifiedGrant:
    """Take a token apart: size cap, form, header allow-list. Raises TOO_LARGE or GRANT_INVALID."""
    parts = jws.split(token)
    return UnverifiedGrant(token, jws.parse_header(parts.header), parts)


def verify(unverified: UnverifiedGrant, keys: KeySet, *, issuer: str, audience: str, now: float) -> Grant:
    """The grant, checked for the holder ``audience`` at ``now`` (Unix seconds).

    Raises GRANT_INVALID with the rule that refused (``grant.kid``, ``grant.alg``, ``grant.signature``, ``grant.typ``,
    ``grant.issuer``, ``grant.audience``, ``grant.iat``, ``grant.claims`` …) or GRANT_EXPIRED (``grant.expired``).
    Whether the grant was revoked or its hop is closed is known to the broker only.
    """
    payload = _signed(unverified, keys)
    _addressed(payload, issuer)
    # INVARIANT: aud is one string, compared whole; a list never matches (test_audience_must_be_exactly_one_string).
    if payload.get("aud") != audience:
        raise _invalid("grant.audience", f"not a grant for {audience!r}", "use the grant that names you as aud")
    return _granted(unverified, payload, now)


def verify_ancestor(unverified: UnverifiedGrant, keys: KeySet, *, issuer: str, now: float) -> Grant:
    """Like :func:`verify`, for a grant that somebody further up the chain holds.

    Its audience is compared with the actor of its child by :func:`~remit_schemas.bundle.verify_link`.
    """
    payload = _signed(unverified, keys)
    _addressed(payload, issuer)
    return _granted(unverified, payload, now)


def mint(claims: Claims, key: SigningKey) -> str:
    """Sign ``claims``.

    The details are those of a :class:`~remit_schemas.scope.Scope`, which has checked them. What this returns can be
    verified: raises GRANT_INVALID for claims that would be refused, TOO_LARGE for a token over
    8 KiB, ``ValueError`` for a key that is not for grants.
    """
    if key.public.use != GRANT:
        raise ValueError(f"{key!r} does not sign grants")
    payload: bytes = _encode_json(claims)
    try:
        _decode_claims(payload)
    except msgspec.ValidationError as error:
        raise _invalid("grant.claims", f"not the claims of a grant: {error}") from None
    check(claims)
    token = jws.sign(payload, TYP, key)
    if len(token) > MAX_LEAF:
        raise refusal(
            Code.TOO_LARGE, f"the grant would have {len(token)} characters, at most {MAX_LEAF} are allowed",
            rule="grant.size", ask="ask for fewer or shorter scopes",
        )  # fmt: skip
    return token


_encode_json: Any = msgspec.json.Encoder().encode
_decode_claims: Any = msgspec.json.Decoder(Claims).decode


def _signed(unverified: UnverifiedGrant, keys: KeySet) -> dict[str, Any]:
    header = unverified.header
    key = jws.check_signature(unverified.parts, header, keys.get(header.kid))
    # INVARIANT: a key signs one kind of statement (test_a_checkpoint_key_signs_no_grants).
    if key.use != GRANT:
        raise _invalid("grant.key_use", f"signed with a key for {key.use}")
    if header.typ != TYP:
        raise _invalid("grant.typ", f"typ must be {TYP}")
    return _payload(unverified)


def _payload(unverified: UnverifiedGrant) -> dict[str, Any]:
    try:
        payload = loads(unverified.parts.payload, max_bytes=MAX_LEAF)
    except Refusal as error:
        raise _invalid("grant.json", f"the claims are refused: {error.body.message}", cause=error.body.rule) from None
    if not isinstance(payload, dict):
        raise _invalid("grant.claims", "the claims are not an object")
    return payload


def _addressed(payload: dict[str, Any], issuer: str) -> None:
    if payload.get("iss") != issuer:
        raise _invalid("grant.issuer", "issued by somebody else", f"present a grant of {issuer}")


def _granted(unverified: UnverifiedGrant, payload: dict[str, Any], now: float) -> Grant:
    _timely(payload, now)
    claims = _claims(payload)
    grant = Grant.__new__(Grant)
    put = object.__setattr__
    put(grant, "claims", claims)
    put(grant, "scope", _scope(claims))
    put(grant, "jti", check(claims))
    put(grant, "token", unverified.token)
    put(grant, "digest", unverified.digest)
    put(grant, "kid", unverified.header.kid)
    put(grant, "chain", (claims.aud, *actors(claims.act)))
    return grant


def _timely(payload: dict[str, Any], now: float) -> None:
    iat, exp = payload.get("iat"), payload.get("exp")
    if type(iat) is not int or type(exp) is not int:
        raise _invalid("grant.times", "iat and exp must be integers (Unix seconds)")
    # Both comparisons are written so that a clock that is not a number refuses.
    if not iat <= now + IAT_SKEW:
        raise _invalid("grant.iat", "issued in the future")
    # INVARIANT: no allowance on exp, or lifetimes would grow from hop to hop (test_no_skew_on_exp).
    if not now < exp:
        ask = "renew it while its hop is open, or start a new task"
        raise refusal(Code.GRANT_EXPIRED, "the grant has expired", rule="grant.expired", ask=ask)


def _claims(payload: dict[str, Any]) -> Claims:
    # Absent and null are different things to the other JWT libraries that read these tokens.
    if None in payload.values() or _innermost(payload).get("act", ...) is None:
        raise _invalid("grant.claims", "a claim is null: leave it out")
    try:
        claims = msgspec.convert(payload, Claims, strict=True)
    except (msgspec.ValidationError, ValueError) as error:
        raise _invalid("grant.claims", f"not the claims of a grant: {error}") from None
    check(claims)
    return claims


def _innermost(act: dict[str, Any]) -> dict[str, Any]:
    while isinstance(inner := act.get("act"), dict):
        act = inner
    return act


def _scope(claims: Claims) -> Scope:
    try:
        return Scope.of(claims.authorization_details)
    except Refusal as error:
        raise _invalid("grant.scope", f"the scope is refused: {error.body.message}", cause=error.body.rule) from None


def _invalid(rule: str, message: str, ask: str = _ASK, *, cause: str = "") -> Refusal:
    return refusal(Code.GRANT_INVALID, message, rule=rule, ask=ask, cause=cause)
