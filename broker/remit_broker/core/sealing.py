"""What a log of records proves of one chain: the checkpoint, that the last record and each refusal are in it, who outside saw it. Pure.

A record names the one before it, so a proof of the last one covers all. After ``txn.closed`` nothing can follow, so a proof of that one
is also a proof that nothing was left out; a chain that is open has no such proof.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from remit_broker.core import notes
from remit_broker.core.merkle import leaf_hash, proves_inclusion
from remit_broker.core.notes import LEDGER, REFUSALS, Checkpoint, Note, Witness
from remit_schemas.canonical import canonical_document
from remit_schemas.errors import Refusal
from remit_schemas.keys import KeySet
from remit_schemas.records import parse_entry

MAX_STEPS: Final = 64


class Place(msgspec.Struct, frozen=True):
    """Where a leaf stands, and the hashes that prove it."""

    index: int
    hashes: Sequence[bytes]

    def told(self) -> dict[str, Any]:
        """As it stands in an evidence file."""
        return {"index": self.index, "hashes": [base64.b64encode(step).decode() for step in self.hashes]}


class Proofs(msgspec.Struct, frozen=True, kw_only=True):
    """What an evidence file has beside the records. The refusals have a log of their own; without any there is no checkpoint of it."""

    checkpoint: str
    proof: Place
    cosignatures: Sequence[str] = ()
    timestamps: Sequence[bytes] = ()
    refusal_checkpoint: str | None = None
    refusal_proofs: Sequence[Place] = ()

    def told(self) -> dict[str, Any]:
        """The members of an evidence file."""
        return {
            "checkpoint": self.checkpoint,
            "proof": self.proof.told(),
            "cosignatures": list(self.cosignatures),
            "timestamps": [base64.b64encode(answer).decode() for answer in self.timestamps],
            "refusal_checkpoint": self.refusal_checkpoint,
            "refusal_proofs": [place.told() for place in self.refusal_proofs],
        }


class Unproved(Exception):  # noqa: N818
    """What does not hold, in words."""


def leaf(record: Mapping[str, Any]) -> bytes:
    """The leaf of a record: SHA-256 over a zero byte and its canonical form (RFC 6962 §2.1, RFC 8785). Raises ``ValueError``."""
    return leaf_hash(canonical_document(dict(record)))


def refusal_leaf(data: bytes) -> bytes:
    """The leaf of a message of the refusals: of its record with an empty cause, as it leaves with evidence; else of its bytes."""
    try:
        return leaf_hash(canonical_document({**parse_entry(data).record, "cause": ""}))
    except (Refusal, ValueError, TypeError, RecursionError):
        return leaf_hash(data)


def checked(text: Any, keys: KeySet, kind: str) -> tuple[Note, Checkpoint, str]:
    """A checkpoint of the log ``kind`` signed by a trusted key, and the id of that key. Raises :class:`Unproved`."""
    if not isinstance(text, str):
        raise Unproved("there is none: nothing shows that this is what the log holds")
    try:
        note = notes.parse(text)
        checkpoint = note.checkpoint
    except ValueError as bad:
        raise Unproved(str(bad)) from None
    # INVARIANT: one log's checkpoint does not stand for another's (test_a_checkpoint_of_the_refusals_is_none_of_the_ledger).
    before, found, after = checkpoint.origin.rpartition(kind)
    if not found or not before or (after != "" if kind == LEDGER else not after.isdigit()):
        raise Unproved(f"it is of the log {checkpoint.origin}")
    key = notes.signer(note, keys)
    if key is None:
        raise Unproved("no trusted key for checkpoints signed it")
    return note, checkpoint, key.kid


def included(record: Mapping[str, Any], told: Any, checkpoint: Checkpoint) -> int:
    """The index of the leaf of ``record``, proved by ``told`` to be under the checkpoint. Raises :class:`Unproved`."""
    index, steps = _place(told)
    if not proves_inclusion(leaf(record), index, checkpoint.size, steps, checkpoint.root):
        raise Unproved("it is not under the checkpoint")
    return index


def witnessed(lines: Any, text: str, witnesses: Iterable[Witness]) -> str:
    """Who outside saw the checkpoint, and when, in words. Raises :class:`Unproved` where ``witnesses`` are named and one did not."""
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise Unproved("cosignatures are lines of a note")
    named, seen = list(witnesses), {}
    for line in lines:
        try:
            found = notes.cosigned(text, notes.parse_line(line), named)
        except ValueError as bad:
            raise Unproved(str(bad)) from None
        if found is not None:
            seen[found[0].name] = found[1]
    if missing := next((witness.name for witness in named if witness.name not in seen), None):
        raise Unproved(f"the witness {missing} did not sign this checkpoint")
    if seen:
        return ", ".join(f"{name} saw it at {at} (Unix time)" for name, at in seen.items())
    return f"{len(lines)} of witnesses that nobody named: not looked at" if lines else "nobody outside has seen it"


def _place(told: Any) -> tuple[int, list[bytes]]:
    try:
        place = msgspec.convert(told, _Told)
        return place.index, [base64.b64decode(step, validate=True) for step in place.hashes]
    except (ValueError, TypeError):
        raise Unproved("the proof is not of the form that proofs have") from None


class _Told(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A proof as it stands in a file."""

    index: int
    hashes: list[str]

    def __post_init__(self) -> None:
        if len(self.hashes) > MAX_STEPS:
            raise ValueError("no tree is that high")


__all__ = ["LEDGER", "REFUSALS", "Place", "Proofs", "Unproved", "checked", "included", "leaf", "witnessed"]
