"""``[[issuers]]``: who may say who somebody is, and what a token of theirs must be like to be believed."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import msgspec

from remit_broker.core.claims_map import BadMapping, ClaimsTable, Source, as_source, check_mapping, names_in, parse_path

Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"
]  # fmt: skip
"""Signatures with a public key (RFC 7518 §3.1, RFC 8037, RFC 9864). There is no ``none`` and no HMAC to choose."""

Kind = Literal["at+jwt", "jwt", "id"]
Ability = Literal["read", "approve", "operate", "administer"]
OperatorRole = Literal["viewer", "approver", "operator", "admin"]

ABILITIES: Final[dict[OperatorRole, frozenset[Ability]]] = {
    "viewer": frozenset({"read"}),
    "approver": frozenset({"read", "approve"}),
    "operator": frozenset({"read", "operate"}),
    "admin": frozenset({"read", "approve", "operate", "administer"}),
}
"""What each role of operators may do on ``/api``. An approver does not operate, nor an operator approve: nobody is both by accident."""

ALL: Final = ABILITIES["admin"]
LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
Names = tuple[str, ...]


class LoginConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """People log in at the issuer for their programs: this broker is its client ``client_id``, whose secret stands in ``secret_file``
    (empty: it has none). ``auth`` is how the secret is sent; ``scopes`` are asked for.
    """

    client_id: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    secret_file: str = ""
    auth: Literal["client_secret_basic", "client_secret_post"] = "client_secret_basic"
    scopes: Names = ("openid",)


class IssuerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One issuer. Times are seconds.

    ``issuer`` is compared exactly, with the token's ``iss`` and with the discovery document. ``accept`` says which tokens:
    ``at+jwt`` (access tokens of RFC 9068), ``jwt`` (access tokens that say no more than JWT) or ``id`` (ID tokens). ``clients``
    are the applications whose tokens count (empty: every one), ``agents`` patterns of the agents that may bring them. ``require``
    maps paths of claims to what they must say. ``operators`` says which users are what on ``/api``: ``role:…``, ``group:…`` or
    ``user:…``, after the mapping.
    """

    name: str
    issuer: str
    audience: Names
    accept: tuple[Kind, ...] = ("at+jwt",)
    algorithms: tuple[Algorithm, ...] = ("RS256",)
    clients: Names = ()
    agents: Names = ("*",)
    require: dict[str, str | bool | int | Names] = {}
    trust_unverified_email: bool = False
    claims: ClaimsTable = ClaimsTable()
    operators: dict[OperatorRole, Names] = {}
    jwks: str = ""
    ca: str = ""
    skew: Annotated[float, msgspec.Meta(ge=0, le=120)] = 30.0
    max_age: Annotated[float, msgspec.Meta(ge=60, le=30 * 86400)] = 86400.0
    max_ttl: Annotated[int, msgspec.Meta(ge=1, le=28_800)] = 28_800
    refresh: Annotated[float, msgspec.Meta(ge=1, le=86400)] = 300.0
    outage: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 3600.0
    refetch: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 10.0
    login: LoginConfig | None = None


