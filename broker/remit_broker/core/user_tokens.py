"""A user's token, judged by the configuration of its issuer. Pure: keys, time and token are values.

:func:`read` takes a compact JWS apart without believing a word; :func:`judge` decides about what a verified signature covers.
PyJWT checks neither ``typ`` nor duplicate names, takes lists and NaN, and does not require ``exp`` (RFC 8725 §3 asks for more):
all of that is checked here, before and after the signature.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from remit_broker.core.claims_map import Unmapped, map_claims, parse_path
from remit_broker.core.issuers import IssuerConfig, demands
from remit_schemas.base64url import decode
from remit_schemas.canonical import loads
from remit_schemas.errors import Code, Refusal, refusal

MAX_TOKEN: Final = 16 * 1024
"""Largest token in characters: 200 groups of Entra ID fit. Checked before anything is parsed."""
MAX_HEADER: Final = 4 * 1024
"""A header may hold a certificate chain, which nobody looks at."""
MAX_KID: Final = 256
FORBIDDEN: Final = ("crit", "b64", "jku", "jwk", "x5u", "zip", "enc")
"""Members of a header by which a token would choose how it is checked (RFC 7515 §4.1)."""

ACCESS: Final = frozenset({"at+jwt", "application/at+jwt"})
PLAIN: Final = frozenset({"", "jwt"})


class Unverified(NamedTuple):
    """A token taken apart. Nothing in it has been checked but its form."""

    text: str
    alg: str
    typ: str
    kid: str | None
    iss: str
    claims: dict[str, Any]
    signing_input: bytes
    signature: bytes


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """A user, as an issuer proved them. ``issuer`` is its name in the configuration, ``iss`` its URL.

    ``client`` is the application the token was issued to. ``token`` names the token without being of use to anybody: its ``jti``,
    else a digest. ``exp`` is Unix seconds. ``may_act`` is the one agent that may act with it, where it says so.
    """

    issuer: str
    iss: str
    user: str
    tenant: str
    roles: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    client: str = ""
    token: str = ""
    exp: int = 0
    may_act: str | None = None

    @property
    def auth(self) -> str:
        """How the user was known, for the record."""
        return f"oidc:{self.issuer}"


def read(token: str) -> Unverified:
    """Take a token apart. Refuses TOO_LARGE or UNAUTHENTICATED; no text of the token is in the refusal."""
    # INVARIANT: what is too large costs nothing (test_a_large_token_is_refused_before_it_is_parsed).
    if len(token) > MAX_TOKEN:
        raise refusal(
            Code.TOO_LARGE, f"a user's token of {len(token)} characters, at most {MAX_TOKEN} are accepted",
            rule="identity.size", ask="have the issuer send fewer claims, such as only the groups of this application",
        )  # fmt: skip
    if token.count(".") == 4:
        raise denied("form", "the token is encrypted (JWE)", "have the issuer send signed tokens")
    try:
        signing_input, _, signature = token.encode("ascii").rpartition(b".")
        header, payload = signing_input.split(b".")
        head = loads(decode(header), max_bytes=MAX_HEADER, max_depth=4)
        claims = loads(decode(payload), max_bytes=MAX_TOKEN, max_depth=16)
        raw = decode(signature)
        if not raw:
            raise ValueError("no signature")
    except (ValueError, Refusal):
        raise denied(
            "form", "it is no signed token: three parts of strict base64url, the first two of strict JSON"
        ) from None
    if not isinstance(head, dict) or not isinstance(claims, dict):
        raise denied("form", "its header or its payload is no JSON object")
    # INVARIANT: a token never says how it is to be checked (test_a_header_that_says_where_keys_are_is_refused).
    if any(name in head for name in FORBIDDEN):
        raise denied("header", "its header says how it is to be checked")
    alg, typ, kid, iss = head.get("alg"), head.get("typ", ""), head.get("kid"), claims.get("iss")
    if not isinstance(alg, str) or not isinstance(typ, str) or not isinstance(iss, str):
        raise denied("header", "alg, typ and iss must be texts")
    if kid is not None and (not isinstance(kid, str) or not 0 < len(kid) <= MAX_KID):
        raise denied("header", f"its kid is no text of 1 to {MAX_KID} characters")
    return Unverified(token, alg, typ.lower(), kid, iss, claims, signing_input, raw)


def presentable(token: Unverified, issuer: IssuerConfig) -> None:
    """Refuse what no signature could make good: another algorithm or another kind of token than the issuer's table says."""
    # INVARIANT: the configuration says which algorithms, the token only which of them
    # (test_an_algorithm_that_is_not_configured_is_refused, test_an_unsigned_token_is_refused).
    if token.alg not in issuer.algorithms:
        raise denied(
            "algorithm", f"{issuer.name} signs with {' or '.join(issuer.algorithms)}, the token does not say so"
        )
    _kind(token, issuer)


