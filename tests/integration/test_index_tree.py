"""The trees in the index: the same for the same streams, however they were read, and nothing signed that was not so before."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from remit_broker.adapters import index_tree, jetstream_ledger, refusal_stream
from remit_broker.adapters.index_proofs import signer
from remit_broker.adapters.jetstream import Message
from remit_broker.adapters.sqlite_index import SqliteIndex
from remit_broker.adapters.stream_tail import Regressed
from remit_broker.core import merkle, notes
from remit_broker.core.notes import LEDGER, Checkpoint
from remit_broker.core.sealing import leaf
from remit_schemas.keys import KeySet, SigningKey
from remit_schemas.records import plain
from tests.support.story import TXN, Story, hop_id, opened, refused

KEY = SigningKey.from_seed(b"\x03" * 32, "checkpoint")
SIGN = signer("https://remit.example", KEY)
BOTH = (jetstream_ledger.STREAM, refusal_stream.STREAM)


@pytest.fixture
async def index(tmp_path: Path) -> AsyncIterator[SqliteIndex]:
    index = await SqliteIndex.open(tmp_path / "index" / "index.db")
    index.signed_with(SIGN)
    yield index
    await index.close()


def entries(*stories: Story) -> list[Message]:
    """Their messages, one after the other."""
    found = [(f"ledger.{story.fold.tenant}.{story.fold.txn}", raw) for story in stories for raw in story.records]
    return [
        Message(number, subject, msgspec.json.encode({"record": raw, "grant": None}))
        for number, (subject, raw) in enumerate(found, start=1)
    ]


def story(txn: str = TXN, *, closed: bool = True) -> Story:
    made = Story(opened(txn))
    made.open(hop_id(1))
    made.close(hop_id(1))
    if closed:
        made.end()
    return made


def said_no(*records: Any, first: int = 1) -> list[Message]:
    return [
        Message(number, f"refusals.{record.tenant}", msgspec.json.encode({"record": plain(record)}))
        for number, record in enumerate(records, start=first)
    ]


def root_of(messages: list[Message]) -> bytes:
    leaves = [leaf(msgspec.json.decode(message.data)["record"]) for message in messages]
    tiles = merkle.append(0, {}, leaves)
    return merkle.root(lambda level, at: tiles[level, at], len(leaves))


async def roots(index: SqliteIndex) -> list[tuple[int, bytes]]:
    return [tuple(await index.proofs.tree(tree)) for tree in BOTH]  # type: ignore[misc]


async def test_the_tree_is_over_all_records_in_the_order_of_the_stream(index: SqliteIndex) -> None:
    messages = entries(story(), story("b" * 32, closed=False))
    await index.add(messages)
    assert (await roots(index))[0] == (len(messages), root_of(messages))


async def test_a_record_that_does_not_hold_has_its_leaf_too(index: SqliteIndex) -> None:
    """What the stream holds is what is proved, whether it is right or not."""
    messages = entries(story(), story("b" * 32))
    messages[1] = messages[1]._replace(data=messages[1].data.replace(b"agent/researcher", b"agent/somebody11"))
    messages[3] = messages[3]._replace(data=b"no entry")
    await index.add(messages)
    size, root = (await roots(index))[0]
    assert size == len(messages)
    leaves = [
        merkle.leaf_hash(m.data) if m.data == b"no entry" else leaf(msgspec.json.decode(m.data)["record"])
        for m in messages
    ]
    tiles = merkle.append(0, {}, leaves)
    assert root == merkle.root(lambda level, at: tiles[level, at], size)


async def test_a_rebuilt_index_has_the_same_roots(index: SqliteIndex) -> None:
    messages = entries(*(story(f"{number:032x}") for number in range(1, 90)))
    refusals = said_no(*(refused(hop_id(number), txn=TXN, cause="secret") for number in range(1, 40)))
    for at in range(0, len(messages), 37):
        await index.add(messages[at : at + 37])
    await index.add_refusals(refusals[:7])
    await index.add_refusals(refusals[7:])
    await index.checkpoint()
    before = await roots(index)
    await index.rebuild()
    assert [size for size, _ in await roots(index)] == [0, 0]
    await index.add(messages)
    await index.add_refusals(refusals)
    assert await roots(index) == before
    assert await index.proofs.differing(jetstream_ledger.STREAM) == []
    assert await index.proofs.differing(refusal_stream.STREAM) == []


async def test_refusals_that_their_stream_has_no_more_outlast_a_rebuild(index: SqliteIndex) -> None:
    refusals = said_no(*(refused(hop_id(number), txn=TXN) for number in range(1, 40)))
    await index.add_refusals(refusals)
    await index.checkpoint()
    before = await roots(index)
    await index.rebuild(refusals_from=20)
    await index.add_refusals(refusals[19:])
    assert await roots(index) == before
    assert len(await index.refusals("default", TXN)) == 39
    await index.rebuild(refusals_from=40)
    assert await roots(index) == before


async def test_a_batch_that_is_not_written_has_not_moved_the_tree(index: SqliteIndex, tmp_path: Path) -> None:
    messages = entries(story(), story("b" * 32))
    await index.add(messages[:4])
    before = await roots(index)
    other = sqlite3.connect(tmp_path / "index" / "index.db")
    other.execute(
        "CREATE TRIGGER full BEFORE INSERT ON tile BEGIN SELECT raise(abort, 'database or disk is full'); END"
    )
    other.commit()
    with pytest.raises(sqlite3.DatabaseError):
        await index.add(messages[4:])
    assert await roots(index) == before and index.position == 4
    assert other.execute("SELECT count(*) FROM record").fetchone() == (4,), "nor any row been written without its leaf"
    other.execute("DROP TRIGGER full")
    other.commit()
    other.close()
    await index.add(messages)
    assert (await roots(index))[0] == (len(messages), root_of(messages))


async def test_a_checkpoint_is_signed_with_the_end_of_a_txn(index: SqliteIndex) -> None:
    messages = entries(story())
    await index.add(messages[:-1])
    assert await index.proofs.sealed(jetstream_ledger.STREAM) is None
    await index.add(messages)
    sealed = await index.proofs.sealed(jetstream_ledger.STREAM)
    assert sealed is not None and sealed.size == len(messages)
    note = notes.parse(sealed.note)
    assert notes.signer(note, KeySet([KEY.public])) == KEY.public
    assert note.checkpoint == Checkpoint(notes.origin("https://remit.example", LEDGER), 4, root_of(messages))


async def test_what_has_not_changed_is_not_signed_again(index: SqliteIndex) -> None:
    await index.add(entries(story()))
    await index.add_refusals(said_no(refused(txn=TXN)))
    await index.checkpoint()
    first = [await index.proofs.sealed(tree) for tree in BOTH]
    await index.checkpoint()
    assert [await index.proofs.sealed(tree) for tree in BOTH] == first
    assert [sealed and sealed.size for sealed in first] == [4, 1]


async def test_a_log_that_is_not_the_one_that_was_signed_is_not_signed(index: SqliteIndex) -> None:
    await index.add(entries(story(), story("b" * 32)))
    await index.rebuild()
    with pytest.raises(Regressed, match="the first 8 records of LEDGER are not those of the checkpoint"):
        await index.add(entries(story("c" * 32), story("d" * 32), story("e" * 32)))
    assert index.position == 0


async def test_each_record_and_refusal_of_a_chain_is_proved(index: SqliteIndex) -> None:
    await index.add(entries(story(), story("b" * 32), story("c" * 32)))
    await index.add_refusals(said_no(refused(), refused(hop_id(5), txn="b" * 32), refused(hop_id(6), txn="b" * 32)))
    await index.checkpoint()
    chain, refusals = await index.chain("default", "b" * 32), await index.refusals("default", "b" * 32)
    proofs = await index.proofs.of(chain, refusals)
    assert proofs is not None and proofs.proof.index == 7
    assert [place.index for place in proofs.refusal_proofs] == [1, 2]
    root = notes.parse(proofs.checkpoint).checkpoint
    assert merkle.proves_inclusion(leaf(chain[-1]["record"]), 7, root.size, proofs.proof.hashes, root.root)


async def test_one_that_somebody_outside_signed_is_shown_rather_than_a_newer_one(
    index: SqliteIndex, tmp_path: Path
) -> None:
    await index.add(entries(story()))
    with sqlite3.connect(tmp_path / "index" / "index.db") as db:
        db.execute("INSERT INTO cosignature VALUES ('LEDGER', 4, 'w', '— w AAAA')")
    messages = entries(story(), story("b" * 32))
    await index.add(messages)
    seen, newer = await index.proofs.sealed("LEDGER"), await index.proofs.sealed("LEDGER", 5)
    assert seen is not None and (seen.size, seen.cosignatures) == (4, ("— w AAAA",))
    assert newer is not None and newer.size == 8


async def test_a_consistency_proof_leads_from_an_old_checkpoint_to_the_newest(index: SqliteIndex) -> None:
    await index.add(entries(story()))
    old = await index.proofs.tree("LEDGER")
    await index.add(entries(story(), *(story(f"{number:032x}") for number in range(1, 80))))
    new = await index.proofs.tree("LEDGER")
    steps = await index.proofs.consistent("LEDGER", old.size, new.size)
    assert merkle.proves_consistency(old.size, new.size, steps, old.root, new.root)
    assert index_tree.Sealed("LEDGER", 1, "", notes.sign(Checkpoint("a", 1, old.root), KEY)).checkpoint.size == 1
