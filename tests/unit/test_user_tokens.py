"""A user's token, by everything that can be wrong with it; and the keys of its issuer, over time."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import socket
import time
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization

from remit_broker.adapters.identities import Issuers
from remit_broker.adapters.issuer_source import IssuerSource
from remit_broker.adapters.jwks import BadKeys, IssuerKeys
from remit_broker.core.issuers import BadIssuer, DevelopmentConfig, check_issuers
from remit_broker.core.user_tokens import MAX_TOKEN, Identity
from remit_schemas.errors import Code, Refusal
from tests.support.issuers import NOW, URL, Clock, Issuer, b64, ec_key, ed_key, jwk_of, rsa_key


class Door:
    """An issuer, its table and the clock."""

    def __init__(self, **changes: Any) -> None:
        self.clock = Clock()
        self.issuer = Issuer(now=NOW)
        self.issuers = Issuers([self.issuer.config(**changes)], self.clock, lambda _: self.issuer.transport())

    async def identify(self, token: str) -> Identity:
        return await self.issuers.identify(token)

    async def refused(self, token: str, rule: str, code: Code = Code.UNAUTHENTICATED) -> Refusal:
        """``token`` is refused by ``rule``, and no word of it is in the refusal."""
        with pytest.raises(Refusal) as caught:
            await self.identify(token)
        body = caught.value.body
        assert (body.code, body.rule) == (code, rule), body
        said = f"{body.message} {body.ask} {caught.value.cause}"
        assert not any(part in said for part in token.split(".") if len(part) > 8)
        return caught.value


@pytest.fixture
def door() -> Door:
    return Door()


async def test_a_good_token_says_who_the_user_is() -> None:
    door = Door(claims=_claims())
    found = await door.identify(door.issuer.token())
    assert found == Identity(
        issuer="corp", iss=URL, user="ann", tenant="default", roles=("analyst",), groups=("research",), client="portal",
        token="token-1", exp=NOW + 300,
    )  # fmt: skip


def _claims(**changes: Any) -> Any:
    from remit_broker.core.claims_map import ClaimsTable

    return ClaimsTable(**{"roles": "roles", "groups": "groups"} | changes)


@pytest.mark.parametrize(("alg", "key"), [("ES256", ec_key("e")), ("EdDSA", ed_key("d"))])
async def test_keys_of_every_kind_verify(alg: str, key: Any) -> None:
    door = Door(algorithms=(alg,))
    door.issuer.extra = [jwk_of(key, "other")]
    assert (await door.identify(door.issuer.token(alg=alg, key=key, kid="other"))).user == "ann"


async def test_the_name_of_rfc_9864_is_the_same_algorithm() -> None:
    door, key = Door(algorithms=("Ed25519",)), ed_key("d")
    door.issuer.extra = [jwk_of(key, "other", alg="EdDSA")]
    head, payload = b64({"alg": "Ed25519", "typ": "at+jwt", "kid": "other"}), b64(door.issuer.claims())
    signed = f"{head}.{payload}"
    assert (await door.identify(f"{signed}.{b64(key.sign(signed.encode()))}")).user == "ann"


# Form


async def test_a_large_token_is_refused_before_it_is_parsed(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remit_broker.core.user_tokens.loads", None)
    await door.refused("a" * (MAX_TOKEN + 1), "identity.size", Code.TOO_LARGE)


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "a.b",
        "a.b.c",
        "e30.e30.",
        "e30.e30.e30=",
        "e30.e30 .e30",
        "é.é.é",
        "W10.W10.AA",
        "bnVsbA.bnVsbA.AA",
    ],
)
async def test_what_is_no_token_is_refused(door: Door, token: str) -> None:
    await door.refused(token, "identity.form")


async def test_an_encrypted_token_is_refused(door: Door) -> None:
    await door.refused("a.b.c.d.e", "identity.form")


async def test_a_name_that_is_there_twice_is_refused(door: Door) -> None:
    """PyJWT takes the last one, others the first: two readers, two users."""
    head, payload = b64({"alg": "RS256", "kid": "k1"}), b64(json.dumps(door.issuer.claims())[:-1] + ', "sub": "bob"}')
    await door.refused(f"{head}.{payload}.{b64(b'x')}", "identity.form")
    twice = b64('{"alg":"RS256","alg":"none"}')
    await door.refused(f"{twice}.{b64(door.issuer.claims())}.{b64(b'x')}", "identity.form")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", str(2**53)])
async def test_numbers_that_are_none_are_refused(door: Door, number: str) -> None:
    payload = b64(f'{{"iss":"{URL}","exp":{number}}}')
    await door.refused(f"{b64({'alg': 'RS256'})}.{payload}.{b64(b'x')}", "identity.form")


@pytest.mark.parametrize("name", ["crit", "b64", "jku", "jwk", "x5u", "zip", "enc"])
async def test_a_header_that_says_where_keys_are_is_refused(door: Door, name: str) -> None:
    attacker = rsa_key("attacker")
    value: Any = {"jwk": jwk_of(attacker, "k1"), "crit": ["exp"], "b64": True}.get(
        name, "https://attacker.example/jwks"
    )
    head = b64({"alg": "RS256", "typ": "at+jwt", "kid": "k1", name: value})
    signed = f"{head}.{b64(door.issuer.claims())}"
    await door.refused(f"{signed}.{b64(_rs256(attacker, signed))}", "identity.header")


def _rs256(key: Any, signed: str) -> bytes:
    return jwt.algorithms.RSAAlgorithm(jwt.algorithms.RSAAlgorithm.SHA256).sign(signed.encode(), key)


# Algorithm, key, signature


async def test_an_unsigned_token_is_refused(door: Door) -> None:
    for alg in ("none", "None", "NONE", ""):
        head = b64({"alg": alg, "typ": "at+jwt", "kid": "k1"})
        await door.refused(f"{head}.{b64(door.issuer.claims())}.{b64(b'x')}", "identity.algorithm")
        await door.refused(f"{head}.{b64(door.issuer.claims())}.", "identity.form")


async def test_a_public_key_is_no_secret(door: Door) -> None:
    """The classic confusion: HMAC keyed with the published key, as PEM and as JWK."""
    public = door.issuer.keys["k1"].public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    signed = f"{b64({'alg': 'HS256', 'typ': 'at+jwt', 'kid': 'k1'})}.{b64(door.issuer.claims())}"
    for secret in (pem, pem.strip(), json.dumps(jwk_of(door.issuer.keys["k1"], "k1")).encode()):
        mac = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
        await door.refused(f"{signed}.{b64(mac)}", "identity.algorithm")


async def test_an_algorithm_that_is_not_configured_is_refused(door: Door) -> None:
    await door.refused(door.issuer.token(alg="RS512"), "identity.algorithm")
    await door.refused(door.issuer.token(alg="PS256"), "identity.algorithm")
    door.issuer.extra = [jwk_of(ec_key("e"), "ec")]
    await door.refused(door.issuer.token(alg="ES256", key=ec_key("e"), kid="ec"), "identity.algorithm")


async def test_a_key_is_used_with_its_own_algorithm_alone() -> None:
    """The table allows both, the key says one."""
    door = Door(algorithms=("RS256", "RS512"))
    await door.refused(door.issuer.token(alg="RS512"), "identity.key")


@pytest.mark.parametrize("alg", [["RS256"], {"a": 1}, 5, True])
async def test_a_key_whose_algorithm_is_no_text_is_not_used(alg: Any) -> None:
    """A key set may say anything, and is answered all the same."""
    door = Door()
    for key in (published := door.issuer.jwks())["keys"]:
        key["alg"] = alg
    door.issuer.documents["/jwks"] = published
    await door.refused(door.issuer.token(), "identity.key")


async def test_a_token_signed_with_another_key_is_refused(door: Door) -> None:
    await door.refused(door.issuer.token(key=rsa_key("attacker")), "identity.signature")
    good = door.issuer.token()
    head, _, signature = good.split(".")
    await door.refused(f"{head}.{b64(door.issuer.claims(sub='bob'))}.{signature}", "identity.signature")
    await door.refused(f"{head}.{good.split('.')[1]}.{b64(b'short')}", "identity.signature")


async def test_two_keys_of_one_name_verify_nothing(door: Door) -> None:
    door.issuer.extra = [jwk_of(rsa_key("second"), "k1")]
    await door.refused(door.issuer.token(), "identity.signature")


async def test_a_token_without_the_name_of_its_key_needs_there_to_be_one(door: Door) -> None:
    assert (await door.identify(door.issuer.token(kid=None))).user == "ann"
    door.clock.at += 400
    door.issuer.now = door.clock.at
    door.issuer.extra = [jwk_of(rsa_key("second"), "k2")]
    await door.refused(door.issuer.token(kid=None), "identity.signature")


@pytest.mark.parametrize("kid", ["../../etc/passwd", "k1' OR 1=1", "https://attacker.example/key", "k1\x00", "K1"])
async def test_a_strange_name_of_a_key_names_none(door: Door, kid: str) -> None:
    await door.refused(door.issuer.token(kid=kid), "identity.key")
    assert set(door.issuer.asked) <= {"/.well-known/openid-configuration", "/jwks"}


async def test_a_weak_key_verifies_nothing(door: Door) -> None:
    weak = rsa_key("weak", 1024)
    door.issuer.extra = [jwk_of(weak, "weak")]
    with pytest.warns(Warning, match="below the minimum"):
        token = door.issuer.token(key=weak, kid="weak")
    await door.refused(token, "identity.signature")


@pytest.mark.parametrize(
    "jwks",
    [
        b"[]",
        b"{}",
        b'{"keys":{}}',
        b'{"keys":[1]}',
        b'{"keys":[],"keys":[]}',
        b"{",
        b'{"keys":[{"kty":"oct","k":"AAAA"}]}',
    ],
)
def test_a_key_set_that_is_none_or_publishes_secrets_is_refused(jwks: bytes) -> None:
    with pytest.raises(BadKeys):
        IssuerKeys.parse(jwks)


def test_keys_for_other_purposes_are_passed_over() -> None:
    key = rsa_key("k")
    odd = [jwk_of(key, "enc", use="enc"), jwk_of(key, "sign", key_ops=["sign"]), {"kty": "EC", "crv": "secp256k1"}]
    keys = IssuerKeys.parse(json.dumps({"keys": odd}).encode())
    assert not keys.knows("enc", "RS256") and not keys.knows("sign", "RS256") and not keys.knows(None, "ES256")


# What it says


async def test_a_token_that_names_another_issuer_is_refused(door: Door) -> None:
    for iss in (f"{URL}/", URL.upper(), "https://attacker.example", "", f"{URL} "):
        refused = await door.refused(door.issuer.token(iss=iss), "identity.issuer")
        assert "attacker" not in str(refused.body)
    assert door.issuer.asked == []


async def test_one_issuer_does_not_sign_for_another() -> None:
    """Both are configured; the token says one and is signed by the other."""
    one, other = Issuer(now=NOW), Issuer("https://other.example", now=NOW)
    tables = [one.config(), other.config(name="other")]
    clock = Clock()
    by_url = {issuer.url: issuer for issuer in (one, other)}
    issuers = Issuers(tables, clock, lambda table: by_url[table.issuer].transport())
    with pytest.raises(Refusal) as caught:
        await issuers.identify(other.token(iss=one.url))
    assert caught.value.body.rule == "identity.signature"


async def test_a_token_for_another_audience_is_refused(door: Door) -> None:
    audiences: list[Any] = ["remit2", "REMIT", "", [], ["other"], None, {"remit": 1}, ["remit", 1], 7]
    for aud in audiences:
        await door.refused(
            door.issuer.token(aud=aud) if isinstance(aud, str | list) else _raw(door, aud=aud), "identity.audience"
        )
    assert (await door.identify(door.issuer.token(aud=["other", "remit"]))).user == "ann"


def _raw(door: Door, **changes: Any) -> str:
    """Signed, whatever PyJWT thinks of the claims."""
    signed = f"{b64({'alg': 'RS256', 'typ': 'at+jwt', 'kid': 'k1'})}.{b64(door.issuer.claims(**changes))}"
    return f"{signed}.{b64(_rs256(door.issuer.keys['k1'], signed))}"


async def test_a_token_of_another_client_is_refused() -> None:
    door = Door(clients=("portal",))
    assert (await door.identify(door.issuer.token())).client == "portal"
    await door.refused(door.issuer.token(client_id="other"), "identity.client")
    await door.refused(door.issuer.token(client_id=None), "identity.client")
    await door.refused(door.issuer.token(azp="other"), "identity.client")
    await door.refused(_raw(door, client_id=["portal"]), "identity.client")


@pytest.mark.parametrize("name", ["exp", "iat"])
@pytest.mark.parametrize("value", [None, "soon", True, -1, [], 2**41])
async def test_a_token_without_a_time_it_needs_is_refused(door: Door, name: str, value: Any) -> None:
    await door.refused(_raw(door, **{name: value}), "identity.time")


async def test_an_expired_token_is_refused(door: Door) -> None:
    token = door.issuer.token()
    door.clock.at = NOW + 329.9
    assert (await door.identify(token)).user == "ann"
    door.clock.at = NOW + 330
    await door.refused(token, "identity.expired")


async def test_a_token_from_the_future_is_refused(door: Door) -> None:
    await door.refused(door.issuer.token(iat=NOW + 31), "identity.future")
    await door.refused(door.issuer.token(nbf=NOW + 31), "identity.future")
    assert (await door.identify(door.issuer.token(iat=NOW + 30, nbf=NOW + 30))).user == "ann"


async def test_a_token_that_lives_for_years_is_refused(door: Door) -> None:
    await door.refused(door.issuer.token(iat=NOW - 90_000, exp=NOW + 10**8), "identity.age")


@pytest.mark.parametrize(
    ("accept", "typ", "claims", "good"),
    [
        (("at+jwt",), "at+jwt", {}, True),
        (("at+jwt",), "AT+JWT", {}, True),
        (("at+jwt",), "application/at+jwt", {}, True),
        (("at+jwt",), "JWT", {}, False),
        (("at+jwt",), None, {}, False),
        (("at+jwt",), "dlg+jwt", {}, False),
        (("at+jwt",), "logout+jwt", {}, False),
        (("jwt",), "JWT", {}, True),
        (("jwt",), None, {}, True),
        (("jwt",), "at+jwt", {}, False),
        (("jwt",), "JWT", {"nonce": "n"}, False),
        (("jwt",), "JWT", {"typ": "ID"}, False),
        (("jwt",), "JWT", {"typ": "Refresh"}, False),
        (("id",), "JWT", {"nonce": "n", "azp": "portal"}, True),
        (("id",), "at+jwt", {}, False),
        (("id",), "JWT", {"events": {"http://schemas.openid.net/event/backchannel-logout": {}}}, False),
        (("at+jwt", "id"), "JWT", {"nonce": "n"}, True),
        (("at+jwt",), "at+jwt", {"cnf": {"jkt": "x"}}, False),
    ],
)
async def test_a_token_of_another_kind_is_refused(
    accept: Any, typ: str | None, claims: dict[str, Any], good: bool
) -> None:
    door = Door(accept=accept)
    token = door.issuer.token(header={"typ": typ}, **claims) if typ else _without_typ(door, **claims)
    if good:
        assert (await door.identify(token)).user == "ann"
    else:
        await door.refused(token, "identity.type")


def _without_typ(door: Door, **claims: Any) -> str:
    signed = f"{b64({'alg': 'RS256', 'kid': 'k1'})}.{b64(door.issuer.claims(**claims))}"
    return f"{signed}.{b64(_rs256(door.issuer.keys['k1'], signed))}"


async def test_an_id_token_for_several_names_who_asked_for_it() -> None:
    door = Door(accept=("id",))
    await door.refused(door.issuer.token(header={"typ": "JWT"}, aud=["remit", "b"], client_id=None), "identity.client")


async def test_what_is_required_must_be_said_exactly() -> None:
    door = Door(require={"hd": "example.com", "acr": ("2", "3"), "amr.mfa": True})
    good: dict[str, Any] = {"hd": "example.com", "acr": "3", "amr": {"mfa": True}}
    assert (await door.identify(door.issuer.token(**good))).user == "ann"
    for wrong in ({"hd": "EXAMPLE.com"}, {"hd": None}, {"acr": "1"}, {"acr": 3}, {"amr": {"mfa": 1}}, {"amr": "mfa"}):
        refused = await door.refused(door.issuer.token(**good | wrong), "identity.claim")
        assert next(iter(wrong)) in refused.body.message


async def test_an_address_that_nobody_verified_is_not_a_user() -> None:
    door = Door(claims=_claims(user="email"))
    good: dict[str, Any] = {"email": "ann@example.com", "email_verified": True}
    assert (await door.identify(door.issuer.token(**good))).user == "ann@example.com"
    for said in (None, False, "true", 1):
        await door.refused(door.issuer.token(**good | {"email_verified": said}), "identity.claim")
    trusting = Door(claims=_claims(user="email"), trust_unverified_email=True)
    assert (await trusting.identify(trusting.issuer.token(email="ann@example.com"))).user == "ann@example.com"


async def test_a_user_without_the_claim_is_told_which_and_by_whom(door: Door) -> None:
    refused = await door.refused(door.issuer.token(sub=None), "identity.claim")
    assert "corp" in refused.body.message and "sub" in refused.body.message and "claims.user" in refused.body.ask


async def test_a_token_without_an_id_is_named_by_its_digest(door: Door) -> None:
    token = door.issuer.token(jti=None)
    assert (await door.identify(token)).token == "sha256:" + hashlib.sha256(token.encode()).hexdigest()


# Keys over time


async def test_keys_are_fetched_once_and_again_when_they_are_old(door: Door) -> None:
    for _ in range(5):
        await door.identify(door.issuer.token())
    assert door.issuer.asked == ["/.well-known/openid-configuration", "/jwks"]
    door.clock.at += 300
    await door.identify(door.issuer.token())
    assert len(door.issuer.asked) == 4


async def test_a_new_key_is_found_and_the_old_one_is_dead(door: Door) -> None:
    old = door.issuer.token()
    await door.identify(old)
    door.issuer.rotate("k2")
    door.clock.at += 10
    assert (await door.identify(door.issuer.token())).user == "ann"
    await door.refused(old, "identity.key")


async def test_a_flood_of_unknown_keys_is_one_fetch(door: Door) -> None:
    await door.identify(door.issuer.token())
    door.clock.at += 10
    before, refused = len(door.issuer.asked), None
    for number in range(50):
        refused = await door.refused(door.issuer.token(kid=f"x{number}"), "identity.key")
    assert len(door.issuer.asked) - before == 2
    assert refused is not None and refused.body.retry_after and 0 < refused.body.retry_after <= 10


async def test_many_at_once_wait_for_one_fetch(door: Door) -> None:
    token = door.issuer.token()
    await asyncio.gather(*(door.identify(token) for _ in range(20)))
    assert len(door.issuer.asked) == 2
    door.issuer.rotate("k2")
    door.clock.at += 10
    fresh = door.issuer.token()
    await asyncio.gather(*(door.identify(fresh) for _ in range(20)))
    assert len(door.issuer.asked) == 4


async def test_cached_keys_are_used_in_an_outage_and_only_so_long() -> None:
    door = Door(outage=600.0)
    door.issuer.now = None
    await door.identify(_at(door))
    door.issuer.down = True
    door.clock.at = NOW + 899
    assert (await door.identify(_at(door))).user == "ann"
    assert door.issuers.troubles() == {"corp": "ConnectError refused"}
    # An unknown key may be a new one: nobody can tell.
    await door.refused(_at(door, kid="k9"), "identity.unavailable", Code.TARGET_UNAVAILABLE)
    door.clock.at = NOW + 901
    refused = await door.refused(_at(door), "identity.unavailable", Code.TARGET_UNAVAILABLE)
    assert refused.body.retryable and "corp" in refused.body.message
    door.issuer.down = False
    door.clock.at += 15
    assert (await door.identify(_at(door))).user == "ann" and door.issuers.troubles() == {}


def _at(door: Door, **changes: Any) -> str:
    door.issuer.now = door.clock.at
    return door.issuer.token(**changes)


async def test_an_issuer_that_does_not_answer_is_not_asked_by_every_call(door: Door) -> None:
    door.issuer.documents["/jwks"] = (500, b"", {})
    for _ in range(10):
        await door.refused(door.issuer.token(), "identity.unavailable", Code.TARGET_UNAVAILABLE)
    assert door.issuer.asked.count("/jwks") == 1


@pytest.mark.parametrize("issuer", [f"{URL}/", "https://attacker.example", None, 7])
async def test_a_discovery_document_of_another_issuer_is_refused(door: Door, issuer: Any) -> None:
    door.issuer.documents["/.well-known/openid-configuration"] = {"issuer": issuer, "jwks_uri": f"{URL}/jwks"}
    await door.refused(door.issuer.token(), "identity.unavailable", Code.TARGET_UNAVAILABLE)
    assert "/jwks" not in door.issuer.asked


@pytest.mark.parametrize(
    "uri",
    [
        "http://login.example.com/jwks",
        "file:///etc/passwd",
        "http://127.0.0.1/jwks",
        "https://127.0.0.1/jwks",
        "",
        None,
    ],
)
async def test_a_discovery_document_sends_nobody_to_plain_http(door: Door, uri: Any) -> None:
    door.issuer.documents["/.well-known/openid-configuration"] = {"issuer": URL, "jwks_uri": uri}
    await door.refused(door.issuer.token(), "identity.unavailable", Code.TARGET_UNAVAILABLE)
    assert "/jwks" not in door.issuer.asked


@pytest.mark.parametrize(
    "document",
    [
        (302, b"", {"location": "https://attacker.example/jwks"}),
        (200, b"x" * (257 * 1024), {}),
        (200, b"no", {}),
        (204, b"", {}),
    ],
)
@pytest.mark.parametrize("path", ["/jwks", "/.well-known/openid-configuration"])
async def test_an_issuer_is_where_it_says_and_says_what_it_should(door: Door, path: str, document: Any) -> None:
    door.issuer.documents[path] = document
    await door.refused(door.issuer.token(), "identity.unavailable", Code.TARGET_UNAVAILABLE)


async def test_a_name_of_an_issuer_that_leads_to_this_machine_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS says what it likes: nothing is sent to a service of this machine in the name of an issuer elsewhere."""
    heard = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.read(100))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    monkeypatch.setattr("remit_broker.adapters.issuer_source.getproxies", dict)
    monkeypatch.setattr(httpx.AsyncClient, "__init__", _direct(httpx.AsyncClient.__init__))

    async def resolve(*_: Any, **__: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    url = f"https://login.example.com:{port}"
    async with server:
        source = IssuerSource(Issuer(url).config(issuer=url), time.monotonic)
        with pytest.raises(Refusal) as caught:
            await source.look()
    assert caught.value.body.rule == "identity.unavailable" and "this machine" in caught.value.body.message
    assert heard == b""


def _direct(init: Any) -> Any:
    """The client without the environment's proxies, which would resolve names themselves."""
    return lambda self, **options: init(self, **{**options, "trust_env": False})


async def test_an_id_token_of_another_login_logs_nobody_in(door: Door) -> None:
    """OIDC Core §3.1.3.7: of this login by its nonce, for this broker as the provider's client, an ID token, signed."""
    table = door.issuer.config()

    async def logged_in(nonce: str = "n-1", **claims: Any) -> str:
        token = door.issuer.token(
            header={"typ": "JWT"}, **{"aud": "remit-client", "client_id": None, "nonce": "n-1", **claims}
        )
        return (await door.issuers.logged_in(table, token, "remit-client", nonce)).user

    assert await logged_in() == "ann"
    for rule, change in (
        ("nonce", {"nonce": "n-2"}), ("nonce", {"nonce": None}), ("audience", {"aud": "portal"}),
        ("client", {"azp": "portal", "aud": ["remit-client", "portal"]}), ("expired", {"exp": NOW - 100, "iat": NOW - 400}),
    ):  # fmt: skip
        with pytest.raises(Refusal) as caught:
            await logged_in(**change)
        assert caught.value.body.rule == f"identity.{rule}", change
    with pytest.raises(Refusal):
        await logged_in(nonce="")


# The table


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"issuer": "http://login.example.com"}, "issuers.corp.issuer"),
        ({"issuer": "https://u:p@login.example.com"}, "issuers.corp.issuer"),
        ({"issuer": "https://login.example.com?x=1"}, "issuers.corp.issuer"),
        ({"issuer": ""}, "issuers.corp.issuer"),
        ({"jwks": "ftp://x"}, "issuers.corp.jwks"),
        ({"audience": ()}, "issuers.corp.audience"),
        ({"audience": ("",)}, "issuers.corp.audience"),
        ({"algorithms": ()}, "issuers.corp.algorithms"),
        ({"operators": {"admin": ("everybody",)}}, "issuers.corp.operators.admin"),
        ({"require": {"a..b": "x"}}, "issuers.corp.require"),
        ({"claims": _claims(user="a..b")}, "issuers.corp.claims.user"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_meant_is_refused(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(BadIssuer) as caught:
        check_issuers((Issuer().config(**changes),), DevelopmentConfig())
    assert caught.value.key == key and caught.value.ask


def test_two_issuers_whose_users_could_be_mistaken_for_each_other_are_refused() -> None:
    from remit_broker.core.claims_map import Source

    one = Issuer().config()
    other = Issuer().config(name="other", issuer="https://other.example")
    prefixed = Issuer().config(
        name="other", issuer="https://other.example", claims=_claims(user=Source(claim="sub", prefix="other:"))
    )
    corp = Issuer().config(claims=_claims(user=Source(claim="sub", prefix="corp:")))
    for pair in ((one, other), (one, prefixed)):
        with pytest.raises(BadIssuer, match="could have the name"):
            check_issuers(pair, DevelopmentConfig())
    check_issuers((corp, prefixed), DevelopmentConfig())


def test_the_development_issuer_does_not_start_beside_a_real_one() -> None:
    from remit_broker.core.claims_map import Source

    corp = Issuer().config(claims=_claims(user=Source(claim="sub", prefix="corp:")))
    check_issuers((), DevelopmentConfig(issuer=True))
    with pytest.raises(BadIssuer, match="beside corp"):
        check_issuers((corp,), DevelopmentConfig(issuer=True))
    check_issuers((corp,), DevelopmentConfig(issuer=True, beside_real=True))
