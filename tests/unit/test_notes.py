"""Checkpoints as signed notes: the formats of C2SP, and that nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit_broker.core import notes
from remit_broker.core.notes import LEDGER, Checkpoint, Witness
from remit_schemas.keys import KeySet, SigningKey

KEY = SigningKey.from_seed(b"\x03" * 32, "checkpoint")
KEYS = KeySet([KEY.public])
POINT = Checkpoint("remit.example/remit/ledger", 42, b"\x07" * 32)
NOTE = notes.sign(POINT, KEY)


def test_a_checkpoint_is_three_lines_and_a_signature() -> None:
    lines = NOTE.split("\n")
    assert lines[:4] == ["remit.example/remit/ledger", "42", "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=", ""]
    assert lines[4].startswith("— remit.example/remit/ledger ")
    assert lines[5:] == [""]
    found = notes.parse(NOTE)
    assert found.checkpoint == POINT and notes.signer(found, KEYS) == KEY.public


def test_the_key_of_the_specification_has_the_id_it_says() -> None:
    """The example of c2sp.org/signed-note: a key of type 1 under the name ``PeterNeumann``."""
    import base64

    raw = base64.b64decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    assert raw[0] == notes.ED25519
    assert notes.key_id("PeterNeumann", raw[0], raw[1:]).hex() == "c74f20a3"
    text = (
        "If you think cryptography is the answer to your problem,\n"
        "then you don't know what your problem is.\n\n"
        "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
    )
    (found,) = notes.parse(text).signatures
    from remit_schemas.keys import PublicKey

    assert PublicKey("k", "note", raw[1:]).verify(notes.parse(text).text.encode(), found.data)


@given(st.binary(max_size=200))
def test_nothing_breaks_the_parser(data: bytes) -> None:
    for text in (data.decode("latin-1"), NOTE[:60] + data.decode("latin-1")):
        try:
            note = notes.parse(text)
        except ValueError:
            continue
        assert notes.signer(note, KEYS) is None or note.checkpoint == POINT


@given(st.integers(0, len(NOTE) - 1), st.characters(codec="ascii"))
def test_no_changed_character_is_signed(place: int, put: str) -> None:
    changed = NOTE[:place] + put + NOTE[place + 1 :]
    try:
        note = notes.parse(changed)
    except ValueError:
        return
    assert changed == NOTE or notes.signer(note, KEYS) is None


@pytest.mark.parametrize("size", ["", "-1", "01", "1e3", "4 2", "９", "1" * 19])  # noqa: RUF001
def test_a_size_has_one_form(size: str) -> None:
    with pytest.raises(ValueError, match="no checkpoint"):
        _ = notes.Note(f"remit.example/remit/ledger\n{size}\n{'A' * 43}=\n", ()).checkpoint


def test_lines_that_a_later_version_adds_are_passed_over() -> None:
    text = POINT.text + "something more\n"
    assert notes.Note(text, ()).checkpoint == POINT


@pytest.mark.parametrize(
    ("issuer", "name"),
    [
        ("https://remit.example", "remit.example/remit/ledger"),
        ("http://127.0.0.1:7480/", "127.0.0.1:7480/remit/ledger"),
        ("remit test+1", "remit-test-1/remit/ledger"),
    ],
)
def test_a_log_is_named_after_its_issuer(issuer: str, name: str) -> None:
    assert notes.origin(issuer, LEDGER) == name


def test_the_key_of_a_witness_is_read_as_it_is_written() -> None:
    witness = Witness("witness.example/w1", SigningKey.from_seed(b"\x05" * 32).public.raw)
    assert notes.parse_vkey(witness.vkey) == witness
    name, said, key = witness.vkey.split("+")
    for wrong in (
        "",
        name,
        f"{name}+{said}",
        f"other+{said}+{key}",
        f"{name}+00000000+{key}",
        f"{name}+{said}+{key[:-4]}",
    ):
        with pytest.raises(ValueError, match="verifier key"):
            notes.parse_vkey(wrong)


def test_what_a_witness_signs_is_what_the_specification_says() -> None:
    key = SigningKey.from_seed(b"\x05" * 32)
    seen = notes.cosign(POINT, "w.example", key, 1_679_315_147)
    assert key.public.verify(
        b"cosignature/v1\ntime 1679315147\nremit.example/remit/ledger\n42\n"
        b"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n",
        seen.data[8:],
    )
    assert seen.data[:8] == (1_679_315_147).to_bytes(8, "big")
    witness = Witness("w.example", key.public.raw)
    assert notes.cosigned(POINT.text, notes.parse_line(seen.line), [witness]) == (witness, 1_679_315_147)
    assert notes.cosigned(POINT.text + "x\n", seen, [witness]) is None
