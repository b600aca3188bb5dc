"""Wycheproof: Ed25519 as it is, and the JWS and JWK vectors as far as they apply to a verifier of Ed25519 alone.

No JWS vector is signed with Ed25519, so they are used in two ways. Our verifier has to refuse every one of them, also
those that are valid for another algorithm. And for HS256 the form is ours and the MAC is computed here, so that the
strict reading of the compact serialisation is held against Wycheproof's labels, quirks named.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any, Final

import pytest

from remit_schemas.base64url import decode, encode
from remit_schemas.errors import Code, Refusal
from remit_schemas.grant import parse, verify
from remit_schemas.jws import split
from remit_schemas.keys import KeySet, PublicKey, SigningKey

HERE = Path(__file__).parent.parent / "vectors" / "wycheproof"


def groups(name: str) -> list[dict[str, Any]]:
    found = json.loads((HERE / f"{name}.json").read_text())
    assert sum(len(group["tests"]) for group in found["testGroups"]) == found["numberOfTests"]
    return list(found["testGroups"])


def cases(name: str) -> list[Any]:
    return [
        pytest.param(group["key"], test, id=f"{test['tcId']}-{test['comment'][:40]}")
        for group in groups(name)
        for test in group["tests"]
    ]


ED25519 = [pytest.param(group, test, id=str(test["tcId"])) for group in groups("ed25519") for test in group["tests"]]
KEY = SigningKey.from_seed(bytes(range(32)))

EMPTY_PAYLOAD: Final = {259, 264, 268, 272, 320, 325}
"""Labelled valid: a signed empty payload is a JWS. It can be no grant, so the form with an empty part is refused."""

FOREIGN_CHARACTER: Final = {372, 373}
"""Labelled valid: a ``?`` was inserted into header or payload, which lenient base64 decoders skip (and the MAC is over
the text without it). RFC 7515 §2 has no such character, so it is refused."""

SAME_AS_VALID: Final = {367, 370}
"""Labelled invalid ('invalidBase64Padding'), but byte for byte the token of 357, which is labelled valid."""


@pytest.mark.parametrize(("group", "test"), ED25519)
def test_ed25519(group: dict[str, Any], test: dict[str, Any]) -> None:
    raw = bytes.fromhex(group["pk"])
    key = PublicKey("k", "grant", raw)
    assert key.verify(bytes.fromhex(test["msg"]), bytes.fromhex(test["sig"])) == (test["result"] == "valid")
    jwk = {"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": group["x"]}
    assert KeySet.from_jwks({"keys": [jwk]}).get("k") == key


def test_the_ed25519_vectors_are_all_there() -> None:
    results = [test["result"] for group in groups("ed25519") for test in group["tests"]]
    assert len(results) == 151
    assert {"valid", "invalid"} == set(results)


@pytest.mark.parametrize(("key", "test"), cases("json_web_signature"))
def test_every_jws_of_another_algorithm_is_refused(key: dict[str, Any], test: dict[str, Any]) -> None:
    with pytest.raises(Refusal) as caught:
        verify(parse(test["jws"]), KeySet([KEY.public]), issuer="i", audience="a", now=0)
    assert caught.value.body.code is Code.GRANT_INVALID
    assert caught.value.body.rule in ("grant.form", "grant.header")


@pytest.mark.parametrize(("key", "test"), cases("json_web_key") + cases("json_web_signature"))
def test_every_key_of_another_algorithm_is_refused(key: dict[str, Any], test: dict[str, Any]) -> None:
    with pytest.raises(Refusal) as caught:
        KeySet.from_jwks(key if "keys" in key else {"keys": [key]})
    assert caught.value.body.code is Code.MALFORMED


def accepts_hs256(key: dict[str, Any], token: str) -> bool:
    """A verifier of HS256 made of our reading of the compact form and the standard library's HMAC."""
    try:
        parts = split(token)
        header = json.loads(parts.header)
    except (Refusal, ValueError):
        return False
    mac = hmac.digest(decode(key["k"].encode()), parts.signing_input, hashlib.sha256)
    fits = header.get("alg") == "HS256" and header.get("kid") == key["kid"]
    return fits and hmac.compare_digest(mac, parts.signature)


@pytest.mark.parametrize(
    ("key", "test"), [case for case in cases("json_web_signature") if case.values[0].get("alg") == "HS256"]
)
def test_the_strict_compact_form_agrees_with_the_labels_of_hs256(key: dict[str, Any], test: dict[str, Any]) -> None:
    expected = test["result"] == "valid"
    if test["tcId"] in FOREIGN_CHARACTER | SAME_AS_VALID:
        expected = not expected
    assert accepts_hs256(key, test["jws"]) == expected


@pytest.mark.parametrize(("key", "test"), cases("json_web_signature"))
def test_the_form_of_valid_tokens_is_accepted_whatever_signed_them(key: dict[str, Any], test: dict[str, Any]) -> None:
    if test["result"] != "valid":
        return
    if test["tcId"] in EMPTY_PAYLOAD | FOREIGN_CHARACTER:
        with pytest.raises(Refusal):
            split(test["jws"])
    else:
        parts = split(test["jws"])
        assert test["jws"] == ".".join(map(encode, (parts.header, parts.payload, parts.signature)))


def test_the_quirks_are_what_they_are_said_to_be() -> None:
    tests = {test["tcId"]: test for group in groups("json_web_signature") for test in group["tests"]}
    assert all(tests[n]["result"] == "valid" and ".." in tests[n]["jws"] for n in EMPTY_PAYLOAD)
    assert all(tests[n]["result"] == "valid" and "?" in tests[n]["jws"] for n in FOREIGN_CHARACTER)
    assert all(tests[n]["result"] == "invalid" and tests[n]["jws"] == tests[357]["jws"] for n in SAME_AS_VALID)
