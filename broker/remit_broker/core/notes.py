"""Checkpoints of a log as signed notes: what is signed, by whom, and what a witness adds. Pure.

The formats are those of C2SP: signed-note (Ed25519, type 0x01), tlog-checkpoint, and tlog-cosignature (``cosignature/v1``, type
0x04). A note is text, an empty line, and a line for each signature; a key is named by the first four bytes of a hash over its name,
its type and itself.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from typing import Final

import msgspec

from remit_schemas.keys import CHECKPOINT, KeySet, PublicKey, SigningKey

ED25519: Final = 1
COSIGNATURE: Final = 4
LEDGER: Final = "/remit/ledger"
REFUSALS: Final = "/remit/refusals/"
MAX_NOTE: Final = 64 * 1024
_DASH: Final = "— "
_ID_BYTES: Final = 4
_NAME: Final = re.compile(r"[^\s+\x00-\x20\x7f]{1,512}")
_SIZE: Final = re.compile(r"0|[1-9][0-9]{0,17}")


class Checkpoint(msgspec.Struct, frozen=True):
    """What a log says of itself: its name, how many leaves it has, and the root over them."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """What is signed (C2SP tlog-checkpoint)."""
        return f"{self.origin}\n{self.size}\n{_base64(self.root)}\n"


class Signature(msgspec.Struct, frozen=True):
    """One line of a note: the name of the key, its id, and what it signed with."""

    name: str
    id: bytes
    data: bytes

    @property
    def line(self) -> str:
        """As it stands in a note, without the end of the line."""
        return f"{_DASH}{self.name} {_base64(self.id + self.data)}"


class Note(msgspec.Struct, frozen=True):
    """A text with the signatures under it. Nothing of it was verified."""

    text: str
    signatures: tuple[Signature, ...]

    @property
    def checkpoint(self) -> Checkpoint:
        """The text as a checkpoint; extension lines are passed over. Raises ``ValueError``."""
        origin, size, root, *_ = [*self.text.split("\n"), "", "", ""]
        if not _NAME.fullmatch(origin) or not _SIZE.fullmatch(size) or len(top := _bytes(root)) != 32:
            raise ValueError("the note is no checkpoint")
        return Checkpoint(origin, int(size), top)


class Witness(msgspec.Struct, frozen=True):
    """Somebody outside who cosigns: the name and the key of a C2SP verifier key."""

    name: str
    raw: bytes

    @property
    def id(self) -> bytes:
        """The id of its key in a note."""
        return key_id(self.name, COSIGNATURE, self.raw)

    @property
    def vkey(self) -> str:
        """The key as C2SP writes it: ``name+id+base64(type and key)``."""
        return f"{self.name}+{self.id.hex()}+{_base64(bytes([COSIGNATURE]) + self.raw)}"


def origin(issuer: str, kind: str) -> str:
    """The name of a log of ``issuer`` (a URL): without its scheme, and with nothing in it that a note cannot name."""
    return re.sub(r"[\s+\x00-\x20\x7f]", "-", issuer.partition("://")[2].rstrip("/") or issuer) + kind


def key_id(name: str, kind: int, raw: bytes) -> bytes:
    """The id of a key in a note (C2SP signed-note)."""
    return hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + raw).digest()[:_ID_BYTES]


def sign(checkpoint: Checkpoint, key: SigningKey) -> str:
    """The checkpoint as a note signed by ``key``, whose name in it is the origin. Raises ``ValueError`` for a key of another use."""
    if key.public.use != CHECKPOINT:
        raise ValueError(f"a key for {key.public.use} signs no checkpoint")
    text = checkpoint.text
    line = Signature(checkpoint.origin, key_id(checkpoint.origin, ED25519, key.public.raw), key.sign(text.encode()))
    return f"{text}\n{line.line}\n"


def parse(text: str) -> Note:
    """A note. Raises ``ValueError`` for anything that is none."""
    body, found, rest = text.rpartition("\n\n")
    lines = rest.split("\n")
    if len(text) > MAX_NOTE or not found or not body or lines[-1] or len(lines) < 2:
        raise ValueError("it is no signed note")
    return Note(body + "\n", tuple(parse_line(line) for line in lines[:-1]))


def parse_line(line: str) -> Signature:
    """One signature. Raises ``ValueError``."""
    name, _, data = line.removeprefix(_DASH).partition(" ")
    raw = _bytes(data)
    if not line.startswith(_DASH) or not _NAME.fullmatch(name) or len(raw) <= _ID_BYTES:
        raise ValueError("a line of the note is no signature")
    return Signature(name, raw[:_ID_BYTES], raw[_ID_BYTES:])


def signer(note: Note, keys: KeySet) -> PublicKey | None:
    """The key among ``keys`` that signed the note under the name of its log, if one did.

    INVARIANT: only a key for checkpoints counts (test_a_checkpoint_signed_by_a_key_for_grants_is_found).
    """
    name = note.text.partition("\n")[0]
    for key in keys:
        if key.use == CHECKPOINT:
            wanted = key_id(name, ED25519, key.raw)
            for found in note.signatures:
                if (found.name, found.id) == (name, wanted) and key.verify(note.text.encode(), found.data):
                    return key
    return None


def cosign(checkpoint: Checkpoint, name: str, key: SigningKey, at: int) -> Signature:
    """What a witness adds at ``at`` (Unix seconds): that it saw this checkpoint, consistent with all it saw before."""
    signed = key.sign(_witnessed(checkpoint.text, at))
    return Signature(name, key_id(name, COSIGNATURE, key.public.raw), at.to_bytes(8, "big") + signed)


def cosigned(text: str, found: Signature, witnesses: Iterable[Witness]) -> tuple[Witness, int] | None:
    """The witness who made ``found`` over the text of a checkpoint, and when (Unix seconds); None where none of them did."""
    for witness in witnesses:
        if (found.name, found.id) == (witness.name, witness.id) and len(found.data) == 72:
            at = int.from_bytes(found.data[:8], "big")
            if PublicKey("witness", "witness", witness.raw).verify(_witnessed(text, at), found.data[8:]):
                return witness, at
    return None


def parse_vkey(text: str) -> Witness:
    """The verifier key of a witness. Raises ``ValueError``."""
    name, _, rest = text.strip().partition("+")
    said, _, data = rest.partition("+")
    raw = _bytes(data)
    witness = Witness(name, raw[1:])
    if not _NAME.fullmatch(name) or len(raw) != 33 or raw[0] != COSIGNATURE or witness.id.hex() != said:
        raise ValueError("it is no verifier key of a witness: name+id+base64, with the type of cosignatures (04)")
    return witness


def _witnessed(text: str, at: int) -> bytes:
    return f"cosignature/v1\ntime {at}\n{text}".encode()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    """Base64 in its one form, else nothing."""
    try:
        data = base64.b64decode(text.encode(), validate=True)
    except (binascii.Error, ValueError):
        return b""
    return data if _base64(data) == text else b""
