"""The index: a projection that can be made again, and the witness of what the ledger once held."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import sqlite3
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from remit_broker.adapters import index_log
from remit_broker.adapters.errors import ConfigError
from remit_broker.adapters.jetstream import JetStream, Message, stream_seq
from remit_broker.adapters.jetstream_ledger import JetStreamLedger
from remit_broker.adapters.refusal_stream import RefusalStream
from remit_broker.adapters.sqlite_index import SqliteIndex
from remit_broker.adapters.stream_tail import Regressed, StreamTail, made_certain
from remit_broker.core.fold import fold_all
from remit_broker.core.listing import ChainFilter
from remit_broker.ports import at_once
from remit_schemas.budget import ONE_CALL, Budget
from remit_schemas.errors import Refusal
from remit_schemas.records import Decision, Record, plain
from tests.support.local_nats import LocalNats, local_nats
from tests.support.story import TXN, Story, closing, hop_id, opened, opening, refused

A, B, C = map(hop_id, range(3))
OTHER = "b" * 32


@pytest.fixture
async def index(tmp_path: Path) -> AsyncIterator[SqliteIndex]:
    index = await SqliteIndex.open(tmp_path / "index" / "index.db")
    yield index
    await index.close()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[LocalNats]:
    (tmp_path / "nats").mkdir()
    async with local_nats(tmp_path / "nats") as server:
        yield server


def messages(story: Story, first: int = 1, grant: str | None = None) -> list[Message]:
    subject = f"ledger.{story.fold.tenant}.{story.fold.txn}"
    return [
        Message(number, subject, msgspec.json.encode({"record": raw, "grant": grant}))
        for number, raw in enumerate(story.records, start=first)
    ]


def refusals(*records: Any, first: int = 1) -> list[Message]:
    return [
        Message(number, f"refusals.{record.tenant}", msgspec.json.encode({"record": plain(record)}))
        for number, record in enumerate(records, start=first)
    ]


def chain() -> Story:
    """The root; A called by it; B called by A and failed; A closed."""
    story = Story()
    story.open(A, budget=Budget(5000, 100, 10))
    story.open(B, A, Budget(100, 10, 2), resource="mcp/files/read_file", deadline=1_000_000)
    story.close(B, Budget(50, 0, 0), "error", code="TARGET_UNAVAILABLE")
    story.close(A)
    return story


@contextlib.asynccontextmanager
async def running(index: SqliteIndex, nc: Client, halted: list[str] | None = None) -> AsyncIterator[None]:
    task = asyncio.create_task(index.run(nc, (halted if halted is not None else []).append))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_chain_comes_back_as_it_was_written(index: SqliteIndex) -> None:
    story = chain()
    await index.add(messages(story, grant="token"))
    entries = await index.chain("default", TXN)
    assert [entry["record"] for entry in entries] == story.records
    assert fold_all(entry["record"] for entry in entries) == story.fold
    assert {entry["grant"] for entry in entries} == {"token"}
    assert await index.chain("acme", TXN) == [] == await index.chain("default", OTHER)


async def test_a_txn_is_summed_up(index: SqliteIndex) -> None:
    story = chain()
    await index.add(messages(story))
    await index.add_refusals(refusals(refused(txn=TXN, count=3), refused()))
    row = await index.summary("default", TXN)
    assert row is not None
    assert (row.user, row.agent, row.hops, row.open_hops, row.refused, row.records) == ("ann", "planner", 2, 0, 3, 5)
    assert row.spent == story.fold.totals.spent and row.limit == story.fold.totals.limit
    assert row.closed_at is None
    ended = Story()
    ended.fold, ended.records = story.fold, []
    ended.end()
    await index.add(messages(ended, first=6))
    row = await index.summary("default", TXN)
    assert row is not None and row.reason == "closed"


async def test_projecting_again_changes_nothing(index: SqliteIndex) -> None:
    all_ = messages(chain())
    await index.add(all_[:3])
    await index.add(all_)
    await index.add(all_)
    before = await index.counts()
    assert before["records"] == 5 and index.position == 5
    await index.rebuild()
    assert (await index.counts())["records"] == 0 and index.position == 0
    await index.add(all_)
    assert await index.counts() == before


async def test_chains_are_found_by_user_agent_tool_code_and_time(index: SqliteIndex) -> None:
    story = chain()
    other = Story(opened(OTHER, user="bob", at="2026-11-04T00:00:00.000Z", agent="writer"))
    foreign = Story(opened("c" * 32, tenant="acme"))
    await index.add([*messages(story), *messages(other, 6), *messages(foreign, 7)])
    await index.add_refusals(refusals(refused(txn=OTHER, code="POLICY_DENIED")))

    async def found(**wanted: Any) -> str:
        return "".join(row.txn[0] for row in (await index.chains("default", ChainFilter(**wanted))).rows)

    assert await found() == "ba"
    assert await found(user="ann") == "a" and await found(user="nobody") == ""
    assert await found(agent="planner") == await found(agent="researcher") == await found(agent="files") == "a"
    assert await found(agent="writer") == "b"
    assert await found(tool="mcp/files/read_file") == await found(tool="mcp/files/*") == await found(tool="mcp/") == "a"
    assert await found(tool="mcp/files/read") == "a" and await found(tool="mcp/mail/") == ""
    assert await found(code="TARGET_UNAVAILABLE") == "a" and await found(code="POLICY_DENIED") == "b"
    assert await found(since="2026-11-04T00:00:00.000Z") == "b" and await found(until="2026-11-04T00:00:00.000Z") == "a"
    assert await found(user="ann", code="POLICY_DENIED") == ""
    assert await found(user="' OR 1=1 --") == ""


async def test_chains_are_found_by_server_decision_rule_label_cost_and_words_of_reasons(index: SqliteIndex) -> None:
    story = chain()
    story.open(C, budget=Budget(9000, 0, 1), resource="mcp/mail/send", labels=("pii",))
    story.close(
        C, Budget(1500, 0, 0), "error", code="RESULT_DENIED", rule="no-secrets", reason="Found a SECRET in the mail"
    )
    other = Story(opened(OTHER, at="2026-11-04T00:00:00.000Z", labels=("phi",)))
    observed = Decision("would_deny", ("observed-rule",), "rev")
    other.open(A, resource="mcp/files2/read_file", decision=observed)
    other.close(A, Budget(20, 0, 0))
    await index.add([*messages(story), *messages(other, 20)])
    await index.add_refusals(refusals(refused(txn=OTHER, code="POLICY_DENIED", message="Only after four o'clock")))

    async def found(**wanted: Any) -> str:
        return "".join(row.txn[0] for row in (await index.chains("default", ChainFilter(**wanted))).rows)

    assert await found(server="files") == await found(server="mail") == "a" and await found(server="files2") == "b"
    assert await found(server="file") == await found(server="researcher") == ""
    assert await found(decision="allow") == "a" and await found(decision="would_deny") == "b"
    assert await found(decision="deny") == "b", "a refused call is a decision of its task"
    assert await found(rule="observed-rule") == "b" and await found(rule="no-secrets") == "a"
    assert await found(rule="narrow.scope") == "b", "the rule of a refusal"
    assert await found(label="pii") == "a" and await found(label="phi") == "b" and await found(label="p") == ""
    assert (
        await found(reason="secret") == await found(reason="MAIL  found") == "a"
        and await found(reason="secret o'clock") == ""
    )
    assert await found(reason="o'clock four") == "b"
    assert await found(min_usd_micros=1) == "ba" and await found(min_usd_micros=20) == "ba"
    assert await found(min_usd_micros=21) == await found(min_usd_micros=1500) == await found(min_usd_micros=1501) == "a"
    assert await found(min_usd_micros=2_000_000) == "" and await found(max_usd_micros=20) == "b"
    assert await found(min_usd_micros=10, max_usd_micros=100) == "b"
    assert (
        await found(tool="mcp/files") == "ba"
        and await found(tool="mcp/files/") == "a"
        and await found(tool="*") == "ba"
    )
    assert (
        await found(server="mail", label="pii", rule="no-secrets", code="RESULT_DENIED", reason="secret", user="ann")
        == "a"
    )
    with pytest.raises(Refusal) as no:
        await index.chains("default", ChainFilter(reason="? !"))
    assert no.value.body.code == "MALFORMED"


async def test_a_refusal_may_be_read_before_its_task(index: SqliteIndex) -> None:
    """The two streams are read side by side."""
    await index.add_refusals(refusals(refused(txn=TXN, code="POLICY_DENIED")))
    by_code, of_all = ChainFilter(code="POLICY_DENIED"), ChainFilter()
    assert (await index.chains("default", by_code)).rows == []
    await index.add(messages(chain()))
    assert [row.txn for row in (await index.chains("default", by_code)).rows] == [TXN]
    await index.rebuild(refusals_from=2)
    assert (await index.chains("default", of_all)).rows == (await index.chains("default", by_code)).rows == []
    await index.add(messages(chain()))
    assert [row.txn for row in (await index.chains("default", by_code)).rows] == [TXN]


async def test_a_file_of_an_older_version_finds_what_it_holds(tmp_path: Path) -> None:
    """Made as the version before wrote it, without marks; its refusals may be in no stream any more."""
    path = tmp_path / "index.db"
    index = await SqliteIndex.open(path)
    story = chain()
    await index.add(messages(story))
    await index.add_refusals(refusals(refused(txn=TXN, code="POLICY_DENIED", message="not on a Sunday"), refused()))
    marked = await index._all("SELECT * FROM mark ORDER BY 1, 2, 3", ())
    await index.close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        for at in (
            "DROP TABLE mark",
            "DROP TABLE stamp",
            "DROP INDEX record_by_tenant",
            "DROP INDEX refusal_by_tenant",
            "PRAGMA user_version = 6",
        ):
            db.execute(at)
        for column in ("resource", "callee", "caller", "code"):
            db.execute(f"CREATE INDEX hop_by_{column} ON hop (tenant, {column}, txn)")
        db.execute("CREATE INDEX txn_by_user ON txn (tenant, user, opened_at DESC, txn DESC)")
    again = await SqliteIndex.open(path)
    try:
        assert await again._all("SELECT * FROM mark ORDER BY 1, 2, 3", ()) == marked and len(marked) > 10
        page = await again.chains("default", ChainFilter(reason="sunday", code="TARGET_UNAVAILABLE", min_usd_micros=1))
        assert [row.txn for row in page.rows] == [TXN]
    finally:
        await again.close()


def filtered_in_words(rows: list[tuple[Story, dict[str, set[str]]]], **wanted: str) -> list[str]:
    """The same listing, told without an index."""
    fit = [story for story, has in rows if all(value in has[name] for name, value in wanted.items())]
    return [story.fold.txn for story in sorted(fit, key=lambda one: (one.records[0]["at"], one.fold.txn), reverse=True)]


async def test_any_filters_together_page_without_gap_or_overlap(index: SqliteIndex) -> None:
    drawn = random.Random(7)
    rows: list[tuple[Story, dict[str, set[str]]]] = []
    batch: list[Message] = []
    for number in range(1, 120):
        user, tool = (
            drawn.choice(("ann", "bob")),
            drawn.choice(("mcp/files/read", "mcp/mail/send", "agent/critic/review")),
        )
        at, label = f"2026-11-{drawn.randint(1, 9):02d}T00:00:00.000Z", drawn.choice(("pii", "phi"))
        story = Story(opened(f"{number:032x}", user=user, at=at))
        story.open(A, resource=tool, labels=(label,))
        rows.append((story, {"user": {user}, "tool": {tool, tool.split("/")[0]}, "label": {label}}))
        batch += messages(story, first=len(batch) + 1)
    await index.add(batch)
    asked: tuple[dict[str, Any], ...] = (
        {}, {"user": "bob"}, {"tool": "mcp"}, {"tool": "mcp", "label": "pii"}, {"user": "ann", "tool": "mcp/mail/send", "label": "phi"},
    )  # fmt: skip
    for wanted in asked:
        seen: list[str] = []
        cursor = None
        while True:
            page = await index.chains("default", ChainFilter(limit=7, cursor=cursor, **wanted))
            seen += [row.txn for row in page.rows]
            if (cursor := page.cursor) is None:
                break
        assert seen == filtered_in_words(rows, **wanted) and len(seen) > 7


@pytest.mark.parametrize(
    "wanted",
    [
        {}, {"user": "ann"}, {"agent": "planner"}, {"server": "files"}, {"tool": "mcp/files/read_file"}, {"tool": "mcp/f"},
        {"decision": "allow"}, {"rule": "default"}, {"code": "TARGET_UNAVAILABLE"}, {"label": "pii"}, {"reason": "found"},
        {"min_usd_micros": 10}, {"max_usd_micros": 10}, {"since": "2026-11-03T00:00:00.000Z"}, {"user": "ann", "server": "files"},
    ],
    ids=str,
)  # fmt: skip
async def test_no_page_is_sorted_and_none_looks_at_every_task(index: SqliteIndex, wanted: dict[str, Any]) -> None:
    await index.add(messages(chain()))
    asked: list[tuple[str, Any]] = []
    read = index._all

    async def noting(query: str, given: Any) -> list[Any]:
        asked.append((query, given))
        return await read(query, given)

    index._all = noting  # type: ignore[method-assign]
    await index.chains("default", ChainFilter(**wanted))
    for query, given in asked:
        plan = [row[3] for row in await read(f"EXPLAIN QUERY PLAN {query}", given)]
        # The page itself, of at most 501 rows, may be put in order again.
        found = plan[: next((n for n, step in enumerate(plan) if step.startswith("SCAN found")), len(plan))]
        assert not [step for step in found if "TEMP B-TREE" in step], plan
        assert not [step for step in plan if step.startswith(("SCAN t", "SCAN m", "SCAN x", "SCAN h", "SCAN c"))], plan


async def test_the_log_of_one_tenant_is_read_without_looking_at_others(index: SqliteIndex) -> None:
    for query in (index_log._LEDGER, index_log._REFUSALS):
        given = {"tenant": "acme", "after": 0, "since": "", "until": "~", "rows": 10}
        plan = [row[3] for row in await index._all(f"EXPLAIN QUERY PLAN {query}", given)]
        assert "_by_tenant (tenant=? AND rowid>?)" in plan[0] and "TEMP B-TREE" not in str(plan), plan


async def test_pages_meet_without_gap_or_overlap(index: SqliteIndex) -> None:
    stories = [Story(opened(f"{number:032x}")) for number in range(1, 12)]
    await index.add([message for n, story in enumerate(stories, 1) for message in messages(story, n)])
    seen: list[str] = []
    cursor = None
    while True:
        page = await index.chains("default", ChainFilter(limit=4, cursor=cursor))
        seen += [row.txn for row in page.rows]
        if (cursor := page.cursor) is None:
            break
    assert seen == sorted((story.fold.txn for story in stories), reverse=True)


@pytest.mark.parametrize("cursor", ["", "x", "!!!!", "YWJj"])
async def test_a_cursor_that_is_none_is_refused(index: SqliteIndex, cursor: str) -> None:
    with pytest.raises(Refusal) as no:
        await index.chains("default", ChainFilter(cursor=cursor))
    assert no.value.body.rule == "index.cursor"


async def test_ids_are_found_by_their_beginning(index: SqliteIndex) -> None:
    await index.add(messages(chain()))
    await index.add_refusals(refusals(refused("f" * 16, txn=TXN), refused("fe" * 8)))
    assert await index.find("default", "aaaa") == [TXN] and await index.find("acme", "aaaa") == []
    hits = await index.hops_like("default", B)
    assert [(hit.kind, hit.txn, hit.resource) for hit in hits] == [("hop", TXN, "mcp/files/read_file")]
    assert {hit.hop for hit in await index.hops_like("default", "f")} == {"f" * 16, "fe" * 8}
    assert [hit.hop for hit in await index.hops_like("default", f"{TXN}.f")] == ["f" * 16]
    assert [hit.hop for hit in await index.hops_like("default", f"aaaa.{B}")] == [B]
    assert await index.hops_like("acme", B) == []
    found = await index.refusal("default", "f" * 16)
    assert found is not None and found["message"] == "not held"
    assert [record["hop"] for record in await index.refusals("default", TXN)] == ["f" * 16]
    assert len(await index.recent_refusals("default", "2026")) == 2


async def test_what_is_parked_is_not_late_and_what_was_resumed_has_a_new_deadline(index: SqliteIndex) -> None:
    story = Story()
    story.open(A, deadline=1000)
    story.open(B, deadline=1000)
    story.park(A)
    await index.add(messages(story))
    assert [hop.hop for hop in await index.overdue(50_000, 0)] == [B]
    at = len(story.records)
    story.resume(A, ONE_CALL, deadline=90_000, exp=90)
    story.park(B)
    story.resume(B, ONE_CALL, deadline=40_000, exp=40)
    await index.add(messages(story)[at:])
    assert [hop.hop for hop in await index.overdue(50_000, 0)] == [B]
    assert [hop.hop for hop in await index.overdue(100_000, 0)] == [B, A]
    story.park(A)
    story.close(A, outcome="cancelled")
    await index.add(messages(story)[at + 3 :])
    assert [hop.hop for hop in await index.overdue(100_000, 0)] == [B]
    summary = await index.summary("default", TXN)
    assert summary is not None and (summary.hops, summary.open_hops) == (2, 1)
    assert summary.spent.calls == 2, "once for the call and once for the resumption"


async def test_the_scans_find_what_is_overdue_idle_or_expired(index: SqliteIndex) -> None:
    story = Story(opened(exp=2000))
    story.open(A, exp=2000, deadline=1_000_000)
    await index.add(messages(story))
    assert await index.overdue(1_030_000, 30_000) == []
    assert [(hop.txn, hop.hop) for hop in await index.overdue(1_030_001, 30_000)] == [(TXN, A)]
    assert await index.idle_txns("2027") == [], "a txn with an open hop is not idle"
    assert await index.expired_txns(2000) == [] and await index.expired_txns(2001) == [("default", TXN)]
    closed = closing(story.fold, A)
    await index.add(_one(closed, 3))
    assert await index.overdue(9_000_000, 0) == []
    assert [found[:2] for found in await index.idle_txns("2027")] == [("default", TXN)] and await index.idle_txns(
        "2026-01"
    ) == []


def _one(record: Record, seq: int) -> list[Message]:
    return [Message(seq, f"ledger.{record.tenant}.{record.txn}", msgspec.json.encode({"record": plain(record)}))]


async def test_a_txn_that_does_not_hold_together_is_marked_and_the_others_go_on(index: SqliteIndex) -> None:
    story, other = chain(), Story(opened(OTHER))
    broken = messages(story)
    del broken[2]
    renumbered = [message._replace(seq=number) for number, message in enumerate([*broken, *messages(other)], start=1)]
    await index.add(renumbered)
    row = await index.summary("default", TXN)
    assert row is not None and row.broken is not None and "does not follow" in row.broken and row.records == 2
    assert (await index.chain("default", OTHER)) and (await index.counts())["broken"] == 1
    await index.add(_one(opening(story.fold, C, budget=ONE_CALL), 6))
    assert len(await index.chain("default", TXN)) == 2


async def test_what_is_no_entry_is_marked_not_a_traceback(index: SqliteIndex) -> None:
    await index.add([Message(1, f"ledger.default.{TXN}", b"\xff"), Message(2, "ledger.x", b"{}")])
    await index.add_refusals([Message(1, "refusals.default", b"{}"), *refusals(refused(), first=2)])
    counts = await index.counts()
    assert (counts["broken"], counts["txns"], counts["refusals"]) == (2, 0, 1)


async def test_the_files_are_private(tmp_path: Path) -> None:
    index = await SqliteIndex.open(tmp_path / "new" / "index.db")
    await index.add(messages(Story()))
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "new").iterdir()}
    await index.close()
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    assert len(modes) == 3 and set(modes.values()) == {0o600}


async def test_a_damaged_or_newer_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(b"not a database, but long enough to be taken for one " * 100)
    damaged.chmod(0o600)
    with pytest.raises(ConfigError, match=r"damaged\.db is damaged"):
        await SqliteIndex.open(damaged)
    newer = tmp_path / "newer.db"
    with sqlite3.connect(newer) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(ConfigError, match="newer version"):
        await SqliteIndex.open(newer)


async def test_what_was_written_durably_is_set_so(index: SqliteIndex) -> None:
    async with index._writer.execute("PRAGMA synchronous") as rows:
        assert [row[0] async for row in rows] == [2]
    async with index._writer.execute("PRAGMA journal_mode") as rows:
        assert [row[0] async for row in rows] == ["wal"]


async def test_the_reader_cannot_write(index: SqliteIndex) -> None:
    with pytest.raises(sqlite3.OperationalError):
        await index._reader.execute("DELETE FROM record")


async def test_it_follows_the_ledger_and_the_refusals(server: LocalNats, index: SqliteIndex) -> None:
    nc = await server.connect()
    ledger, refused_ = await JetStreamLedger.start(nc), await RefusalStream.start(nc)
    await ledger.create(opened(), "root-grant")
    async with running(index, nc):
        await index.wait_for(ledger.high)
        assert [entry["grant"] for entry in await index.chain("default", TXN)] == ["root-grant"]
        async with ledger.turn("default", TXN) as turn:
            await turn.append(opening(turn.fold, A), "child-grant")
        await refused_.write(refused(txn=TXN))
        await index.wait_for(ledger.high)
        assert len(await index.chain("default", TXN)) == 2
        await index.wait_for_refusals(refused_.high)
        assert len(await index.refusals("default", TXN)) == 1


async def test_it_goes_on_after_a_restart_of_itself_and_of_the_server(
    server: LocalNats, index: SqliteIndex, tmp_path: Path
) -> None:
    nc = await server.connect()
    ledger, _ = await JetStreamLedger.start(nc), await RefusalStream.start(nc)
    await ledger.create(opened(), "g")
    halted: list[str] = []
    async with running(index, nc, halted):
        await index.wait_for(1)
        await server.kill()
        await server.start()
        await opened_eventually(ledger, OTHER)
        await index.wait_for(ledger.high, 20)
    again = await SqliteIndex.open(tmp_path / "index" / "index.db")
    async with running(again, nc, halted):
        await opened_eventually(ledger, "c" * 32)
        await again.wait_for(ledger.high)
        assert len((await again.chains("default", ChainFilter())).rows) == 3
    await again.close()
    assert not halted


async def opened_eventually(ledger: JetStreamLedger, txn: str) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                await ledger.create(opened(txn), "g")
                return
            except Refusal:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("written_on", [False, True])
async def test_a_ledger_behind_its_witness_is_refused(server: LocalNats, index: SqliteIndex, written_on: bool) -> None:
    """All was lost and started anew: sequence numbers say nothing, the witness does."""
    nc = await server.connect()
    ledger, _ = await JetStreamLedger.start(nc), await RefusalStream.start(nc)
    await ledger.create(opened(), "g")
    async with running(index, nc):
        await index.wait_for(1)
    await index.rebuild()
    await server.kill()
    shutil.rmtree(server.folder / "store")
    await server.start()
    fresh = await server.connect()
    ledger, _ = await JetStreamLedger.start(fresh), await RefusalStream.start(fresh)
    if written_on:
        await ledger.create(opened(OTHER), "g")
    with pytest.raises(Regressed):
        await index.check(fresh)
    async with asyncio.timeout(10):
        await index.run(fresh, ledger.halt)
    assert index.halted and ledger.halted == index.halted
    assert await index.chain("default", OTHER) == []
    with pytest.raises(TimeoutError, match="the ledger"):
        await index.wait_for(99)


@pytest.mark.parametrize("written_on", [False, True])
async def test_a_loss_under_a_running_index_halts_it_and_the_ledger(
    server: LocalNats, index: SqliteIndex, written_on: bool
) -> None:
    nc = await server.connect()
    await JetStreamLedger.start(nc)
    await RefusalStream.start(nc)
    halted: list[str] = []
    async with running(index, nc, halted):
        await server.kill()
        shutil.copytree(server.folder / "store", server.folder / "old")
        await server.start()
        await opened_eventually(await JetStreamLedger.start(await server.connect()), TXN)
        await index.wait_for(1, 20)
        await server.kill()
        shutil.rmtree(server.folder / "store")
        (server.folder / "old").rename(server.folder / "store")
        await server.start()
        if written_on:
            await opened_eventually(await JetStreamLedger.start(await server.connect()), OTHER)
        with pytest.raises(TimeoutError, match=r"LEDGER"):
            await index.wait_for(99, 20)
    assert halted == [index.halted]


@pytest.mark.parametrize("whole", [True, False])
async def test_a_message_missing_in_the_middle_is_noticed_where_none_may_miss(server: LocalNats, whole: bool) -> None:
    nc = await server.connect()
    js = JetStream(nc)
    await js.api("STREAM.CREATE.HOLED", {"name": "HOLED", "subjects": ["holed"]})
    for number in range(4):
        await js.publish("holed", str(number).encode(), {})
    await js.api("STREAM.MSG.DELETE.HOLED", {"seq": 2})
    batches = StreamTail(nc, "HOLED", "holed", whole=whole).batches(0)
    seen: list[int] = []
    async with asyncio.timeout(5):
        try:
            async for batch in batches:
                seen += [message.seq for message in batch]
                if seen[-1] == 4:
                    break
        except Regressed as lost:
            assert whole and "message 2 of HOLED is missing" in str(lost)
            return
        finally:
            await batches.aclose()  # type: ignore[attr-defined]
    assert seen == [1, 3, 4] and not whole


def _losing(tail: StreamTail, lost: set[int]) -> set[int]:
    """Let each of these messages go astray once on its way to a reader; what is returned has those that did not yet."""
    arrive, astray = tail._arrive, set(lost)

    @at_once
    async def some(msg: Msg) -> None:
        seq = stream_seq(msg.reply)
        if seq in astray:
            astray.discard(seq)
        else:
            await arrive(msg)

    tail._arrive = some  # type: ignore[method-assign]
    return astray


@pytest.mark.parametrize("whole", [True, False])
async def test_the_last_message_is_not_lost_though_nothing_follows_it(
    server: LocalNats, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    monkeypatch.setattr("remit_broker.adapters.stream_tail._BEAT", 0.5)
    nc = await server.connect()
    js = JetStream(nc)
    await js.api("STREAM.CREATE.HOLED", {"name": "HOLED", "subjects": ["holed"], "storage": "memory"})
    for number in range(3):
        await js.publish("holed", str(number).encode(), {})
    tail = StreamTail(nc, "HOLED", "holed", whole=whole)
    astray = _losing(tail, {2, 3})
    batches = tail.batches(0)
    seen: list[int] = []
    async with asyncio.timeout(30):
        try:
            async for batch in batches:
                seen += [message.seq for message in batch]
                if seen[-1] == 3:
                    break
        finally:
            await batches.aclose()  # type: ignore[attr-defined]
    assert seen == [1, 2, 3] and not astray


@pytest.mark.parametrize("lost", [{2, 3}, {1}, set(range(1, 700))])
async def test_what_is_lost_on_its_way_is_asked_for(server: LocalNats, lost: set[int]) -> None:
    """A consumer without acknowledgements sends a message once, and between servers of a cluster it may go astray."""
    nc = await server.connect()
    js = JetStream(nc)
    await js.api("STREAM.CREATE.HOLED", {"name": "HOLED", "subjects": ["holed"], "storage": "memory"})
    count = max(lost) + 2
    for number in range(count):
        await js.publish("holed", str(number).encode(), {})
    tail = StreamTail(nc, "HOLED", "holed", whole=True)
    astray = _losing(tail, lost)
    batches = tail.batches(0)
    seen: list[int] = []
    async with asyncio.timeout(30):
        try:
            async for batch in batches:
                assert [int(message.data) + 1 for message in batch] == [message.seq for message in batch]
                seen += [message.seq for message in batch]
                if seen[-1] == count:
                    break
        finally:
            await batches.aclose()  # type: ignore[attr-defined]
    assert seen == list(range(1, count + 1)) and not astray


async def test_a_disk_that_is_full_is_waited_for(server: LocalNats, index: SqliteIndex) -> None:
    nc = await server.connect()
    ledger, _ = await JetStreamLedger.start(nc), await RefusalStream.start(nc)
    # As many pages as there are now.
    await index._writer.execute("PRAGMA max_page_count = 1")
    await ledger.create(opened(user="u" * 10_000), "g")
    async with running(index, nc):
        with pytest.raises(TimeoutError):
            await index.wait_for(ledger.high, 0.5)
        assert index.trouble is not None and "full" in index.trouble and index.halted is None
        await index._writer.execute("PRAGMA max_page_count = 100000")
        await index.wait_for(ledger.high)
        assert index.trouble is None


async def test_a_reader_waits_for_what_is_not_projected_yet(index: SqliteIndex) -> None:
    with pytest.raises(TimeoutError):
        await index.wait_for(1, 0.01)
    waiting = asyncio.create_task(index.wait_for(1))
    await asyncio.sleep(0)
    await index.add(messages(Story()))
    await waiting
    assert await index.summary("default", TXN) is not None


async def test_refusals_that_were_lost_keep_nobody_from_following_the_ledger(
    server: LocalNats, index: SqliteIndex
) -> None:
    nc = await server.connect()
    ledger, refused_ = await JetStreamLedger.start(nc), await RefusalStream.start(nc)
    await ledger.create(opened(), "g")
    await refused_.write(refused(txn=TXN))
    async with running(index, nc):
        await index.wait_for(1)
        await index.wait_for_refusals(1)
    await server.kill()
    for lost in server.folder.rglob("REFUSALS"):
        shutil.rmtree(lost)
    await server.start()
    fresh = await server.connect()
    ledger = await JetStreamLedger.start(fresh)
    await RefusalStream.start(fresh)
    async with running(index, fresh):
        await ledger.create(opened(OTHER), "g")
        await index.wait_for(2)
        with pytest.raises(TimeoutError):
            await index.wait_for_refusals(2)
        assert index.halted is None and ledger.halted is None
        assert index.trouble is not None and "REFUSALS" in index.trouble, "operators are told"


async def test_what_looks_lost_is_looked_at_again_where_an_old_leader_may_have_answered() -> None:
    answers = iter([Regressed("it ends at 3"), Regressed("it ends at 3"), None])
    looks = 0

    async def look() -> None:
        nonlocal looks
        looks += 1
        if (answer := next(answers)) is not None:
            raise answer

    await made_certain(look, 5.0)
    assert looks == 3

    async def gone() -> None:
        raise Regressed("it ends at 3")

    with pytest.raises(Regressed):
        await made_certain(gone, 0.3)


STATES = ("waiting", "approved", "denied", "used", "expired", "void")


async def test_a_state_in_sql_is_the_one_in_words(index: SqliteIndex) -> None:
    """Every request that can be, at every time that makes a difference, under the policies that asked and others."""
    open_, closed = Story(), Story(opened(OTHER))
    for story in (open_, closed):
        story.open(A)
        for number in range(8):
            story.ask(hop_id(50 + number), A)
    closed.close(A)
    closed.end()
    second = messages(closed, first=len(open_.records) + 1)
    await index.add([*messages(open_), *second])
    kinds = [
        (verdict, until, used) for verdict in (None, "approve", "deny") for until in (None, 150) for used in (None, B)
    ]
    for number, (verdict, until, used) in enumerate(kinds[:8]):
        await index._writer.execute(
            "UPDATE approval SET verdict = ?, use_until = ?, used_by = ?, exp = 100 WHERE id = ?",
            (verdict, until, used, hop_id(50 + number)),
        )
    rows = await index.approvals_in("default", "all", 0, "rev", 100)
    assert len(rows) == 16 and {row.revision for row in rows} == {"rev"}
    for now in (50, 100, 120, 150, 160):
        for revision in ("rev", "other"):
            for state in STATES:
                found = await index.approvals_in("default", state, now, revision, 100)
                wanted = [row for row in rows if row.state(now, revision) == state]
                assert found == wanted, (now, revision, state)


async def test_a_request_under_other_policies_waits_no_more(index: SqliteIndex) -> None:
    story = Story()
    story.open(A)
    story.ask(B, A)
    await index.add(messages(story))
    assert [row.id for row in await index.approvals_in("default", "waiting", 0, "rev", 10)] == [B]
    assert await index.approvals_in("default", "waiting", 0, "newer", 10) == []
    assert [row.id for row in await index.approvals_in("default", "void", 0, "newer", 10)] == [B]


async def test_what_waits_is_found_among_what_waits(index: SqliteIndex) -> None:
    """However many were asked for since: the oldest that waits is in the listing."""
    plan = await index._all(
        "EXPLAIN QUERY PLAN SELECT id FROM approval a WHERE a.tenant = 'default' AND a.verdict IS NULL AND a.used_by IS NULL "
        "ORDER BY a.at DESC, a.id",
        (),
    )
    assert "approval_waiting" in str(plan) and "TEMP B-TREE" not in str(plan)


async def test_decisions_are_read_in_the_order_of_the_stream_without_sorting_them(index: SqliteIndex) -> None:
    made = [Story(opened(f"{number:032x}", at=f"2026-11-03T14:{number:02d}:11.000Z")) for number in range(1, 40)]
    for number, story in enumerate(made, start=1):
        story.open(A, at=f"2026-11-03T14:{number:02d}:12.000Z")
    first, batch = 1, []
    for story in made:
        batch += messages(story, first=first)
        first += len(story.records)
    await index.add(batch)
    found = await index.decisions("default", 0, "opened", 100)
    assert [seq for seq, _, _ in found] == list(range(2, 80, 2))
    later = await index.decisions("default", 0, "opened", 100, "2026-11-03T14:30:00.000Z")
    assert [record["at"][14:16] for _, record, _ in later] == [f"{number}" for number in range(30, 40)]
    plan = await index._all(
        "EXPLAIN QUERY PLAN SELECT r.stream_seq FROM record r INDEXED BY record_by_tenant "
        "CROSS JOIN txn t ON (t.tenant, t.txn) = (r.tenant, r.txn) "
        "WHERE r.tenant = 'default' AND r.kind = 'hop.opened' AND r.stream_seq > 0 ORDER BY r.stream_seq LIMIT 5",
        (),
    )
    assert "TEMP B-TREE" not in str(plan)
