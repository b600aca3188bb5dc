"""Witnesses: what they sign is kept and shown, and nothing is passed off as theirs, or as what they saw."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import httpx
import pytest

from remit_broker.adapters.index_proofs import signer
from remit_broker.adapters.outbound import Answer
from remit_broker.adapters.sqlite_index import SqliteIndex
from remit_broker.core import merkle, notes
from remit_broker.core.notes import Witness
from remit_broker.witnesses import Witnesses
from remit_schemas.keys import KeySet, SigningKey
from tests.integration.test_index_tree import entries, story

LOG = SigningKey.from_seed(b"\x03" * 32, "checkpoint")
OUTSIDE = SigningKey.from_seed(b"\x05" * 32, "witness")
WITNESS = Witness("w.example", OUTSIDE.public.raw)
URL = "https://w.example/log"


class Outside:
    """A witness as C2SP tlog-witness has it: it signs what begins with what it saw last, and nothing else."""

    def __init__(self, key: SigningKey = OUTSIDE) -> None:
        self.key, self.size, self.root = key, 0, merkle.EMPTY
        self.asked = 0

    async def send(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> Answer:
        assert (method, url) == ("POST", f"{URL}/add-checkpoint")
        self.asked += 1
        head, _, note = (body or b"").decode().partition("\n\n")
        old, *steps = head.split("\n")
        point = notes.parse(note).checkpoint
        assert notes.signer(notes.parse(note), KeySet([LOG.public])) == LOG.public
        if int(old.removeprefix("old ")) != self.size:
            return Answer(409, httpx.Headers(), f"{self.size}\n".encode())
        proof = [base64.b64decode(step) for step in steps]
        if not merkle.proves_consistency(self.size, point.size, proof, self.root, point.root):
            return Answer(422, httpx.Headers(), b"")
        self.size, self.root = point.size, point.root
        return Answer(
            200, httpx.Headers(), f"{notes.cosign(point, 'w.example', self.key, 1_800_000_000).line}\n".encode()
        )


class Told:
    """Faults."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    def fault(self, where: str, error: BaseException) -> None:
        self.faults.append(f"{where}: {error}")


@pytest.fixture
async def index(tmp_path: Path) -> AsyncIterator[SqliteIndex]:
    index = await SqliteIndex.open(tmp_path / "index" / "index.db")
    index.signed_with(signer("https://remit.example", LOG))
    yield index
    await index.close()


def sending(index: SqliteIndex, outside: Outside, told: Told, file: Path | None = None) -> Witnesses:
    return Witnesses({URL: WITNESS.vkey}, file, outside, index, told)  # type: ignore[arg-type]


async def test_what_a_witness_signed_is_kept_and_shown(index: SqliteIndex) -> None:
    outside, told = Outside(), Told()
    witnesses = sending(index, outside, told)
    await witnesses.once()
    await index.add(entries(story()))
    await witnesses.once()
    await witnesses.once()
    assert outside.asked == 1, "what is signed is not sent again"
    await index.add(entries(story(), story("b" * 32), story("c" * 32)))
    await sending(index, outside, told).once()  # another process, which remembers nothing
    sealed = await index.proofs.sealed("LEDGER")
    assert sealed is not None and sealed.size == 12 and told.faults == []
    (line,) = sealed.cosignatures
    assert notes.cosigned(notes.parse(sealed.note).text, notes.parse_line(line), [WITNESS]) == (WITNESS, 1_800_000_000)


async def test_a_log_that_was_rewritten_gets_no_signature(index: SqliteIndex, tmp_path: Path) -> None:
    outside, told = Outside(), Told()
    await index.add(entries(story()))
    await sending(index, outside, told).once()
    other = await SqliteIndex.open(tmp_path / "other" / "index.db")
    other.signed_with(signer("https://remit.example", LOG))
    await other.add(entries(story("b" * 32), story("c" * 32)))
    await sending(other, outside, told).once()
    await other.close()
    assert told.faults == ["witness: the witness w.example did not sign 8: it answered 422"]


async def test_a_log_that_is_behind_its_witness_is_said(index: SqliteIndex) -> None:
    outside, told = Outside(), Told()
    outside.size = 99
    await index.add(entries(story()))
    await sending(index, outside, told).once()
    assert "it has seen 99 records, the log has 4: its end is missing" in told.faults[0]


async def test_a_cosignature_by_somebody_else_is_none(index: SqliteIndex) -> None:
    outside, told = Outside(SigningKey.from_seed(b"\x06" * 32, "witness")), Told()
    await index.add(entries(story()))
    await sending(index, outside, told).once()
    sealed = await index.proofs.sealed("LEDGER")
    assert sealed is not None and sealed.cosignatures == ()
    assert told.faults == ["witness: the witness w.example did not sign 4: its answer is not signed by its key"]


async def test_each_checkpoint_is_appended_to_the_file_and_none_is_written_over(
    index: SqliteIndex, tmp_path: Path
) -> None:
    file, told = tmp_path / "checkpoints.txt", Told()
    witnesses = Witnesses({}, file, Outside(), index, told)  # type: ignore[arg-type]
    await index.add(entries(story()))
    await witnesses.once()
    before = file.read_text()
    await witnesses.once()
    await index.add(entries(story(), story("b" * 32)))
    await witnesses.once()
    assert file.read_text().startswith(before) and told.faults == []
    sizes = [line for line in file.read_text().splitlines() if line.isdigit()]
    assert sizes == ["4", "8"]
