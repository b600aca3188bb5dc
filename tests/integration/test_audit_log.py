"""The audit of the log: whatever was changed in the stream, the index or the checkpoints is found at the first place."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from remit_broker.adapters import audit as adapter
from remit_broker.adapters import jetstream_ledger, refusal_stream
from remit_broker.adapters.index_proofs import signer
from remit_broker.adapters.jetstream import Message
from remit_broker.adapters.sqlite_index import SqliteIndex
from remit_broker.core.audit import Audit, Report
from remit_schemas.keys import KeySet, SigningKey
from remit_schemas.records import hash_of
from tests.integration.test_index_tree import entries, said_no, story
from tests.support.story import TXN, hop_id, refused

SEAL = SigningKey.from_seed(b"\x03" * 32, "checkpoint")
FORGER = SigningKey.from_seed(b"\x04" * 32, "checkpoint")
ISSUER = "https://remit.example"
TRUSTED = KeySet([SEAL.public])
LEDGER = entries(*(story(f"{number:032x}") for number in range(1, 80)))
REFUSED = said_no(
    *(msgspec.structs.replace(refused(hop_id(number), txn=TXN), cause="secret") for number in range(1, 12))
)


class Town:
    """A ledger, its refusals and the index of them; what is changed in them is found by :meth:`audited`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ledger, self.refused = list(LEDGER), list(REFUSED)

    async def indexed(self, key: SigningKey = SEAL) -> str:
        """Project what there is; the newest checkpoint."""
        index = await SqliteIndex.open(self.path)
        index.signed_with(signer(ISSUER, key))
        for at in range(0, len(self.ledger), 37):
            await index.add(self.ledger[at : at + 37])
        await index.add_refusals(self.refused)
        await index.checkpoint()
        sealed = await index.proofs.sealed(jetstream_ledger.STREAM)
        await index.close()
        assert sealed is not None
        return sealed.note

    def sql(self, statement: str, *given: Any) -> None:
        with sqlite3.connect(self.path) as db:
            assert db.execute(statement, given).rowcount > 0

    def audited(self, since: str | None = None, keys: KeySet = TRUSTED) -> Report:
        found = Audit(keys)
        with adapter._rows(self.path, found) as index:
            for message in self.ledger:
                index.upto(message.seq - 1)
                index.beside(message.seq, found.entry(message.seq, message.subject, message.data))
            index.end()
            index.tree(found.log, jetstream_ledger.STREAM)
            index.refused(found.refused)
            for message in self.refused:
                found.refusal(message.seq, message.data, index.refusal(message.seq))
        if since is not None:
            found.note("since", found.log.since(since))
        return found.report()

    def bad(self, **more: Any) -> dict[str, str]:
        """The checks that failed, and where first; the grants of these records were never minted."""
        report = self.audited(**more)
        return {one["check"]: one["where"] for one in report.checks if not one["ok"] and one["check"] != "grants"}


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    town = Town(tmp_path / "index" / "index.db")
    await town.indexed()
    yield town


def changed(message: Message, change: Callable[[dict[str, Any]], Any], *, seal: bool = True) -> Message:
    entry = msgspec.json.decode(message.data)
    change(entry["record"])
    if seal:
        entry["record"]["hash"] = hash_of(entry["record"])
    return message._replace(data=msgspec.json.encode(entry))


def test_a_log_that_nobody_touched_is_well(town: Town) -> None:
    assert town.bad() == {}
    said = {one["check"]: one["where"] for one in town.audited().checks}
    assert said["tree"] == f"the tree over {len(LEDGER)} records is the one that the index has"
    assert "checkpoints: signatures and roots" in said["checkpoints"]


def test_a_record_changed_in_the_stream_is_found_in_the_tree_too(town: Town) -> None:
    """Also where it was sealed anew: the last record of a txn, which no other names."""
    town.ledger[7] = changed(town.ledger[7], lambda record: record.update(who="somebody"))
    found = town.bad()
    assert found["tree"].startswith("stream 8: what the tree has of this message")
    assert "not those that it was signed of" in found["checkpoints"]


