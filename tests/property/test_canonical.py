"""The fast canonical encoder and the standard's own give the same bytes for everything, or the same refusal."""

from __future__ import annotations

import hashlib
import json
from unittest.mock import patch

import msgspec
import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from remit_schemas import canonical as canonical_module
from remit_schemas.budget import ZERO, Budget
from remit_schemas.canonical import MAX_INTEGER, _is_simple, canonical, canonical_document, loads
from remit_schemas.errors import Refusal
from remit_schemas.records import GENESIS, TxnClosed, TxnOpened, hash_of, plain, seal
from remit_schemas.scope import Detail

leaves = st.none() | st.booleans() | st.integers(-(2**54), 2**54) | st.floats(allow_nan=False) | st.text()
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(values)
def test_both_encoders_agree(value):
    try:
        expected = rfc8785.dumps(value)
    except ValueError:
        with pytest.raises(ValueError):
            canonical(value)
    else:
        assert canonical(value) == expected


@given(st.text(st.characters(codec=None), min_size=1, max_size=8))
def test_any_character_is_written_alike(text):
    try:
        expected = rfc8785.dumps({"k": text})
    except ValueError:
        with pytest.raises(ValueError):
            canonical({"k": text})
    else:
        assert canonical({"k": text}) == expected


def test_records_take_the_fast_way():
    record = TxnClosed(
        tenant="default", txn="a" * 32, seq=0, at="", hop="b" * 16, prev=GENESIS, by="r", reason="closed", who="ann",
        spent=ZERO, overrun=ZERO,
    )  # fmt: skip
    assert _is_simple(plain(record))
    assert _is_simple(msgspec.to_builtins(record))


_LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
_TREE = st.recursive(
    _LEAF, lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=4), below, max_size=3)
)
_TWICE = st.sampled_from(
    [b'{"a":1,"a":1}', b'{"a":1} ', b"01", b"-0", b"1e2", b"9007199254740993", b'"\\u0061"', b'"\\ud800"', b"[1,2", b"",
     b'{"b":1,"a":{"b":2,"b":2}}', b"[" * 65 + b"]" * 65, b"NaN", b"[1e999]", b'"\x7f"', b'{"\xc3\xa9":1}', b"-1", b"[]"]
)  # fmt: skip


def _read(data: bytes) -> object:
    try:
        return ("value", repr(loads(data, max_bytes=10_000)))
    except Refusal as no:
        return ("refused", no.body.rule)


_DOCUMENTS = _TREE.map(
    lambda value: json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")
)


@given(_DOCUMENTS | _TWICE | st.binary(max_size=12))
def test_the_short_way_is_exact(data: bytes) -> None:
    """What the fast parser takes is what the strict one would have read, and nothing that it would have refused."""
    short = _read(data)
    with patch.object(canonical_module, "_plain_document", lambda _: canonical_module._ODD):
        assert _read(data) == short


@given(_DOCUMENTS | _TWICE)
def test_what_was_read_is_written_as_the_standard_says(data: bytes) -> None:
    """The short way of writing what a parser returned gives the bytes of the long one."""
    try:
        value = loads(data, max_bytes=10_000)
    except Refusal:
        return
    try:
        expected = rfc8785.dumps(value)
    except ValueError:
        with pytest.raises(ValueError):
            canonical_document(value)
    else:
        assert canonical_document(value) == expected


_WORDS = st.text(max_size=12) | st.sampled_from(['"hash":"",', '\\"hash\\":\\"\\",', "é", "\ud800"])


@given(who=_WORDS, usd=st.integers(0, MAX_INTEGER), seq=st.integers(0, 2**60))
def test_a_seal_is_the_hash_of_the_standard_form(who: str, usd: int, seq: int) -> None:
    """However a record is sealed, its hash is that of its canonical JSON without it."""
    record = TxnClosed(
        tenant="default", txn="a" * 32, seq=seq, at="", hop="b" * 16, prev=GENESIS, by=who, reason="closed", who=who,
        spent=Budget(usd, 0, 1), overrun=ZERO,
    )  # fmt: skip
    raw = plain(record)
    del raw["hash"]
    try:
        expected = hashlib.sha256(rfc8785.dumps(raw)).hexdigest()
    except ValueError:
        with pytest.raises(ValueError):
            seal(record)
    else:
        assert seal(record).hash == hash_of(raw) == expected


@given(scope=st.dictionaries(st.text(max_size=4), st.dictionaries(_WORDS, _TREE, max_size=2), max_size=2))
def test_a_seal_covers_constraints_of_any_json(scope: dict[str, dict[str, object]]) -> None:
    record = TxnOpened(
        tenant="default", txn="a" * 32, seq=0, at="", hop="b" * 16, prev=GENESIS, by="r", user="ann", agent="a", auth="",
        jti="", scope=(Detail("mcp/**", scope),), budget=ZERO, exp=0, max_depth=0,
    )  # fmt: skip
    try:
        raw = plain(record)
        del raw["hash"]
        expected = hashlib.sha256(rfc8785.dumps(raw)).hexdigest()
    except ValueError:
        with pytest.raises(ValueError):
            seal(record)
    else:
        assert seal(record).hash == expected
