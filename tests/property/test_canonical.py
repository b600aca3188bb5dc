"""The fast canonical encoder and the standard's own give the same bytes for everything, or the same refusal."""

from __future__ import annotations

import msgspec
import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from remit_schemas.budget import ZERO
from remit_schemas.canonical import _is_simple, canonical
from remit_schemas.records import GENESIS, TxnClosed, plain

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