def test_records_in_another_order_are_found_at_the_first(town: Town) -> None:
    one, other = town.ledger[3], town.ledger[4]
    town.ledger[3], town.ledger[4] = other._replace(seq=4), one._replace(seq=5)
    assert town.bad()["tree"].startswith("stream 4:")


def test_a_record_put_in_is_found_where_it_stands(town: Town) -> None:
    extra = entries(story("f" * 32))[0]
    moved = [message._replace(seq=message.seq + 1) for message in town.ledger[8:]]
    town.ledger[8:] = [extra._replace(seq=9), *moved]
    assert town.bad()["tree"].startswith("stream 9:")


def test_a_record_that_is_gone_is_found(town: Town) -> None:
    del town.ledger[8]
    assert town.bad()["tree"].startswith("stream 9:") and town.bad()["stream"].startswith("stream 9:")


def test_an_end_that_was_cut_off_is_found_by_tree_and_checkpoint(town: Town) -> None:
    del town.ledger[-4:]
    found = town.bad()
    assert "its end was cut off" in found["checkpoints"] and "the index has a tree of 316" in found["tree"]


async def test_a_stream_and_an_index_made_anew_do_not_fit_the_checkpoints(town: Town) -> None:
    """Whoever may write everything but has not the key: rows and tree agree, what was signed does not."""
    town.ledger[7] = changed(town.ledger[7], lambda record: record.update(who="somebody"))
    with sqlite3.connect(town.path) as db:
        kept = db.execute("SELECT * FROM checkpoint").fetchall()
    town.path.unlink()
    await town.indexed(FORGER)
    assert "no trusted key" in town.bad()["checkpoints"]
    with sqlite3.connect(town.path) as db:
        db.execute("DELETE FROM checkpoint")
        db.executemany("INSERT INTO checkpoint VALUES (?,?,?,?)", kept)
    assert "not those that it was signed of" in town.bad()["checkpoints"]


async def test_a_log_that_was_rewritten_is_not_the_one_of_a_kept_checkpoint(town: Town) -> None:
    """Also by whoever holds every key, once a checkpoint has left the house."""
    with sqlite3.connect(town.path) as db:
        note = str(db.execute("SELECT note FROM checkpoint WHERE tree = 'LEDGER' ORDER BY size DESC").fetchone()[0])
    assert town.bad(since=note) == {}
    more = entries(*(story(f"{number:032x}") for number in range(1, 90)))
    town.ledger = more
    assert "since" not in town.bad(since=note)
    town.ledger[7] = changed(town.ledger[7], lambda record: record.update(who="somebody"))
    town.path.unlink()
    await town.indexed()
    assert list(town.bad()) == []
    assert "are not those that it was signed of" in town.bad(since=note)["since"]
    assert "no trusted key" in town.bad(since=note, keys=KeySet([FORGER.public]))["since"]
    del town.ledger[100:]
    assert "its end was cut off" in town.bad(since=note)["since"]


@pytest.mark.parametrize("note", ["", "x", "a\n1\nAAAA\n\n— a AAAAAAAA\n"])
def test_what_is_no_checkpoint_is_none(town: Town, note: str) -> None:
    assert "since" in town.bad(since=note)


@pytest.mark.parametrize("level", [0, 1])
def test_a_tile_that_was_changed_is_found(town: Town, level: int) -> None:
    town.sql("UPDATE tile SET hashes = zeroblob(length(hashes)) WHERE tree = 'LEDGER' AND level = ?", level)
    assert town.bad()["tree"].startswith("stream 1:")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE checkpoint SET note = replace(note, '316', '315') WHERE tree = 'LEDGER'",
        "UPDATE checkpoint SET size = size - 1 WHERE tree = 'LEDGER'",
        "UPDATE checkpoint SET note = (SELECT note FROM checkpoint WHERE tree = 'REFUSALS') WHERE tree = 'LEDGER'",
        "UPDATE checkpoint SET note = '' WHERE tree = 'REFUSALS'",
    ],
)
def test_a_checkpoint_that_was_changed_or_replayed_is_found(town: Town, statement: str) -> None:
    town.sql(statement)
    assert "checkpoints" in town.bad()


