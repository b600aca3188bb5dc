"""The Merkle tree over what a stream holds, made anew, and what was kept of it: tiles, checkpoints, and one that somebody took away.

Pure. A finding names the first leaf that is not what it was, and with it the message of the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from remit_broker.core import merkle, notes
from remit_broker.core.merkle import HASH, WIDTH, Place
from remit_broker.core.notes import LEDGER, REFUSALS
from remit_broker.core.sealing import Unproved, checked
from remit_schemas.canonical import canonical_document
from remit_schemas.keys import KeySet

MISSING: Final = bytes(HASH)
"""Stands where the stream has lost a message: no hash of anything."""
Say = Callable[[str, int, str], None]
"""A check, the place in its stream, and what is wrong there."""


class LogAudit:
    """One log. Give it the leaves in order; then compare."""

    def __init__(self, kind: str, keys: KeySet, say: Say) -> None:
        """``kind`` is :data:`~remit_broker.core.notes.LEDGER` or :data:`~remit_broker.core.notes.REFUSALS`."""
        self._kind, self._keys, self._say = kind, keys, say
        self._tiles: dict[Place, bytes] = {}
        self._waiting: list[bytes] = []
        self._size = 0
        self.first = 1
        """The message of the stream that is the first leaf."""
        self.checkpoints = 0

    @property
    def size(self) -> int:
        """How many leaves there are."""
        return self._size + len(self._waiting)

    def leaf(self, data: bytes) -> None:
        """The next one, of a record's canonical form."""
        self.hash(merkle.leaf_hash(data))

    def record(self, record: Mapping[str, Any] | None, data: bytes) -> None:
        """The next one, of a message: its record where it can be read, else its bytes."""
        try:
            form = data if record is None else canonical_document(dict(record))
        except (ValueError, RecursionError):
            form = data
        self.leaf(form)

    def gap(self, count: int) -> None:
        """So many messages are missing."""
        for _ in range(count):
            self.hash(MISSING)

    def hash(self, leaf: bytes) -> None:
        """The next leaf by its hash."""
        self._waiting.append(leaf)
        if len(self._waiting) >= WIDTH:
            self._grow()

    def kept(self, tiles: Iterable[tuple[Place, bytes]], size: int) -> None:
        """The tiles that the index has of the first ``size`` leaves."""
        self._grow()
        if size > self._size:
            self._say(
                "tree", self.first + self._size, f"the index has a tree of {size}, the log has {self._size} records"
            )
            return
        stored = dict(tiles)
        for (level, index), mine in sorted(self._tiles.items()):
            count = min((size >> (8 * level)) - index * WIDTH, WIDTH)
            if count <= 0:
                continue
            theirs = stored.get((level, index), b"")
            if theirs[: count * HASH] != mine[: count * HASH]:
                at = next(n for n in range(count) if _of(theirs, n) != _of(mine, n))
                leaf = (index * WIDTH + at) << (8 * level)
                what = "this message" if level == 0 else f"the {WIDTH**level} messages from this one on"
                self._say("tree", self.first + leaf, f"what the tree has of {what} is not what stands there")
                return

    def said(self, note: str, size: int) -> None:
        """A checkpoint that the index keeps as one of ``size``."""
        self.checkpoints += 1
        if why := self._unlike(note, size):
            self._say("checkpoints", self.first + size - 1, f"the checkpoint at {size}: {why}")

    def since(self, note: str) -> str:
        """A checkpoint that somebody kept elsewhere: how far it reaches, in words."""
        why = self._unlike(note, None)
        if why:
            self._say("since", 0, why)
        return "" if why else f"the log begins with the {notes.parse(note).checkpoint.size} records of the checkpoint"

    def root(self, size: int) -> bytes:
        """The root over the first ``size`` leaves."""
        self._grow()
        return merkle.root(lambda level, index: self._tiles[level, index], size)

    def _unlike(self, note: str, size: int | None) -> str:
        """Why the checkpoint is not one of this log, or nothing."""
        try:
            _, point, _ = checked(note, self._keys, self._kind)
        except Unproved as no:
            return str(no)
        if size is not None and point.size != size:
            return f"it says {point.size}"
        if point.size > self.size:
            return f"it is of {point.size} records, the log has {self.size}: its end was cut off"
        # INVARIANT: what was signed once stays so (test_a_log_that_was_rewritten_is_not_the_one_of_a_kept_checkpoint).
        if self.root(point.size) != point.root:
            return f"the first {point.size} records are not those that it was signed of"
        return ""

    def _grow(self) -> None:
        ragged = {place: self._tiles[place] for place in merkle.wanted(self._size)}
        self._tiles |= merkle.append(self._size, ragged, self._waiting)
        self._size += len(self._waiting)
        self._waiting = []


def _of(hashes: bytes, number: int) -> bytes:
    return hashes[number * HASH : (number + 1) * HASH]


__all__ = ["LEDGER", "MISSING", "REFUSALS", "LogAudit"]