def judge(token: Unverified, issuer: IssuerConfig, now: float) -> Identity:
    """Who the user of a token is whose signature was verified. ``now`` is Unix seconds. Refuses UNAUTHENTICATED."""
    claims = token.claims
    # INVARIANT: an issuer speaks for itself alone (test_a_token_that_names_another_issuer_is_refused).
    if token.iss != issuer.issuer:
        raise denied("issuer", f"it is not from {issuer.name}")
    expires = _times(claims, issuer, now)
    _audience(claims, issuer)
    client = _client(token, issuer)
    _demanded(claims, issuer)
    try:
        mapped = map_claims(issuer.claims, claims)
    except Unmapped as no:
        raise denied(no.kind, f"{issuer.name}: {no.why}", no.ask) from None
    return Identity(
        issuer=issuer.name, iss=issuer.issuer, user=mapped.user, tenant=mapped.tenant, roles=mapped.roles,
        groups=mapped.groups, client=client, token=named(token), exp=int(expires), may_act=_may_act(claims),
    )  # fmt: skip


def _may_act(claims: Mapping[str, Any]) -> str | None:
    """The one who may act with this token (RFC 8693 §4.4). A token with which somebody acts already (``act``, §4.1) begins nothing:
    in the task it would be the user's own.

    INVARIANT: nobody who acts is left out of a chain (test_a_token_with_an_actor_begins_no_task).
    """
    if "act" in claims:
        raise denied("actor", "somebody acts with it already (act)", "bring the user's own token")
    if "may_act" not in claims:
        return None
    said = claims["may_act"]
    agent = said.get("sub") if isinstance(said, Mapping) else None
    if not isinstance(agent, str) or not agent:
        raise denied(
            "may_act", "it does not say who may act with it", "ask the issuer for may_act with the agent's name as sub"
        )
    return agent


def named(token: Unverified) -> str:
    """The token's own id where it has one (``uti`` is Entra's), else its digest."""
    for name in ("jti", "uti"):
        said = token.claims.get(name)
        if isinstance(said, str) and 0 < len(said) <= 128 and said.isprintable() and said != token.text:
            return said
    return "sha256:" + hashlib.sha256(token.text.encode()).hexdigest()


def denied(kind: str, why: str, ask: str = "sign in again and send the token as the issuer gave it") -> Refusal:
    """The refusal of a user's token. ``why`` never quotes it."""
    return refusal(Code.UNAUTHENTICATED, f"the user's token is refused: {why}", rule=f"identity.{kind}", ask=ask)


def _kind(token: Unverified, issuer: IssuerConfig) -> None:
    """INVARIANT: an ID token is no access token, nor the other way round (test_a_token_of_another_kind_is_refused)."""
    claims, accept = token.claims, issuer.accept
    # A logout token (OIDC Back-Channel Logout §2.4) is signed by the same key for the same audience.
    fine = "events" not in claims and (
        ("at+jwt" in accept and token.typ in ACCESS)
        or ("jwt" in accept and token.typ in PLAIN and not _is_id_token(claims))
        or ("id" in accept and token.typ in PLAIN)
    )
    if not fine:
        raise denied(
            "type", f"{issuer.name} is configured for tokens of the kind {' or '.join(issuer.accept)}, this is another"
        )
    # RFC 7800: it is of use only together with a proof that is not asked for here.
    if "cnf" in claims:
        raise denied(
            "type", "it is bound to a key (cnf), which cannot be proved here", "ask the issuer for a bearer token"
        )