def test_a_row_of_the_index_that_was_changed_is_found(town: Town) -> None:
    town.sql("UPDATE record SET body = replace(body, 'planner', 'painter') WHERE stream_seq = 5")
    assert list(town.bad()) == ["index"]
    town.sql("DELETE FROM record WHERE stream_seq = 5")
    assert town.bad()["index"].startswith("stream 5")


@pytest.mark.parametrize(
    ("statements", "where"),
    [
        (["UPDATE record SET stream_seq = -1 WHERE stream_seq = 5", "UPDATE record SET stream_seq = 5 WHERE stream_seq = 6",
          "UPDATE record SET stream_seq = 6 WHERE stream_seq = -1"], "stream 5"),
        (["INSERT INTO record SELECT 100000, tenant, txn, 99, at, kind, hop, body, NULL FROM record WHERE stream_seq = 5"], None),
        (["DELETE FROM record WHERE stream_seq > 300"], "stream 301"),
        (["UPDATE record SET body = (SELECT body FROM record WHERE stream_seq = 4) WHERE stream_seq = 5"], "stream 5"),
    ],
    ids=["reordered", "inserted", "truncated", "replayed"],
)  # fmt: skip
def test_rows_of_the_index_that_were_moved_made_up_or_cut_off_are_found(
    town: Town, statements: list[str], where: str | None
) -> None:
    for statement in statements:
        town.sql(statement)
    found = town.bad()
    assert "index" in found and (where is None or found["index"].startswith(where)), found


def test_a_record_that_is_replayed_in_the_stream_is_found_where_it_stands_again(town: Town) -> None:
    """At the end, where nothing is moved by it."""
    last = len(town.ledger)
    town.ledger.append(town.ledger[7]._replace(seq=last + 1))
    found = town.bad()
    assert any(
        where.startswith((f"stream {last + 1}", town.ledger[7].subject.split(".")[2])) for where in found.values()
    ), found


async def test_checkpoints_that_were_taken_away_are_missed_by_whoever_kept_one(town: Town) -> None:
    """The file alone cannot say that it once had another: a checkpoint out of the house can, and so can the witness of the stream."""
    with sqlite3.connect(town.path) as db:
        kept = str(db.execute("SELECT note FROM checkpoint WHERE tree = 'LEDGER' ORDER BY size DESC").fetchone()[0])
    town.sql("DELETE FROM checkpoint")
    assert town.bad(since=kept) == {}, "the log is still the one that was signed"
    del town.ledger[-4:]
    found = town.bad(since=kept)
    assert "since" in found and "tree" in found


def test_a_refusal_that_was_changed_is_found_although_it_was_sealed_anew(town: Town) -> None:
    town.refused[4] = changed(
        town.refused[4],
        lambda record: record.update(message="another", hash=hash_of({**record, "message": "another", "cause": ""})),
        seal=False,
    )
    assert list(town.bad()) == ["tree"]
    assert town.bad()["tree"].startswith("stream 5: what the tree of refusals has")


def test_the_cause_of_a_refusal_is_a_note_and_no_evidence(town: Town) -> None:
    town.refused[4] = changed(town.refused[4], lambda record: record.update(cause="another"), seal=False)
    assert town.bad() == {}


def test_refusals_whose_stream_has_discarded_the_oldest_are_well(town: Town) -> None:
    del town.refused[:5]
    assert town.bad() == {}


@pytest.mark.parametrize(
    "write",
    [
        lambda text: text.replace('"seq":0', '"seq":0.0'),
        lambda text: text.replace('"seq":0', '"seq":0,"seq":0'),
        lambda text: text.replace("planner", "planner\u0301"),
    ],
)
def test_a_record_written_in_another_way_is_another_record(town: Town, write: Callable[[str], str]) -> None:
    """Numbers, names that come twice, and what looks the same in Unicode."""
    first = town.ledger[0]
    town.ledger[0] = first._replace(data=write(first.data.decode()).encode())
    assert town.bad()
    assert town.ledger[0] != first


def test_the_streams_are_those_that_are_named() -> None:
    assert (jetstream_ledger.STREAM, refusal_stream.STREAM) == ("LEDGER", "REFUSALS")
