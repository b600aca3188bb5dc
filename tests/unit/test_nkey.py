"""nkeys and the JWTs of the auth callout, against the reference library and by properties."""

from __future__ import annotations

import base64
import contextlib
import json

import nkeys
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit_broker.core import nats_jwt, nkey
from remit_broker.core.nats_jwt import JwtError, b64_any

SEEDS = st.binary(min_size=32, max_size=32)
NOW = 1_800_000_000.0


@given(SEEDS)
def test_seeds_and_public_keys_read_like_the_reference_library(raw: bytes) -> None:
    theirs = nkeys.from_seed(bytearray(nkeys.encode_seed(raw, nkeys.PREFIX_BYTE_USER)))
    text = nkey.seed_text("U", raw)
    assert text == bytes(theirs.seed).decode()
    assert nkey.public_of("U", text) == theirs.public_key.decode()
    assert nkey.seed_bytes("U", text) == raw
    assert nkey.sign("U", text, b"nonce") == theirs.sign(b"nonce")


@given(SEEDS, st.binary(max_size=64), st.binary(max_size=64))
def test_a_signature_is_one_keys_over_one_text(raw: bytes, data: bytes, other: bytes) -> None:
    seed = nkey.seed_text("U", raw)
    public, signature = nkey.public_of("U", seed), nkey.sign("U", seed, data)
    assert nkey.verify("U", public, data, signature)
    assert nkey.verify("U", public, other, signature) == (other == data)
    assert not nkey.verify("A", public, data, signature)
    assert not nkey.verify("U", public, data, signature[:-1])
    assert not nkey.verify("U", public, data[:-1], signature + data[-1:]) or not data


@given(st.text(max_size=70), st.sampled_from("ANUX"))
def test_any_other_text_is_no_key(text: str, prefix: nkey.Prefix) -> None:
    assert not nkey.is_public(prefix, text)
    assert not nkey.verify(prefix, text, b"", b"\0" * 64)


@given(SEEDS, st.integers(0, 55), st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567abc =189"))
def test_a_changed_letter_is_noticed(raw: bytes, at: int, letter: str) -> None:
    public = nkey.public_text("U", raw)
    changed = public[:at] + letter + public[at + 1 :]
    assert nkey.is_public("U", changed) == (changed == public)


@given(SEEDS)
def test_a_seed_has_one_spelling(raw: bytes) -> None:
    """The last letter of a seed has bits to spare; a text that differs in them is not the same seed."""
    seed = nkey.seed_text("U", raw)
    readable = []
    for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567":
        with contextlib.suppress(nkey.BadKey):
            nkey.seed_bytes("U", seed[:-1] + letter)
            readable.append(letter)
    assert readable == [seed[-1]]


@given(SEEDS, SEEDS, st.binary(max_size=200), st.binary(min_size=24, max_size=24))
def test_what_is_sealed_opens_for_its_receiver_only(sender: bytes, receiver: bytes, data: bytes, nonce: bytes) -> None:
    mine, theirs = nkey.seed_text("X", sender), nkey.seed_text("X", receiver)
    sealed = nkey.seal(mine, nkey.public_of("X", theirs), data, nonce)
    assert nkey.open_sealed(theirs, nkey.public_of("X", mine), sealed) == data
    with pytest.raises(nkey.BadKey):
        nkey.open_sealed(theirs, nkey.public_of("X", mine), sealed[:-1] + bytes([sealed[-1] ^ 1]))


@given(st.binary(max_size=100))
def test_base64_is_read_in_both_alphabets(data: bytes) -> None:
    for text in (base64.b64encode(data), base64.urlsafe_b64encode(data)):
        assert b64_any(text.decode()) == b64_any(text.decode().rstrip("=")) == data


SERVER = nkey.seed_text("N", bytes(range(32)))
HEAD = {"typ": "JWT", "alg": "ed25519-nkey"}


def part(value: object) -> str:
    return (
        base64.urlsafe_b64encode(value if isinstance(value, bytes) else json.dumps(value).encode()).decode().rstrip("=")
    )


def token(head: object, body: object, seed: str = SERVER) -> str:
    signing_input = f"{part(head)}.{part(body)}"
    return f"{signing_input}.{part(nkey.sign('N', seed, signing_input.encode()))}"


def test_what_is_written_can_be_read() -> None:
    written = nats_jwt.encode({"sub": "x", "nats": {"v": 2}}, "N", SERVER, NOW)
    claims = nats_jwt.decode(written, "N")
    assert (claims["iss"], claims["iat"], claims["sub"]) == (nkey.public_of("N", SERVER), int(NOW), "x")
    with pytest.raises(JwtError):
        nats_jwt.decode(written, "A")


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "..", "a.b", "a.b.c.d", token({"typ": "JWT", "alg": "none"}, {"iss": nkey.public_of("N", SERVER)}),
        token({**HEAD, "crit": ["x"]}, {"iss": nkey.public_of("N", SERVER)}), token({"alg": "ed25519-nkey"}, {}), token(HEAD, {}),
        token(HEAD, {"iss": 1}), token(HEAD, {"iss": "N"}), token(HEAD, []), token([], {}), token(HEAD, b"\xff"),
        token(HEAD, {"iss": nkey.public_of("N", nkey.seed_text("N", bytes(32)))}),
        token(HEAD, b'{"iss":"N","iss":"%s"}' % nkey.public_of("N", SERVER).encode()), token(HEAD, b'{"a":NaN}'),
        token(HEAD, b"[" * 2000), "A" * 70_000, "é.é.é",
    ],
)  # fmt: skip
def test_a_malformed_jwt_is_refused_with_its_own_error(text: str) -> None:
    with pytest.raises(JwtError):
        nats_jwt.decode(text, "N")
