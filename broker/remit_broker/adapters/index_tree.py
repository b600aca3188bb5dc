"""The Merkle trees in the index's file: grown in the transaction that projects, read for proofs and checkpoints.

Nothing of a tree is kept in memory: a transaction that was not committed has not moved it. These run in the thread of a connection.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from remit_broker.adapters.jetstream_ledger import STREAM as LEDGER
from remit_broker.adapters.refusal_stream import STREAM as REFUSALS
from remit_broker.adapters.stream_tail import Regressed
from remit_broker.core import merkle
from remit_broker.core.notes import Checkpoint, parse

Sign = Callable[[str, int, int, bytes], str]
"""The signed note for a tree (the name of its stream), with the first message that it begins with, its size and its root."""
_KEPT: Final = len("2026-01-01T00:00")
"""Of the checkpoints of a minute (as a time is written) the last one is kept."""


class Sealed(NamedTuple):
    """A checkpoint that was signed. ``at`` is that of the last record that was read when it was."""

    tree: str
    size: int
    at: str
    note: str
    cosignatures: tuple[str, ...] = ()
    stamps: tuple[bytes, ...] = ()
    """Answers of time-stamping authorities."""

    @property
    def checkpoint(self) -> Checkpoint:
        """What was signed."""
        return parse(self.note).checkpoint


def grow(db: sqlite3.Connection, tree: str, leaves: Sequence[bytes], first: int) -> None:
    """Append leaves; ``first`` is the stream sequence of the first of them. Within a transaction."""
    size, _ = state(db, tree)
    read = tiles(db, tree)
    ragged = {place: read(*place) for place in merkle.wanted(size)}
    db.executemany(
        "INSERT OR REPLACE INTO tile VALUES (?,?,?,?)",
        [(tree, *place, hashes) for place, hashes in merkle.append(size, ragged, leaves).items()],
    )
    # INVARIANT: leaves and rows are of one transaction (test_a_batch_that_is_not_written_has_not_moved_the_tree).
    db.execute(
        "UPDATE stream SET tree_size = tree_size + ?, tree_first = iif(tree_size = 0, ?, tree_first) WHERE name = ?",
        (len(leaves), first, tree),
    )


def state(db: sqlite3.Connection, tree: str) -> tuple[int, int]:
    """How many leaves there are, and the stream sequence of the first."""
    size, first = db.execute("SELECT tree_size, tree_first FROM stream WHERE name = ?", (tree,)).fetchone()
    return int(size), int(first)


def tiles(db: sqlite3.Connection, tree: str) -> merkle.Tiles:
    """A reader of a tree's tiles, each read once."""
    seen: dict[merkle.Place, bytes] = {}

    def read(level: int, index: int) -> bytes:
        if (level, index) not in seen:
            query = "SELECT hashes FROM tile WHERE (tree, level, idx) = (?,?,?)"
            row = db.execute(query, (tree, level, index)).fetchone()
            seen[level, index] = bytes(row[0]) if row else b""
        return seen[level, index]

    return read


def emptied(tables: Sequence[str], refusals_from: int, db: sqlite3.Connection) -> None:
    """Forget what the streams can say again: ``tables``, the ledger's tree, and refusals from that message on. Within a transaction."""
    for table in tables:
        db.execute(f"DELETE FROM {table}")  # noqa: S608 - constants
    db.execute("DELETE FROM tile WHERE tree = ?", (LEDGER,))
    db.execute("UPDATE stream SET last_seq = 0, tree_size = 0 WHERE name = ?", (LEDGER,))
    # Leaves stand in the order of the stream, which loses only its oldest: behind the first that it has there is no gap.
    query = "SELECT leaf - (stream_seq - ?) FROM refusal WHERE stream_seq >= ? ORDER BY stream_seq LIMIT 1"
    kept = db.execute(query, (refusals_from, refusals_from)).fetchone()
    if kept is None:
        return
    db.execute("DELETE FROM refusal WHERE stream_seq >= ?", (refusals_from,))
    # What stands in a tile behind the size of the tree is written over.
    db.execute(
        "UPDATE stream SET last_seq = ?, tree_size = ? WHERE name = ?", (refusals_from - 1, max(kept[0], 0), REFUSALS)
    )


