"""What the index proves: the checkpoints it signed, and the place of each record under them. Reads only."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import aiosqlite
import msgspec

from remit_broker.adapters import index_tree, jetstream_ledger, refusal_stream
from remit_broker.adapters.index_tree import Sealed, Sign
from remit_broker.core import merkle, notes
from remit_broker.core.notes import LEDGER, REFUSALS, Checkpoint
from remit_broker.core.sealing import Place, Proofs
from remit_schemas.keys import SigningKey

T = TypeVar("T")


def signer(issuer: str, key: SigningKey) -> Sign:
    """Signs checkpoints of both logs of ``issuer``. The refusals' is named after its first message: older ones may be gone."""

    def sign(tree: str, first: int, size: int, root: bytes) -> str:
        kind = LEDGER if tree == jetstream_ledger.STREAM else f"{REFUSALS}{first}"
        return notes.sign(Checkpoint(notes.origin(issuer, kind), size, root), key)

    return sign


class Tree(NamedTuple):
    """The root over so many leaves."""

    size: int
    root: bytes


class IndexProofs:
    """Asks the trees through a connection that cannot write."""

    def __init__(self, reader: aiosqlite.Connection) -> None:
        self._reader = reader

    async def sealed(self, tree: str, least: int = 0) -> Sealed | None:
        """The newest checkpoint of a tree with at least so many leaves, rather one that somebody outside signed."""
        return await self._read(lambda db: index_tree.newest(db, tree, least))

    async def newest(self, tree: str) -> Sealed | None:
        """The newest checkpoint of a tree, whoever signed it."""
        return await self._read(lambda db: index_tree.latest(db, tree))

    async def tree(self, tree: str, size: int | None = None) -> Tree:
        """The root over all leaves of a tree, or over its first ``size``. Raises ``ValueError`` where it has fewer."""
        return await self._read(lambda db: _tree(db, tree, size))

    async def differing(self, tree: str) -> list[str]:
        """The checkpoints that were signed of another tree than this one, in words."""
        return await self._read(lambda db: _differing(db, tree))

    async def consistent(self, tree: str, old: int, new: int) -> list[bytes]:
        """The proof that the tree of ``new`` begins with that of ``old``. Raises ``ValueError``."""
        return await self._read(lambda db: index_tree.consistency(db, tree, old, new))

    async def of(self, entries: Sequence[Mapping[str, Any]], refusals: Sequence[Mapping[str, Any]]) -> Proofs | None:
        """What is proved of a txn and its refusals; None where no checkpoint covers them yet."""
        return await self._read(lambda db: _proofs(db, entries[-1]["record"], refusals))

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        found: T = await self._reader._execute(work, self._reader._conn)  # type: ignore[no-untyped-call]
        return found


def _tree(db: sqlite3.Connection, tree: str, size: int | None) -> Tree:
    there, _ = index_tree.state(db, tree)
    size = there if size is None else size
    if size > there:
        raise ValueError(f"{tree} has {there} leaves, not {size}")
    return Tree(size, merkle.root(index_tree.tiles(db, tree), size))


def _differing(db: sqlite3.Connection, tree: str) -> list[str]:
    read, there = index_tree.tiles(db, tree), index_tree.state(db, tree)[0]
    found = []
    for size, note in db.execute("SELECT size, note FROM checkpoint WHERE tree = ? ORDER BY size", (tree,)).fetchall():
        if size > there or merkle.root(read, size) != notes.parse(note).checkpoint.root:
            found.append(f"the checkpoint of {tree} at {size} was signed of another log")
    return found


def _proofs(db: sqlite3.Connection, record: Mapping[str, Any], refusals: Sequence[Mapping[str, Any]]) -> Proofs | None:
    # INVARIANT: the leaves of the ledger are its messages, from the first on (test_a_rebuilt_index_has_the_same_roots).
    query = "SELECT stream_seq - 1 FROM record WHERE (tenant, txn, seq) = (?,?,?)"
    (place,) = db.execute(query, (record["tenant"], record["txn"], record["seq"])).fetchone()
    sealed = index_tree.newest(db, jetstream_ledger.STREAM, place + 1)
    if sealed is None:
        return None
    (steps,) = index_tree.inclusion(db, jetstream_ledger.STREAM, [place], sealed.size)
    found = Proofs(
        checkpoint=sealed.note, proof=Place(place, steps), cosignatures=sealed.cosignatures, timestamps=sealed.stamps
    )
    return found if not refusals else _with_refusals(db, found, refusals)


def _with_refusals(db: sqlite3.Connection, found: Proofs, refusals: Sequence[Mapping[str, Any]]) -> Proofs | None:
    query = "SELECT leaf FROM refusal WHERE tenant = ? AND txn = ? ORDER BY stream_seq LIMIT ?"
    where = (refusals[0]["tenant"], refusals[0]["txn"], len(refusals))
    places = [place for (place,) in db.execute(query, where)]
    sealed = index_tree.newest(db, refusal_stream.STREAM, max(places) + 1)
    if sealed is None:
        return None
    proofs = index_tree.inclusion(db, refusal_stream.STREAM, places, sealed.size)
    return msgspec.structs.replace(
        found,
        refusal_checkpoint=sealed.note,
        refusal_proofs=[Place(place, steps) for place, steps in zip(places, proofs, strict=True)],
    )
