"""Keys and key sets: one algorithm, one use, one name each."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest

from remit_schemas.base64url import encode
from remit_schemas.errors import Code, Refusal
from remit_schemas.keys import KeySet, PublicKey, SigningKey, thumbprint

KEY = SigningKey.from_seed(bytes(range(32)))
OTHER = SigningKey.from_seed(bytes(32), use="checkpoint")
JWK = KEY.public.to_jwk()


def refused(jwks: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        KeySet.from_jwks(jwks)
    return caught.value


def test_the_kid_is_the_thumbprint_of_rfc_8037_appendix_a3() -> None:
    raw = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    assert thumbprint(raw) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_a_signature_is_that_of_rfc_8032_section_7_1() -> None:
    key = SigningKey.from_seed(bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
    assert key.sign(b"").hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )
    assert key.public.verify(b"", key.sign(b""))


def test_a_short_signature_does_not_borrow_its_end_from_the_message() -> None:
    signature = KEY.sign(b"message")
    assert KEY.public.verify(b"message", signature)
    assert not KEY.public.verify(signature[32:] + b"message", signature[:32])
    assert not KEY.public.verify(b"essage", signature + b"m")


def test_a_key_set_survives_publishing() -> None:
    published = KeySet([KEY.public, OTHER.public]).to_jwks()
    for again in (KeySet.from_jwks(published), KeySet.from_jwks(json.dumps(published).encode())):
        assert list(again) == [KEY.public, OTHER.public]
        assert again.get(KEY.kid) == KEY.public
        assert again.get("unknown") is None
    assert published["keys"][1]["remit_use"] == "checkpoint"


def test_a_key_without_alg_or_remit_use_is_an_ed25519_grant_key_and_other_members_are_ignored() -> None:
    bare = {k: JWK[k] for k in ("kty", "crv", "x", "kid")} | {"created": 5, "x-vendor": [1]}
    assert KeySet.from_jwks({"keys": [bare], "more": 1}).get(KEY.kid) == KEY.public


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"d": "AAAA"}, "keys.private"),
        ({"k": "AAAA"}, "keys.private"),
        ({"kty": "EC"}, "keys.type"),
        ({"kty": "oct"}, "keys.type"),
        ({"crv": "X25519"}, "keys.type"),
        ({"crv": "Ed448"}, "keys.type"),
        ({"alg": "EdDSA"}, "keys.type"),
        ({"alg": "HS256"}, "keys.type"),
        ({"alg": None}, "keys.type"),
        ({"use": "enc"}, "keys.use"),
        ({"key_ops": ["sign"]}, "keys.use"),
        ({"remit_use": "Grant"}, "keys.use"),
        ({"remit_use": 1}, "keys.use"),
        ({"kid": ""}, "keys.kid"),
        ({"kid": 7}, "keys.kid"),
        ({"kid": "a b"}, "keys.kid"),
        ({"kid": "x" * 129}, "keys.kid"),
        ({"x": JWK["x"] + "="}, "keys.point"),
        ({"x": JWK["x"] + "\n"}, "keys.point"),
        ({"x": JWK["x"][:-2]}, "keys.point"),
        ({"x": JWK["x"][:-1] + chr(ord(JWK["x"][-1]) + 1)}, "keys.point"),
        ({"x": None}, "keys.point"),
        ({"x": encode(b"\x01" + bytes(31))}, "keys.point"),
        ({"x": encode(bytes(32))}, "keys.point"),
        ({"x": encode(b"\xff" * 32)}, "keys.point"),
    ],
)
def test_a_key_that_is_not_a_public_ed25519_signing_key_refuses_the_set(change: dict[str, Any], rule: str) -> None:
    error = refused({"keys": [OTHER.public.to_jwk(), JWK | change]})
    assert (error.body.code, error.body.rule) == (Code.MALFORMED, rule)


@pytest.mark.parametrize("missing", ["kty", "crv", "x", "kid"])
def test_a_key_that_lacks_a_member_refuses_the_set(missing: str) -> None:
    refused({"keys": [{k: v for k, v in JWK.items() if k != missing}]})


@pytest.mark.parametrize("jwks", [{}, {"keys": {}}, {"keys": [[]]}, {"keys": None}, [], b"[]", b"{", b'{"keys":[NaN]}'])
def test_what_is_not_a_key_set_is_refused(jwks: Any) -> None:
    assert refused(jwks).body.code is Code.MALFORMED


def test_duplicate_members_and_oversized_sets_are_refused() -> None:
    text = json.dumps({"keys": [JWK]})
    assert refused(text.replace('"kid"', '"kid": "x", "kid"').encode()).body.rule == "json.duplicate"
    assert refused(text.encode() + b" " * 65_536).body.code is Code.TOO_LARGE


def test_equal_kids_and_one_key_for_two_uses_are_refused() -> None:
    assert refused({"keys": [JWK, OTHER.public.to_jwk() | {"kid": KEY.kid}]}).body.rule == "keys.kid"
    assert refused({"keys": [JWK, JWK | {"kid": "again", "remit_use": "checkpoint"}]}).body.rule == "keys.reused"


def test_a_signing_key_shows_its_secret_nowhere() -> None:
    assert bytes(range(32)).hex() not in repr(KEY)
    assert encode(bytes(range(32))) not in repr(KEY)
    with pytest.raises(TypeError):
        pickle.dumps(KEY)
    with pytest.raises(TypeError):
        copy.copy(KEY)


@pytest.mark.parametrize(
    ("seed", "use"), [(b"short", "grant"), (bytes(33), "grant"), (bytes(32), ""), (bytes(32), "A")]
)
def test_a_malformed_seed_or_use_makes_no_key(seed: bytes, use: str) -> None:
    with pytest.raises(ValueError, match="seed"):
        SigningKey.from_seed(seed, use)


def test_public_keys_are_immutable() -> None:
    with pytest.raises(AttributeError):
        KEY.public.raw = b""  # type: ignore[misc]
    assert KEY.public == PublicKey(KEY.kid, "grant", KEY.public.raw)
