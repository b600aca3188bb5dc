"""The Merkle tree of RFC 6962 §2: roots, inclusion proofs and consistency proofs. Pure.

A tree is kept in tiles, as C2SP tlog-tiles has them: tile ``(level, index)`` holds up to 256 hashes, each the root of a complete
subtree of ``256**level`` leaves. Only the last tile of a level is not full, and a full one never changes. With them a proof reads a
few tiles, whatever the size of the tree, and a batch of new leaves writes a few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Final

HASH: Final = 32
"""Bytes of a hash."""
_HEIGHT: Final = 8
WIDTH: Final = 1 << _HEIGHT
"""Hashes in a full tile."""
EMPTY: Final = sha256(b"").digest()
"""The root of a tree without leaves."""

Place = tuple[int, int]
"""The level and the index of a tile."""
Tiles = Callable[[int, int], bytes]
"""The hashes of a tile, one after the other: at least those of the tree that is asked about."""


def leaf_hash(data: bytes) -> bytes:
    """The hash of a leaf: that of an inner node can never be the same (RFC 6962 §2.1)."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node."""
    return sha256(b"\x01" + left + right).digest()


def wanted(size: int) -> list[Place]:
    """The tiles that are not full in a tree of ``size`` leaves, level by level: what :func:`append` has to be given."""
    return [(level, at >> _HEIGHT) for level, at in _levels(size) if at % WIDTH]


def append(size: int, ragged: Mapping[Place, bytes], leaves: Iterable[bytes]) -> dict[Place, bytes]:
    """The tiles that change where ``leaves`` (hashes) follow ``size`` others; ``ragged`` are the tiles of :func:`wanted`."""
    changed: dict[Place, bytes] = {}
    level, fresh = 0, b"".join(leaves)
    while fresh:
        index, within = divmod(size >> (_HEIGHT * level), WIDTH)
        hashes = ragged.get((level, index), b"")[: within * HASH] + fresh
        fresh = b""
        for at in range(0, len(hashes), WIDTH * HASH):
            tile = changed[level, index] = hashes[at : at + WIDTH * HASH]
            if len(tile) == WIDTH * HASH:
                fresh += _folded(tile)
            index += 1
        level += 1
    return changed


def root(tiles: Tiles, size: int) -> bytes:
    """MTH(D[0:size]) of RFC 6962 §2.1."""
    return _subtree(tiles, 0, size) if size else EMPTY


def inclusion(tiles: Tiles, index: int, size: int) -> list[bytes]:
    """PATH(index, D[0:size]) of RFC 6962 §2.1.1: that leaf ``index`` is in the tree of ``size``. Raises ``ValueError``."""
    if not 0 <= index < size:
        raise ValueError(f"there is no leaf {index} in a tree of {size}")
    start, end, proof = 0, size, []
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            proof.append(_subtree(tiles, middle, end))
            end = middle
        else:
            proof.append(_subtree(tiles, start, middle))
            start = middle
    return proof[::-1]


def consistency(tiles: Tiles, old: int, new: int) -> list[bytes]:
    """PROOF(old, D[0:new]) of RFC 6962 §2.1.2: that the tree of ``new`` begins with the one of ``old``. Raises ``ValueError``."""
    if not 0 <= old <= new:
        raise ValueError(f"a tree of {new} cannot begin with one of {old}")
    if old in (0, new):
        return []
    start, end, proof, whole = 0, new, [], True
    while end != old:
        middle = start + _split(end - start)
        if old <= middle:
            proof.append(_subtree(tiles, middle, end))
            end = middle
        else:
            proof.append(_subtree(tiles, start, middle))
            start, whole = middle, False
    return [*([] if whole else [_subtree(tiles, start, end)]), *proof[::-1]]


def proves_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], top: bytes) -> bool:
    """Whether ``proof`` shows that ``leaf`` stands at ``index`` in the tree of ``size`` and root ``top`` (RFC 9162 §2.1.3.2)."""
    if not 0 <= index < size:
        return False
    here, last, found = index, size - 1, leaf
    for step in proof:
        if last == 0:
            return False
        if here & 1 or here == last:
            found = node_hash(step, found)
            while not here & 1 and here:
                here, last = here >> 1, last >> 1
        else:
            found = node_hash(found, step)
        here, last = here >> 1, last >> 1
    return last == 0 and found == top


def proves_consistency(old: int, new: int, proof: Sequence[bytes], before: bytes, after: bytes) -> bool:
    """Whether ``proof`` shows that the tree ``(new, after)`` begins with the tree ``(old, before)`` (RFC 9162 §2.1.4.2)."""
    if not 0 <= old <= new:
        return False
    if old == new:
        return not proof and before == after
    if old == 0:
        return not proof and before == EMPTY
    # A tree that is complete is itself the first step.
    steps = [before, *proof] if old & (old - 1) == 0 else list(proof)
    here, last = old - 1, new - 1
    while here & 1:
        here, last = here >> 1, last >> 1
    if not steps:
        return False
    first = second = steps[0]
    for step in steps[1:]:
        if last == 0:
            return False
        if here & 1 or here == last:
            first, second = node_hash(step, first), node_hash(step, second)
            while not here & 1 and here:
                here, last = here >> 1, last >> 1
        else:
            second = node_hash(second, step)
        here, last = here >> 1, last >> 1
    return last == 0 and first == before and second == after


def _levels(size: int) -> list[tuple[int, int]]:
    """How many hashes stand at each level."""
    found: list[tuple[int, int]] = []
    while size:
        found.append((len(found), size))
        size >>= _HEIGHT
    return found


def _split(size: int) -> int:
    """The largest power of two that is smaller than ``size``."""
    return 1 << (size - 1).bit_length() - 1


def _subtree(tiles: Tiles, start: int, end: int) -> bytes:
    """MTH(D[start:end]) of a range that the RFC's recursion comes to: it begins at a multiple of the next power of two."""
    size = end - start
    if size & (size - 1) == 0:
        level, within = divmod(size.bit_length() - 1, _HEIGHT)
        index, at = divmod(start >> (_HEIGHT * level), WIDTH)
        return _folded(tiles(level, index)[at * HASH : (at + (1 << within)) * HASH])
    middle = start + _split(size)
    return node_hash(_subtree(tiles, start, middle), _subtree(tiles, middle, end))


def _folded(hashes: bytes) -> bytes:
    """The root over a power of two of hashes."""
    row = [hashes[at : at + HASH] for at in range(0, len(hashes), HASH)]
    while len(row) > 1:
        row = [node_hash(row[at], row[at + 1]) for at in range(0, len(row), 2)]
    return row[0]
