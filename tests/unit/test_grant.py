"""One grant: what is accepted, in which order things are checked, and that nothing unverified can pass for verified."""

from __future__ import annotations

import copy
import json
import math
import pickle
from typing import Any

import msgspec
import pytest

from remit_schemas import jws
from remit_schemas.base64url import encode
from remit_schemas.budget import Budget
from remit_schemas.claims import labels_within, meet_labels
from remit_schemas.errors import Code, Refusal
from remit_schemas.grant import Actor, Claims, Grant, UnverifiedGrant, mint, parse, verify, verify_ancestor
from remit_schemas.keys import KeySet, PublicKey, SigningKey
from remit_schemas.scope import Detail, Scope

KEY = SigningKey.from_seed(bytes(range(32)))
CHECKPOINTS = SigningKey.from_seed(bytes(32), use="checkpoint")
STRANGER = SigningKey.from_seed(b"\x01" * 32)
KEYS = KeySet([KEY.public, CHECKPOINTS.public])
ISSUER, NOW = "https://remit.example", 1_800_000_000
TXN, HOP = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"

ROOT = Claims(
    iss=ISSUER, sub="ann@example.com", tenant="default", aud="planner", iat=NOW, exp=NOW + 60, jti=f"{TXN}.{HOP}.1",
    txn=TXN, depth=0, max_depth=4, rec="0" * 64, authorization_details=(Detail(resource="mcp/files/*"),),
    budget=Budget(1, 2, 3), labels=("*",),
)  # fmt: skip
CHILD = msgspec.structs.replace(
    ROOT, aud="researcher", depth=1, act=Actor("planner"), par="A" * 43, jti=f"{TXN}.{HOP[::-1]}.1"
)


def raw(claims: Claims = CHILD, **changes: Any) -> dict[str, Any]:
    """The claims as JSON values; a change to ``...`` leaves the claim out."""
    values = {**msgspec.to_builtins(claims), **changes}
    return {name: value for name, value in values.items() if value is not ...}


def signed(payload: Any, key: SigningKey = KEY, typ: str = "dlg+jwt") -> str:
    """Whatever ``payload`` is, rightly signed."""
    return jws.sign(payload if isinstance(payload, bytes) else json.dumps(payload).encode(), typ, key)


