"""The Merkle tree against the definitions of RFC 6962 §2.1, written down here word for word."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit_broker.core import merkle
from remit_broker.core.merkle import EMPTY, leaf_hash, proves_consistency, proves_inclusion

DATA = [b"%d" % number for number in range(700)]
LEAVES = [leaf_hash(data) for data in DATA]
SIZES = st.one_of(st.integers(0, 40), st.integers(250, 262), st.integers(505, 520), st.integers(0, len(DATA)))


def k(n: int) -> int:
    """The largest power of two smaller than n."""
    found = 1
    while found * 2 < n:
        found *= 2
    return found


def mth(data: list[bytes]) -> bytes:
    """RFC 6962 §2.1."""
    n = len(data)
    if n == 0:
        return sha256().digest()
    if n == 1:
        return sha256(b"\x00" + data[0]).digest()
    return sha256(b"\x01" + mth(data[: k(n)]) + mth(data[k(n) :])).digest()


def path(m: int, data: list[bytes]) -> list[bytes]:
    """RFC 6962 §2.1.1."""
    n = len(data)
    if n == 1:
        return []
    if m < k(n):
        return [*path(m, data[: k(n)]), mth(data[k(n) :])]
    return [*path(m - k(n), data[k(n) :]), mth(data[: k(n)])]


def subproof(m: int, data: list[bytes], whole: bool) -> list[bytes]:
    """RFC 6962 §2.1.2."""
    n = len(data)
    if m == n:
        return [] if whole else [mth(data)]
    if m <= k(n):
        return [*subproof(m, data[: k(n)], whole), mth(data[k(n) :])]
    return [*subproof(m - k(n), data[k(n) :], False), mth(data[: k(n)])]


def grown(*sizes: int) -> dict[tuple[int, int], bytes]:
    """The tiles of a tree that came to its size in steps."""
    tiles: dict[tuple[int, int], bytes] = {}
    before = 0
    for size in sizes:
        ragged = {place: tiles[place] for place in merkle.wanted(before)}
        tiles |= merkle.append(before, ragged, LEAVES[before:size])
        before = size
    return tiles


TILES = grown(len(DATA))


def tile(level: int, index: int) -> bytes:
    return TILES[level, index]


@given(SIZES)
def test_the_root_is_that_of_the_rfc(size: int) -> None:
    assert merkle.root(tile, size) == mth(DATA[:size])


@given(st.lists(SIZES, max_size=5))
def test_in_whatever_batches_leaves_come_the_tiles_are_the_same(sizes: list[int]) -> None:
    assert grown(*sorted(sizes), len(DATA)) == TILES


@given(SIZES.filter(bool), st.data())
def test_an_inclusion_proof_is_that_of_the_rfc_and_holds(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    proof = merkle.inclusion(tile, index, size)
    assert proof == path(index, DATA[:size])
    assert proves_inclusion(LEAVES[index], index, size, proof, mth(DATA[:size]))


@given(SIZES, st.data())
def test_a_consistency_proof_is_that_of_the_rfc_and_holds(new: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(0, new))
    proof = merkle.consistency(tile, old, new)
    if old:
        assert proof == subproof(old, DATA[:new], True)
    assert proves_consistency(old, new, proof, mth(DATA[:old]), mth(DATA[:new]))


@given(st.integers(1, 300), st.data())
def test_no_other_inclusion_proof_holds(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    proof, top = merkle.inclusion(tile, index, size), mth(DATA[:size])
    other = data.draw(st.integers(-1, size + 1).filter(lambda it: it != index))
    assert not proves_inclusion(LEAVES[index], other, size, proof, top)
    assert not proves_inclusion(leaf_hash(b"x"), index, size, proof, top)
    assert not proves_inclusion(LEAVES[index], index, size, [*proof, EMPTY], top)
    if proof:
        at = data.draw(st.integers(0, len(proof) - 1))
        assert not proves_inclusion(LEAVES[index], index, size, proof[:at] + proof[at + 1 :], top)
        assert not proves_inclusion(LEAVES[index], index, size, [*proof[:at], EMPTY, *proof[at + 1 :]], top)


@given(st.integers(1, 300), st.data())
def test_no_other_consistency_proof_holds(new: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(1, new))
    proof, before, after = merkle.consistency(tile, old, new), mth(DATA[:old]), mth(DATA[:new])
    assert not proves_consistency(old, new, proof, EMPTY, after)
    assert not proves_consistency(old, new, proof, before, EMPTY)
    assert not proves_consistency(old, new, [*proof, EMPTY], before, after)
    assert not proves_consistency(new + 1, new, proof, before, after)
    if old < new:
        assert not proves_consistency(old, new, proof[:-1], before, after)
        assert not proves_consistency(new, new, proof, before, after)


@pytest.mark.parametrize(("index", "size"), [(0, 0), (3, 3), (-1, 3)])
def test_a_proof_of_what_is_not_there_is_refused(index: int, size: int) -> None:
    with pytest.raises(ValueError, match="no leaf"):
        merkle.inclusion(tile, index, size)
    with pytest.raises(ValueError, match="cannot begin"):
        merkle.consistency(tile, size + 1, size)


def test_the_vectors_of_certificate_transparency() -> None:
    """Roots of the eight inputs that implementations of RFC 6962 share."""
    inputs = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    leaves = [leaf_hash(bytes.fromhex(text)) for text in inputs]
    tiles = merkle.append(0, {}, leaves)
    roots = [merkle.root(lambda level, index: tiles[level, index], size).hex() for size in (0, 1, 2, 8)]
    assert roots == [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ]