class DevUser(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A user of the development issuer."""

    roles: Names = ()
    groups: Names = ()
    tenant: str = "default"


class DevelopmentConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[development]``: an issuer inside this broker whose users are a table. ``beside_real`` allows it beside a real one."""

    issuer: bool = False
    beside_real: bool = False
    users: dict[str, DevUser] = {}
    operators: dict[OperatorRole, Names] = {}


class BadIssuer(Exception):  # noqa: N818 - a finding about a configuration
    """An issuer that cannot be meant. ``key`` is where, ``ask`` what is allowed there."""

    def __init__(self, key: str, why: str, ask: str) -> None:
        super().__init__(why)
        self.key, self.why, self.ask = key, why, ask


DEVELOPMENT: Final = "development"
"""The name of the issuer inside this broker."""
DEV_AUDIENCE: Final = "remit"
DEV_CLIENT: Final = "remit-development"
"""The one client of the issuer inside this broker: the broker itself."""
DEV_PATH: Final = "/development"
"""Where on the HTTP edge it is."""


def development_issuer(url: str, config: DevelopmentConfig, beside: bool) -> IssuerConfig:
    """The table of the issuer at ``url``, inside this broker. Beside a real one its users have names of their own."""
    return IssuerConfig(
        name=DEVELOPMENT,
        issuer=url,
        audience=(DEV_AUDIENCE,),
        accept=("at+jwt",),
        algorithms=("ES256",),
        claims=ClaimsTable(
            user=Source(claim="sub", prefix="dev:" if beside else ""), tenant="tenant", roles="roles", groups="groups"
        ),
        operators=config.operators,
        # INVARIANT: where real users log in, nobody logs in at the development issuer
        # (test_beside_a_real_issuer_nobody_logs_in_at_the_development_issuer).
        login=None if beside else LoginConfig(client_id=DEV_CLIENT),
    )


def operator_roles(issuer: IssuerConfig, user: str, roles: Names, groups: Names) -> tuple[OperatorRole, ...]:
    """What a user of ``issuer`` is on ``/api``: nothing, unless the table of that very issuer says so."""
    is_a = {f"user:{user}", *(f"role:{role}" for role in roles), *(f"group:{group}" for group in groups)}
    return tuple(role for role, who in issuer.operators.items() if is_a & set(who))


def abilities_of(roles: tuple[OperatorRole, ...]) -> frozenset[Ability]:
    """What these roles may do together."""
    return frozenset(ability for role in roles for ability in ABILITIES[role])


def secure(url: str) -> bool:
    """Whether ``url`` is https, or http to this very machine; without user, query or fragment."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    plain = parts.scheme == "http" and parts.hostname in LOOPBACK
    return (
        (parts.scheme == "https" or plain)
        and bool(parts.hostname)
        and port != 0
        and not (parts.username or parts.password or parts.query or parts.fragment)
        and url.isprintable()
        and " " not in url
    )


def is_loopback(url: str) -> bool:
    """Whether ``url`` is on this very machine."""
    return urlsplit(url).hostname in LOOPBACK


def check_issuers(real: tuple[IssuerConfig, ...], development: DevelopmentConfig) -> None:
    """Raises :class:`BadIssuer` for the first that cannot be meant, and where two would be mistaken for each other."""
    if development.issuer and real and not development.beside_real:
        # INVARIANT: nobody becomes whom they like beside real users by a forgotten line
        # (test_the_development_issuer_does_not_start_beside_a_real_one).
        raise BadIssuer(
            "development.issuer", f"it is on beside {real[0].name}, a real issuer",
            "take it out; or say development.beside_real = true, and its users are then called dev:…",
        )  # fmt: skip
    issuers = real
    if development.issuer:
        issuers = (*real, development_issuer("http://127.0.0.1" + DEV_PATH, development, beside=bool(real)))
    for issuer in issuers:
        _check(issuer)
    for key, values in (("name", [i.name for i in issuers]), ("issuer", [i.issuer for i in issuers])):
        if twice := {value for value in values if values.count(value) > 1}:
            raise BadIssuer(f"issuers.*.{key}", f"{sorted(twice)[0]!r} is there twice", "one table for each issuer")
    # INVARIANT: a user of one issuer is never taken for one of another
    # (test_two_issuers_whose_users_could_be_mistaken_for_each_other_are_refused).
    for index, one in enumerate(issuers):
        for other in issuers[index + 1 :]:
            a, b = (as_source(i.claims.user).prefix for i in (one, other))
            if a.startswith(b) or b.startswith(a):
                raise BadIssuer(
                    f"issuers: {one.name} and {other.name}", "a user of one could have the name of a user of the other",
                    'give each its own, such as claims.user = { claim = "sub", prefix = "corp:" }',
                )  # fmt: skip


def _check(issuer: IssuerConfig) -> None:
    at = f"issuers.{issuer.name}"
    if not issuer.name or len(issuer.name) > 63 or not issuer.name.isprintable():
        raise BadIssuer("issuers.*.name", f"{issuer.name[:80]!r} is no name", "write a short one, such as corp")
    for key in ("issuer", "jwks"):
        if (url := getattr(issuer, key)) and not secure(url):
            raise BadIssuer(
                f"{at}.{key}", f"{url!r} is no https URL", "https, without query; http is for this very machine alone"
            )
    if not issuer.issuer:
        raise BadIssuer(f"{at}.issuer", "it is empty", "write what the issuer's tokens say in iss")
    for key in ("audience", "accept", "algorithms", "agents"):
        if not getattr(issuer, key) or not all(getattr(issuer, key)):
            raise BadIssuer(f"{at}.{key}", "it is empty", "name at least one")
    for role, who in issuer.operators.items():
        for one in who:
            if not one.startswith(("role:", "group:", "user:")) or one.endswith(":"):
                raise BadIssuer(f"{at}.operators.{role}", f"{one!r} is nobody", "write role:…, group:… or user:…")
    for path in issuer.require:
        try:
            parse_path(path)
        except ValueError:
            raise BadIssuer(f"{at}.require", f"{path!r} is no path of a claim", "write such as hd") from None
    try:
        check_mapping(issuer.claims)
    except BadMapping as bad:
        raise BadIssuer(f"{at}.{bad.key}", bad.why, bad.ask) from None


def demands(issuer: IssuerConfig) -> dict[str, Any]:
    """What claims must say: ``require``, and that an address which names somebody was verified."""
    addressed = any(path[-1] == "email" for path in names_in(issuer.claims))
    # INVARIANT: nobody becomes somebody by writing that one's address into their own profile
    # (test_an_address_that_nobody_verified_is_not_a_user).
    implied = {"email_verified": True} if addressed and not issuer.trust_unverified_email else {}
    return {**implied, **issuer.require}