def with_header(header: Any, key: SigningKey = KEY) -> str:
    """A grant with any header, rightly signed."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    signing_input = f"{encode(text)}.{encode(json.dumps(raw()).encode())}"
    return f"{signing_input}.{encode(key.sign(signing_input.encode()))}"


def check(token: str, *, audience: str = "researcher", now: float = NOW, keys: KeySet = KEYS) -> Grant:
    return verify(parse(token), keys, issuer=ISSUER, audience=audience, now=now)


def refused(token: str, **how: Any) -> tuple[Code, str]:
    with pytest.raises(Refusal) as caught:
        check(token, **how)
    body = caught.value.body
    assert body.message
    assert body.ask
    assert body.effect == "none"
    return body.code, body.rule


def invalid(token: str, **how: Any) -> str:
    code, rule = refused(token, **how)
    assert code is Code.GRANT_INVALID
    return rule


HEADER = {"alg": "Ed25519", "typ": "dlg+jwt", "kid": KEY.kid}


def test_what_was_minted_verifies() -> None:
    token = mint(CHILD, KEY)
    grant = check(token)
    assert grant.claims == CHILD
    assert grant.scope == Scope.of(CHILD.authorization_details)
    assert (str(grant.jti), grant.token, grant.kid) == (CHILD.jti, token, KEY.kid)
    assert grant.chain == ("researcher", "planner")
    assert grant.digest == parse(token).digest


def test_a_root_has_neither_actors_nor_parent_on_the_wire() -> None:
    payload = json.loads(parse(mint(ROOT, KEY)).parts.payload)
    assert not {"act", "par", "cnf"} & set(payload)
    assert check(mint(ROOT, KEY), audience="planner").chain == ("planner",)


def test_the_header_is_exactly_that_of_the_contract() -> None:
    assert json.loads(parse(mint(CHILD, KEY)).parts.header) == HEADER
    for header in (HEADER, dict(reversed(HEADER.items()))):
        assert check(with_header(header)).claims == CHILD


# -- Grant is another type --------------------------------------------------------------------------------------------


def test_a_grant_cannot_be_built_directly() -> None:
    for attempt in (lambda: Grant(), lambda: Grant(CHILD), lambda: type("Forged", (Grant,), {})):  # type: ignore[call-arg]
        with pytest.raises(TypeError):
            attempt()


def test_a_grant_cannot_be_changed_copied_or_pickled() -> None:
    grant = check(mint(CHILD, KEY))
    for name in ("claims", "scope", "chain", "new"):
        with pytest.raises(AttributeError):
            setattr(grant, name, None)
    with pytest.raises(AttributeError):
        del grant.claims
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError):
            duplicate(grant)


def test_an_unverified_grant_is_no_grant() -> None:
    unverified = parse(mint(CHILD, STRANGER))
    assert isinstance(unverified, UnverifiedGrant)
    assert not isinstance(unverified, Grant)
    assert unverified.claims == CHILD  # what it says may be read, under that name
    assert not hasattr(unverified, "scope")


# -- form -------------------------------------------------------------------------------------------------------------


def test_size_is_checked_before_anything_is_parsed() -> None:
    for token in ("x" * 8193, "." * 1_000_000, "é" * 8193):
        assert refused(token) == (Code.TOO_LARGE, "grant.size")
    assert invalid("x" * 8192) == "grant.form"


@pytest.mark.parametrize(
    "damage",
    [
        lambda t: "",
        lambda t: "..",
        lambda t: t + ".",
        lambda t: "." + t,
        lambda t: t + ".x",
        lambda t: t.rsplit(".", 1)[0],
        lambda t: t.rsplit(".", 1)[0] + ".",
        lambda t: t.replace(".", "..", 1),
        lambda t: t + "=",
        lambda t: t + "==",
        lambda t: t + "\n",
        lambda t: " " + t,
        lambda t: t.replace(".", " .", 1),
        lambda t: t.replace(".", "=.", 1),
        lambda t: t[:40] + "\n" + t[40:],
        lambda t: t[:40] + "?" + t[40:],
        lambda t: t[:40] + "\x00" + t[40:],
        lambda t: t[:40] + "é" + t[40:],
        lambda t: t + "AAA",
        lambda t: json.dumps({"protected": t.split(".")[0], "payload": t.split(".")[1], "signature": t.split(".")[2]}),
    ],
)  # fmt: skip
def test_non_canonical_base64url_is_refused(damage: Any) -> None:
    assert invalid(damage(mint(CHILD, KEY))) == "grant.form"


def test_non_zero_unused_bits_are_refused_in_every_part() -> None:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    header, payload, signature = mint(CHILD, KEY).split(".")
    changed = 0
    for index, part in enumerate((header, payload, signature)):
        if len(part) % 4:  # a part whose last character has unused bits
            sibling = part[:-1] + alphabet[alphabet.index(part[-1]) ^ 1]
            parts = [header, payload, signature]
            parts[index] = sibling
            assert invalid(".".join(parts)) == "grant.form"
            changed += 1
    assert changed


def test_standard_base64_characters_are_refused() -> None:
    # One of many payloads certainly encodes to a text with "-" or "_" in it.
    for n in range(200):
        token = signed(raw(sub=f"ann{n}?>~ÿ"))
        if "-" in token.split(".")[1] or "_" in token.split(".")[1]:
            head, payload, tail = token.split(".")
            assert invalid(f"{head}.{payload.replace('-', '+').replace('_', '/')}.{tail}") == "grant.form"
            return
    pytest.fail("no payload had a character to replace")


# -- header -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        HEADER | {"crit": ["exp"]},
        HEADER | {"crit": []},
        HEADER | {"b64": False},
        HEADER | {"b64": True},
        HEADER | {"jku": "https://evil.example/jwks.json"},
        HEADER | {"jwk": STRANGER.public.to_jwk()},
        HEADER | {"x5u": "https://evil.example/cert"},
        HEADER | {"x5c": []},
        HEADER | {"x5t": "a"},
        HEADER | {"cty": "JWT"},
        HEADER | {"zip": "DEF"},
        HEADER | {"Alg": "none"},
        HEADER | {"enc": "A128GCM"},
        {"alg": "Ed25519", "typ": "dlg+jwt"},
        {"alg": "Ed25519", "kid": KEY.kid},
        {"typ": "dlg+jwt", "kid": KEY.kid},
        HEADER | {"kid": None},
        HEADER | {"kid": 1},
        HEADER | {"kid": [KEY.kid]},
        HEADER | {"kid": ""},
        HEADER | {"kid": "x" * 129},
        HEADER | {"alg": ["Ed25519"]},
        HEADER | {"typ": {"dlg+jwt": 1}},
        {},
        [],
        "Ed25519",
        None,
        b'{"alg":"Ed25519","alg":"Ed25519","typ":"dlg+jwt","kid":"%s"}' % KEY.kid.encode(),
        b'{"alg":"Ed25519","typ":"dlg+jwt","kid":"a","kid":"%s"}' % KEY.kid.encode(),
        b'{"alg":"Ed25519","typ":"dlg+jwt","kid":NaN}',
        b'{"alg":"Ed25519","typ":"dlg+jwt","kid":"%s"} {}' % KEY.kid.encode(),
        b'\xef\xbb\xbf{"alg":"Ed25519","typ":"dlg+jwt","kid":"%s"}' % KEY.kid.encode(),
        b"\xff",
        b"[" * 500,
    ],
    ids=repr,
)
def test_a_header_with_anything_but_alg_typ_and_kid_is_refused(header: Any) -> None:
    assert invalid(with_header(header)) == "grant.header"


def test_a_header_of_a_kilobyte_is_refused() -> None:
    assert invalid(with_header(json.dumps(HEADER).encode() + b" " * 1024)) == "grant.header"


@pytest.mark.parametrize(
    "alg", ["none", "None", "NONE", "", "HS256", "EdDSA", "ed25519", "Ed448", "ES256", "RS256", "PS512"]
)
def test_alg_is_that_of_the_key(alg: str) -> None:
    assert invalid(with_header(HEADER | {"alg": alg})) == "grant.alg"


def test_a_flood_of_unknown_kids_costs_neither_cryptography_nor_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> bool:
        raise AssertionError("reached")

    token = with_header(HEADER | {"kid": "unknown"})
    monkeypatch.setattr(PublicKey, "verify", never)
    monkeypatch.setattr("remit_schemas.grant.loads", never)
    assert invalid(token) == "grant.kid"


@pytest.mark.parametrize("typ", ["JWT", "at+jwt", "DLG+JWT", "application/dlg+jwt", ""])
def test_another_typ_is_refused(typ: str) -> None:
    assert invalid(signed(raw(), typ=typ)) == "grant.typ"


# -- signature --------------------------------------------------------------------------------------------------------


def test_every_changed_character_is_refused() -> None:
    token = mint(CHILD, KEY)
    for index, character in enumerate(token):
        if character != ".":
            assert invalid(token[:index] + ("A" if character != "A" else "B") + token[index + 1 :])


def test_a_stranger_cannot_sign() -> None:
    assert invalid(mint(CHILD, STRANGER)) == "grant.kid"
    assert invalid(with_header(HEADER, STRANGER)) == "grant.signature"


def test_signature_and_claims_of_two_grants_do_not_mix() -> None:
    one, two = mint(CHILD, KEY), mint(msgspec.structs.replace(CHILD, exp=NOW + 61), KEY)
    assert invalid(f"{one.rsplit('.', 1)[0]}.{two.rsplit('.', 1)[1]}") == "grant.signature"


def test_a_signature_of_another_length_is_refused() -> None:
    head, signature = mint(CHILD, KEY).rsplit(".", 1)
    for other in (signature[:40], signature + "AAAA", "AA"):
        assert invalid(f"{head}.{other}") == "grant.signature"


def test_a_checkpoint_key_signs_no_grants() -> None:
    assert invalid(signed(raw(), CHECKPOINTS)) == "grant.key_use"
    with pytest.raises(ValueError, match="does not sign grants"):
        mint(CHILD, CHECKPOINTS)


# -- issuer, audience, times ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("iss", ["https://evil.example", ISSUER + "/", ISSUER.upper(), "", None, [ISSUER], ...])
def test_another_issuer_is_refused(iss: Any) -> None:
    assert invalid(signed(raw(iss=iss))) == "grant.issuer"


@pytest.mark.parametrize("aud", [["researcher"], ["researcher", "critic"], "critic", "Researcher", "", None, {}, ...])
def test_audience_must_be_exactly_one_string(aud: Any) -> None:
    assert invalid(signed(raw(aud=aud))) == "grant.audience"


def test_no_skew_on_exp() -> None:
    token = mint(CHILD, KEY)
    assert check(token, now=NOW + 59.999).claims == CHILD
    for now in (NOW + 60, NOW + 60.001, NOW + 1e9, math.inf):
        assert refused(token, now=now) == (Code.GRANT_EXPIRED, "grant.expired")


def test_thirty_seconds_of_skew_on_iat() -> None:
    token = mint(CHILD, KEY)
    assert check(token, now=NOW - 30).claims == CHILD
    assert refused(token, now=NOW - 30.001) == (Code.GRANT_INVALID, "grant.iat")


def test_a_clock_that_is_not_a_number_refuses() -> None:
    assert invalid(mint(CHILD, KEY), now=math.nan) == "grant.iat"


@pytest.mark.parametrize("claim", ["iat", "exp"])
@pytest.mark.parametrize("value", [..., None, "1800000000", 1.8e9, 1800000000.5, True, [1], {}])
def test_times_are_required_and_integers(claim: str, value: Any) -> None:
    assert invalid(signed(raw(**{claim: value}))) == "grant.times"


def test_exp_must_be_after_iat() -> None:
    token = signed(raw(iat=NOW + 20, exp=NOW + 20))
    assert invalid(token) == "grant.times"


# -- claims -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"nbf": 0}, "grant.claims"),
        ({"scope": "mcp/**"}, "grant.claims"),
        ({"Sub": "root"}, "grant.claims"),
        ({"may_act": {}}, "grant.claims"),
        ({"sub": ...}, "grant.claims"),
        ({"sub": ""}, "grant.claims"),
        ({"sub": None}, "grant.claims"),
        ({"sub": ["ann"]}, "grant.claims"),
        ({"sub": "ann\n"}, "grant.claims"),
        ({"sub": "a" * 257}, "grant.claims"),
        ({"tenant": ...}, "grant.claims"),
        ({"tenant": "De fault"}, "grant.claims"),
        ({"tenant": "default\n"}, "grant.claims"),
        ({"exp": 2**53 - 1, "iat": -1}, "grant.claims"),
        ({"depth": 1.0}, "grant.claims"),
        ({"depth": True}, "grant.claims"),
        ({"depth": "1"}, "grant.claims"),
        ({"depth": -1}, "grant.claims"),
        ({"depth": ...}, "grant.claims"),
        ({"max_depth": 17}, "grant.claims"),
        ({"max_depth": 0}, "grant.depth"),
        ({"depth": 0}, "grant.depth"),
        ({"depth": 2}, "grant.depth"),
        ({"act": ...}, "grant.depth"),
        ({"act": ..., "depth": 0}, "grant.par"),
        ({"par": ...}, "grant.par"),
        ({"par": None}, "grant.claims"),
        ({"cnf": None}, "grant.claims"),
        ({"act": None}, "grant.claims"),
        ({"act": {"sub": "planner", "act": None}}, "grant.claims"),
        ({"act": {"sub": "planner", "iss": "x"}}, "grant.claims"),
        ({"act": {"sub": "Planner"}}, "grant.claims"),
        ({"act": {"sub": "planner\n"}}, "grant.claims"),
        ({"act": {"sub": "broker"}}, "grant.claims"),
        ({"act": "planner"}, "grant.claims"),
        ({"act": {}}, "grant.claims"),
        ({"par": "A" * 42}, "grant.claims"),
        ({"par": "A" * 42 + "="}, "grant.claims"),
        ({"par": "A" * 42 + "\n"}, "grant.claims"),
        ({"rec": ...}, "grant.claims"),
        ({"rec": "0" * 63}, "grant.claims"),
        ({"rec": "A" * 64}, "grant.claims"),
        ({"cnf": {}}, "grant.claims"),
        ({"cnf": {"jkt": "A" * 43, "x5t#S256": "b"}}, "grant.claims"),
        ({"authorization_details": ...}, "grant.claims"),
        ({"authorization_details": {}}, "grant.claims"),
        ({"authorization_details": [{"resource": "mcp/a/b", "type": "other"}]}, "grant.claims"),
        ({"authorization_details": [{"resource": "mcp/a/b", "actions": ["read"]}]}, "grant.claims"),
        ({"authorization_details": [{"resource": "mcp/a/b", "args": {"x": {"prefix": 1}}}]}, "grant.scope"),
        ({"authorization_details": [{"resource": "mcp/a/b"}] * 65}, "grant.scope"),
        ({"authorization_details": [{"resource": "no such thing"}]}, "grant.scope"),
        ({"budget": ...}, "grant.claims"),
        ({"budget": {"usd_micros": 1, "tokens": 1}}, "grant.claims"),
        ({"budget": {"usd_micros": 1, "tokens": 1, "calls": 1, "gold": 1}}, "grant.claims"),
        ({"budget": {"usd_micros": -1, "tokens": 1, "calls": 1}}, "grant.claims"),
        ({"budget": {"usd_micros": 1.5, "tokens": 1, "calls": 1}}, "grant.claims"),
        ({"budget": {"usd_micros": None, "tokens": 1, "calls": 1}}, "grant.claims"),
        ({"labels": ...}, "grant.claims"),
        ({"labels": "*"}, "grant.claims"),
        ({"labels": ["*", "pii"]}, "grant.labels"),
        ({"labels": ["pii", "pii"]}, "grant.labels"),
        ({"labels": ["PII"]}, "grant.labels"),
        ({"labels": [""]}, "grant.claims"),
        ({"jti": ...}, "grant.claims"),
        ({"jti": TXN}, "grant.jti"),
        ({"jti": f"{TXN}.{HOP}.0"}, "grant.jti"),
        ({"jti": f"{TXN}.{HOP}.1\n"}, "grant.jti"),
        ({"jti": f"{TXN[::-1]}.{HOP}.1"}, "grant.jti"),
        ({"jti": f"{TXN.upper()}.{HOP}.1"}, "grant.jti"),
        ({"txn": TXN[::-1]}, "grant.jti"),
        ({"txn": "0" * 32, "jti": f"{'0' * 32}.{HOP}.1"}, "grant.jti"),
    ],
    ids=repr,
)
def test_claims_are_typed_consistent_and_closed(change: dict[str, Any], rule: str) -> None:
    assert invalid(signed(raw(**change))) == rule


@pytest.mark.parametrize(
    "payload",
    [
        b'{"iss":"a","iss":"b"}',
        json.dumps(raw()).replace('"calls"', '"calls": 1, "calls"').encode(),
        json.dumps(raw()).replace('"tokens": 2', '"tokens": NaN').encode(),
        json.dumps(raw()).replace('"tokens": 2', '"tokens": Infinity').encode(),
        json.dumps(raw()).replace('"tokens": 2', '"tokens": 9007199254740992').encode(),
        json.dumps(raw()).replace('"tokens": 2', '"tokens": 1e999').encode(),
        json.dumps(raw()).encode() + b"{}",
        b"\xff\xfe",
        b"[" * 3000,
        b'{"a":' * 1000,
    ],
)
def test_json_that_two_parsers_could_read_differently_is_refused(payload: bytes) -> None:
    assert invalid(signed(payload)) == "grant.json"


@pytest.mark.parametrize("payload", [b"[]", b"null", b"1", b'"x"'])
def test_claims_must_be_an_object(payload: bytes) -> None:
    assert invalid(signed(payload)) == "grant.claims"


def test_a_detail_with_an_unknown_constraint_grants_nothing() -> None:
    details = [{"resource": "mcp/a/b", "args": {"x": {"regex": ".*"}}}]
    assert not check(signed(raw(authorization_details=details))).scope


def chain(length: int) -> Actor | None:
    act = None
    for n in range(length):
        act = Actor(f"a{n}", act)
    return act


def test_actors_nest_to_sixteen_and_no_deeper() -> None:
    deep = msgspec.structs.replace(CHILD, act=chain(16), depth=16, max_depth=16)
    assert len(check(mint(deep, KEY)).chain) == 17
    too_deep = raw(act=msgspec.to_builtins(chain(17)), depth=17, max_depth=17)
    assert invalid(signed(too_deep)) == "grant.claims"
    assert invalid(signed(raw(act=msgspec.to_builtins(chain(17)), depth=16, max_depth=16))) == "grant.depth"


def test_checks_come_in_the_order_of_the_contract() -> None:
    """Each token has every later fault as well; what refuses is the first in order."""
    late = raw(iss="x", aud="x", iat=NOW + 99, exp=NOW, nbf=1)
    assert invalid(signed(late, STRANGER, typ="x")) == "grant.kid"
    assert invalid(signed(late, CHECKPOINTS, typ="x")) == "grant.key_use"
    assert invalid(signed(late, typ="x")) == "grant.typ"
    assert invalid(signed(late)) == "grant.issuer"
    assert invalid(signed(late | {"iss": ISSUER})) == "grant.audience"
    assert invalid(signed(late | {"iss": ISSUER, "aud": "researcher"})) == "grant.iat"
    timely = late | {"iss": ISSUER, "aud": "researcher", "iat": NOW}
    assert refused(signed(timely)) == (Code.GRANT_EXPIRED, "grant.expired")
    assert invalid(signed(timely | {"exp": NOW + 9})) == "grant.claims"


def test_an_ancestor_is_checked_in_everything_but_its_audience() -> None:
    def ancestor(token: str, now: float = NOW) -> Grant:
        return verify_ancestor(parse(token), KEYS, issuer=ISSUER, now=now)

    assert ancestor(mint(CHILD, KEY)).claims.aud == "researcher"
    for token in (signed(raw(iss="x")), signed(raw(nbf=1)), with_header(HEADER, STRANGER), signed(raw(aud=["a"]))):
        with pytest.raises(Refusal):
            ancestor(token)
    with pytest.raises(Refusal):
        ancestor(mint(CHILD, KEY), now=NOW + 60)


# -- mint -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"depth": 3}, "grant.depth"),
        ({"par": None}, "grant.par"),
        ({"exp": NOW}, "grant.times"),
        ({"jti": "x"}, "grant.jti"),
        ({"aud": "Researcher"}, "grant.claims"),
        ({"aud": ["researcher"]}, "grant.claims"),
        ({"max_depth": 17}, "grant.claims"),
        ({"exp": 1e12}, "grant.claims"),
        ({"labels": ("*", "x")}, "grant.labels"),
        ({"sub": ""}, "grant.claims"),
    ],
    ids=repr,
)
def test_nothing_is_minted_that_would_be_refused(change: dict[str, Any], rule: str) -> None:
    with pytest.raises(Refusal) as caught:
        mint(msgspec.structs.replace(CHILD, **change), KEY)
    assert (caught.value.body.code, caught.value.body.rule) == (Code.GRANT_INVALID, rule)


def test_nothing_over_eight_kibibytes_is_minted() -> None:
    many = tuple(Detail(resource=f"mcp/files/{'x' * 100}{n}") for n in range(60))
    with pytest.raises(Refusal) as caught:
        mint(msgspec.structs.replace(CHILD, authorization_details=many), KEY)
    assert (caught.value.body.code, caught.value.body.rule) == (Code.TOO_LARGE, "grant.size")


def test_minting_is_deterministic() -> None:
    assert mint(CHILD, KEY) == mint(CHILD, KEY)


# -- ceilings of labels -----------------------------------------------------------------------------------------------


def test_ceilings_of_labels_narrow_by_intersection_and_star_is_any() -> None:
    assert meet_labels(["*"], ["b", "a"]) == ("a", "b")
    assert meet_labels(["a", "b"], ["b", "c"]) == ("b",)
    assert meet_labels(["*"], ["*"]) == ("*",)
    assert meet_labels([], ["*"]) == ()
    assert labels_within(["a"], ["*"])
    assert labels_within([], [])
    assert not labels_within(["*"], ["a"])
    assert not labels_within(["a"], [])