def seal(db: sqlite3.Connection, tree: str, sign: Sign, at: str) -> None:
    """Sign what the tree is now, unless that was done. Within a transaction."""
    size, first = state(db, tree)
    last = db.execute(
        "SELECT size, at, note FROM checkpoint WHERE tree = ? ORDER BY size DESC LIMIT 1", (tree,)
    ).fetchone()
    if size <= (last[0] if last else 0):
        return
    read = tiles(db, tree)
    # INVARIANT: nothing is signed that is not consistent with what was signed before
    # (test_a_log_that_is_not_the_one_that_was_signed_is_not_signed).
    if last and merkle.root(read, last[0]) != parse(last[2]).checkpoint.root:
        raise Regressed(f"the first {last[0]} records of {tree} are not those of the checkpoint that was signed")
    note = sign(tree, first, size, merkle.root(read, size))
    # One that somebody outside has signed is kept, and so is the last one of each minute: what was said once stays to be compared.
    db.execute(
        "DELETE FROM checkpoint WHERE tree = ? AND size = ? AND substr(at, 1, ?) = substr(?, 1, ?) "
        "AND NOT EXISTS (SELECT 1 FROM cosignature c WHERE (c.tree, c.size) = (checkpoint.tree, checkpoint.size)) "
        "AND NOT EXISTS (SELECT 1 FROM stamp s WHERE (s.tree, s.size) = (checkpoint.tree, checkpoint.size))",
        (tree, last[0] if last else 0, _KEPT, at, _KEPT),
    )
    db.execute("INSERT INTO checkpoint VALUES (?,?,?,?)", (tree, size, at, note))


def newest(db: sqlite3.Connection, tree: str, least: int = 0) -> Sealed | None:
    """The checkpoint to show for a leaf before ``least``: the newest that a witness signed, else that was stamped, else the newest."""
    query = (
        "SELECT size, at, note, (SELECT count(*) FROM cosignature c WHERE (c.tree, c.size) = (p.tree, p.size)) > 0 AS seen, "
        "(SELECT count(*) FROM stamp s WHERE (s.tree, s.size) = (p.tree, p.size)) > 0 AS stamped "
        "FROM checkpoint p WHERE tree = ? AND size >= ? ORDER BY seen DESC, stamped DESC, size DESC LIMIT 1"
    )
    row = db.execute(query, (tree, least)).fetchone()
    return (
        Sealed(tree, row[0], row[1], row[2], cosignatures(db, tree, row[0]), stamps(db, tree, row[0])) if row else None
    )


def latest(db: sqlite3.Connection, tree: str) -> Sealed | None:
    """The newest checkpoint."""
    query = "SELECT size, at, note FROM checkpoint WHERE tree = ? ORDER BY size DESC LIMIT 1"
    row = db.execute(query, (tree,)).fetchone()
    return (
        Sealed(tree, row[0], row[1], row[2], cosignatures(db, tree, row[0]), stamps(db, tree, row[0])) if row else None
    )


def cosignatures(db: sqlite3.Connection, tree: str, size: int) -> tuple[str, ...]:
    """What witnesses added to a checkpoint, a line of the note each."""
    query = "SELECT line FROM cosignature WHERE (tree, size) = (?,?) ORDER BY name"
    return tuple(line for (line,) in db.execute(query, (tree, size)))


def stamps(db: sqlite3.Connection, tree: str, size: int) -> tuple[bytes, ...]:
    """What time-stamping authorities answered about a checkpoint."""
    query = "SELECT answer FROM stamp WHERE (tree, size) = (?,?) ORDER BY url"
    return tuple(bytes(answer) for (answer,) in db.execute(query, (tree, size)))


def inclusion(db: sqlite3.Connection, tree: str, indexes: Sequence[int], size: int) -> list[list[bytes]]:
    """The proof for each leaf that it is in the tree of ``size``. Raises ``ValueError``."""
    read = tiles(db, tree)
    return [merkle.inclusion(read, index, size) for index in indexes]


def consistency(db: sqlite3.Connection, tree: str, old: int, new: int) -> list[bytes]:
    """The proof that the tree of ``new`` begins with the one of ``old``. Raises ``ValueError``."""
    return merkle.consistency(tiles(db, tree), old, new)