def _is_id_token(claims: Mapping[str, Any]) -> bool:
    return any(name in claims for name in ("nonce", "at_hash", "c_hash", "s_hash")) or claims.get("typ") in (
        "ID",
        "Refresh",
    )


def _times(claims: Mapping[str, Any], issuer: IssuerConfig, now: float) -> float:
    # INVARIANT: a token without an end is refused (test_a_token_without_a_time_it_needs_is_refused).
    expires, issued = _seconds(claims, "exp", needed=True), _seconds(claims, "iat", needed=True)
    begins = _seconds(claims, "nbf", needed=False)
    if now >= expires + issuer.skew:
        raise denied("expired", "it has expired")
    if max(issued, begins) > now + issuer.skew:
        raise denied("future", "it is not valid yet", "synchronise the clocks of the issuer and of this machine")
    if now - issued > issuer.max_age + issuer.skew:
        raise denied("age", f"it was issued more than {issuer.max_age:g} s ago")
    return expires


def _seconds(claims: Mapping[str, Any], name: str, *, needed: bool) -> float:
    said: Any = claims.get(name)
    if said is None and not needed:
        return 0.0
    if type(said) not in (int, float) or not math.isfinite(said) or not 0 <= said < 2**40:
        raise denied("time", f"{name} is not there or is no time")
    return float(said)


def _audience(claims: Mapping[str, Any], issuer: IssuerConfig) -> None:
    said = claims.get("aud")
    named = [said] if isinstance(said, str) else said
    if not isinstance(named, list) or not all(isinstance(one, str) for one in named):
        raise denied("audience", "aud is neither a text nor a list of texts")
    # INVARIANT: a token for somebody else opens nothing here (test_a_token_for_another_audience_is_refused).
    if not set(named) & set(issuer.audience):
        raise denied(
            "audience",
            f"it is not for {' or '.join(issuer.audience)}",
            f"ask {issuer.name} for a token with that audience",
        )


def _client(token: Unverified, issuer: IssuerConfig) -> str:
    """The application: ``azp`` (OIDC Core §2), ``client_id`` (RFC 9068), ``appid`` (Entra ID v1), ``cid`` (Okta).

    The one audience of an ID token is the application (OIDC Core §2).
    """
    claims, audience = token.claims, token.claims.get("aud")
    said = [claims[name] for name in ("azp", "client_id", "appid", "cid") if claims.get(name) is not None]
    if not all(isinstance(one, str) and 0 < len(one) <= 256 and one.isprintable() for one in said):
        raise denied("client", "what it says of its client is no name")
    one = audience[0] if isinstance(audience, list) and len(audience) == 1 else audience
    if (
        not said
        and "id" in issuer.accept
        and token.typ in PLAIN
        and ("jwt" not in issuer.accept or _is_id_token(claims))
    ):
        if not isinstance(one, str):
            raise denied("client", "it is for several and does not say who asked for it (azp)")
        said = [one]
    # INVARIANT: all that a token says of its client must be allowed (test_a_token_of_another_client_is_refused).
    if issuer.clients and (not said or not set(said) <= set(issuer.clients)):
        raise denied("client", f"it was issued to an application that issuers.{issuer.name}.clients does not name")
    return said[0] if said else ""


def _demanded(claims: Mapping[str, Any], issuer: IssuerConfig) -> None:
    for path, wanted in demands(issuer).items():
        value: Any = claims
        for name in parse_path(path):
            value = value.get(name) if isinstance(value, Mapping) else None
        allowed = wanted if isinstance(wanted, tuple) else (wanted,)
        # Not ``in``: in Python 1 == True.
        if not any(type(value) is type(one) and value == one for one in allowed):
            raise denied(
                "claim",
                f"{issuer.name}: the claim {path} does not say what is required",
                f"see issuers.{issuer.name}.require",
            )
