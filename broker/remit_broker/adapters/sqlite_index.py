"""The index: what the ledger and the refusals say, in tables that can be asked. A projection, never the truth.

One connection writes, one reads. A batch of messages and the position after it are one transaction, so a crash repeats
a batch or does not, and never half of it. The file is also the ledger's witness: it knows, outside of the stream, how
far the stream had come and what stood there.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

import aiosqlite
import msgspec
from nats.aio.client import Client

from remit_broker.adapters import index_marks, index_rows, index_tree, jetstream_ledger, refusal_stream
from remit_broker.adapters.errors import ConfigError
from remit_broker.adapters.index_proofs import IndexProofs
from remit_broker.adapters.index_queries import IndexQueries
from remit_broker.adapters.index_rows import Head, Key, Rows, refusal_row
from remit_broker.adapters.index_tree import Sign
from remit_broker.adapters.jetstream import ApiError, JetStream, Message, Unreachable
from remit_broker.adapters.private_files import private_folder
from remit_broker.adapters.stream_tail import Regressed, StreamTail, made_certain
from remit_schemas.records import GENESIS, parse_entry

_MIGRATION: Final = re.compile(r"(\d{4})_\w+\.sql")
_DATA: Final = ("record", "hop", "txn", "broken", "approval", "mark")

_INSERTS: Final[Mapping[str, str]] = {
    "txns": "INSERT INTO txn (tenant, txn, user, agent, root, continues, opened_at, last_at, exp, limit_usd_micros, "
    "limit_tokens, limit_calls, last_seq, last_hash, last_stream_seq) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
    "records": "INSERT INTO record VALUES (?,?,?,?,?,?,?,?,?)",
    "hops": "INSERT INTO hop (tenant, txn, hop, parent, caller, callee, resource, opened_at, deadline, closed_at, "
    "outcome, code) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
    "requests": "INSERT INTO approval (tenant, txn, id, seq, user, resource, at, exp) VALUES (?,?,?,?,?,?,?,?)",
    "votes": "UPDATE approval SET verdict = coalesce(?, verdict), use_until = min(coalesce(use_until, ?), ?) "
    "WHERE (tenant, txn, id) = (?,?,?)",
    "uses": "UPDATE approval SET used_by = ? WHERE (tenant, txn, id) = (?,?,?)",
    "broken": "INSERT OR REPLACE INTO broken VALUES (?,?,?)",
    "waits": "UPDATE hop SET parked_at = ?, deadline = coalesce(?, deadline) WHERE (tenant, txn, hop) = (?,?,?)",
    "closings": "UPDATE hop SET closed_at = ?, outcome = ?, code = ? WHERE (tenant, txn, hop) = (?,?,?)",
    "late_charges": "UPDATE txn SET spent_usd_micros = spent_usd_micros + ?, spent_tokens = spent_tokens + ?, "
    "spent_calls = spent_calls + ? WHERE (tenant, txn) = (?,?) "
    "AND root = (SELECT parent FROM hop WHERE (tenant, txn, hop) = (?,?,?))",
    "endings": "UPDATE txn SET closed_at = ?, reason = ? WHERE (tenant, txn) = (?,?)",
}
_CHARGES: Final = (
    "UPDATE txn SET spent_usd_micros = spent_usd_micros + ?, spent_tokens = spent_tokens + ?, "
    "spent_calls = spent_calls + ? WHERE (tenant, txn) = (?,?) AND root = ?"
)
_LAST: Final = (
    "UPDATE txn SET last_at = ?, last_seq = ?, last_hash = ?, last_stream_seq = ?, hops = hops + ?, "
    "open_hops = open_hops + ? WHERE (tenant, txn) = (?,?)"
)
_REFUSAL: Final = (
    "INSERT INTO refusal VALUES (?,?,?,?,?,?,?,?,?,?,?, (SELECT tree_size FROM stream WHERE name = 'REFUSALS') + ?)"
)
_HEADS: Final = (
    "SELECT w.value ->> 0, w.value ->> 1, coalesce(t.last_seq, -1), coalesce(t.last_hash, ?), b.why, coalesce(t.opened_at, '') "
    "FROM json_each(?) w LEFT JOIN txn t ON (t.tenant, t.txn) = (w.value ->> 0, w.value ->> 1) "
    "LEFT JOIN broken b ON (b.tenant, b.txn) = (w.value ->> 0, w.value ->> 1)"
)

_FILLED: Final[Mapping[int, Callable[[sqlite3.Connection], None]]] = {7: index_marks.fill}
"""What a step of the schema does beside its text."""

Write = tuple[str, Sequence[Sequence[Any]]]
"""A statement and the rows it is carried out for."""
Then = Callable[[sqlite3.Connection], None]
"""What else belongs to a transaction."""


class SqliteIndex(IndexQueries):
    """The index in one file. Open it with :meth:`open`; feed it with :meth:`run`; ask it (:class:`IndexQueries`)."""

    def __init__(self, writer: aiosqlite.Connection, reader: aiosqlite.Connection, position: Mapping[str, int]) -> None:
        super().__init__(reader)
        self.proofs = IndexProofs(reader)
        self._writer = writer
        self._position = dict(position)
        self._moved = asyncio.Event()
        self._hurry = asyncio.Event()
        self._waiters = 0
        self._writing = asyncio.Lock()
        self._running = False
        self._halted: str | None = None
        self._trouble: str | None = None
        self._without_refusals: str | None = None
        self._sign: Sign | None = None
        self._at = ""

    @classmethod
    async def open(cls, path: Path) -> SqliteIndex:
        """Open or make the index. Its folder is private (0700), its files are (0600). Raises :class:`ConfigError`."""
        private_folder(path.parent, create=True)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        writer = await aiosqlite.connect(path, isolation_level=None)
        try:
            await _prepare(writer, path)
            reader = await aiosqlite.connect(path, isolation_level=None)
            await reader.execute("PRAGMA query_only = ON")
            position = await _positions(writer)
        except sqlite3.DatabaseError as error:
            await writer.close()
            raise ConfigError(f"the index {path} is damaged: {error}", "move it away; it is made again") from None
        except BaseException:
            await writer.close()
            raise
        return cls(writer, reader, position)

    def signed_with(self, sign: Sign) -> None:
        """From now on checkpoints are signed: with every batch in which a txn was closed, and by :meth:`checkpoint`."""
        self._sign = sign

    async def close(self) -> None:
        """Close both connections."""
        await self._reader.close()
        await self._writer.close()

    @property
    def halted(self) -> str | None:
        """Why nothing is projected any more, or None."""
        return self._halted

    @property
    def position(self) -> int:
        """The stream sequence of the ledger up to which everything is in the tables."""
        return self._position[jetstream_ledger.STREAM]

    def positions(self) -> tuple[int, int]:
        """Up to where everything of the ledger and of the refusals is in the tables."""
        return self._position[jetstream_ledger.STREAM], self._position[refusal_stream.STREAM]

    async def check(self, nc: Client, certain: float = 0.0) -> None:
        """Compare the ledger's stream with what this file knows of it, again and again for ``certain`` seconds where they differ.

        Raises :class:`Regressed` where the stream ends earlier, or another record stands where this one was seen. The
        check runs before anything is projected or appended, so that a ledger that lost records is not written on.
        """
        await made_certain(lambda: self._check(nc), certain)

    async def _check(self, nc: Client) -> None:
        seq, seen = await self._witness()
        if seq == 0:
            return
        found = await JetStream(nc).at(jetstream_ledger.STREAM, seq)
        # INVARIANT: a ledger that lost or exchanged records is not used (test_a_ledger_behind_its_witness_is_refused).
        if found is None:
            raise Regressed(f"the ledger has no message {seq} any more; the index has seen it")
        if (sealed := _hash(found)) != seen:
            raise Regressed(f"message {seq} of the ledger is sealed by {sealed}; the index has seen {seen}")

    async def run(self, nc: Client, on_halt: Callable[[str], None] = lambda cause: None, certain: float = 0.0) -> None:
        """Project both streams until cancelled. Where the ledger lost something, says so to ``on_halt`` and stops.

        A disk that is full or a server that is away is waited for; meanwhile :attr:`trouble` says so.
        """
        self._running = True
        try:
            await self._patiently(lambda: self.check(nc, certain))
            self._position = await _positions(self._writer)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow_ledger(nc, certain))
                group.create_task(self._follow_refusals(nc, certain))
        except* Regressed as regressed:
            self._halted = str(regressed.exceptions[0])
            on_halt(self._halted)
        except* Exception as faults:
            self._halted = f"the projection failed: {faults.exceptions[0]!r}"
        finally:
            self._running = False
            self._wake()

    @property
    def trouble(self) -> str | None:
        """What the projection is waiting for, or what it goes on without, or None."""
        return self._trouble or self._without_refusals

    async def wait_for(self, stream_seq: int, seconds: float = 5.0) -> None:
        """Wait until the ledger's message ``stream_seq`` is projected. Raises ``TimeoutError`` (at once if halted)."""
        await self._wait_for(jetstream_ledger.STREAM, stream_seq, seconds)

    async def wait_for_refusals(self, stream_seq: int, seconds: float = 5.0) -> None:
        """Wait until the refusals' message ``stream_seq`` is projected. Raises ``TimeoutError`` (at once if halted)."""
        await self._wait_for(refusal_stream.STREAM, stream_seq, seconds)

    async def _wait_for(self, stream: str, seq: int, seconds: float) -> None:
        if self._position[stream] >= seq:
            return
        self._waiters += 1
        self._hurry.set()
        try:
            async with asyncio.timeout(seconds):
                while self._position[stream] < seq:
                    if gone := self._halted or (self._without_refusals if stream == refusal_stream.STREAM else None):
                        raise TimeoutError(gone)
                    await self._moved.wait()
        finally:
            self._waiters -= 1
            if not self._waiters:
                self._hurry.clear()

    async def rebuild(self, refusals_from: int = 1) -> None:
        """Empty the tables, so that the next :meth:`run` makes them again. What was witnessed and what was signed is kept.

        So are refusals before ``refusals_from``, which is the first that their stream still has.
        """
        if self._running:
            raise RuntimeError("stop the projection first")
        async with self._writing:
            await self._commit([], functools.partial(index_tree.emptied, _DATA, refusals_from))
        self._position = await _positions(self._writer)

    async def add(self, messages: Sequence[Message]) -> None:
        """Project consecutive messages of the ledger: one transaction. Those that are there already change nothing."""
        fresh = [message for message in messages if message.seq > self.position]
        if not fresh:
            return
        async with self._writing:
            heads = await self._heads({index_rows.key_of(message) for message in fresh})
            rows = index_rows.project(fresh, heads)
            self._at = max(self._at, *(last[0] for last in rows.last.values()), "")
            then: Then = functools.partial(_grown, jetstream_ledger.STREAM, rows.leaves, fresh[0].seq)
            if opened := [(row[0], row[1]) for row in rows.txns]:
                then = _both(then, functools.partial(index_marks.refused_before, opened))
            if rows.endings and (sign := self._sign) is not None:
                # INVARIANT: a txn is closed and sealed in one (test_a_checkpoint_is_signed_with_the_end_of_a_txn).
                then = _both(then, functools.partial(_sealed, jetstream_ledger.STREAM, sign, self._at))
            await self._commit([*_writes(rows), *_moves(jetstream_ledger.STREAM, fresh[-1])], then)
        self._moved_to(jetstream_ledger.STREAM, fresh[-1].seq)

    async def add_refusals(self, messages: Sequence[Message]) -> None:
        """Project messages of the refusals: one transaction."""
        fresh = [message for message in messages if message.seq > self._position[refusal_stream.STREAM]]
        if not fresh:
            return
        found = list(map(refusal_row, fresh))
        rows = [(*row, place) for place, (row, _, _) in enumerate(found) if row]
        marks = list(dict.fromkeys(mark for _, _, made in found for mark in made))
        self._at = max(self._at, *(str(row[8]) for row in rows), "")
        then = functools.partial(_grown, refusal_stream.STREAM, [leaf for _, leaf, _ in found], fresh[0].seq)
        writes = [(_REFUSAL, rows), (index_marks.OF_KNOWN, marks), *_moves(refusal_stream.STREAM, fresh[-1])]
        async with self._writing:
            await self._commit(writes, then)
        self._moved_to(refusal_stream.STREAM, fresh[-1].seq)

    async def checkpoint(self) -> None:
        """Sign what both trees are now, where that was not done."""
        if (sign := self._sign) is None:
            return
        async with self._writing:
            seals = [functools.partial(_sealed, tree, sign, self._at) for tree in self._position]
            await self._commit([], _both(*seals))

    async def cosigned(self, size: int, name: str, line: str) -> None:
        """A witness signed the ledger's checkpoint of ``size``. One that was replaced by a newer one meanwhile has no use for it."""
        statement = (
            "INSERT OR REPLACE INTO cosignature SELECT tree, size, ?, ? FROM checkpoint WHERE (tree, size) = (?, ?)"
        )
        async with self._writing:
            await self._commit([(statement, [(name, line, jetstream_ledger.STREAM, size)])])

    async def stamped(self, size: int, url: str, answer: bytes) -> None:
        """An authority stamped the ledger's checkpoint of ``size``, unless that was replaced by a newer one meanwhile."""
        statement = "INSERT OR REPLACE INTO stamp SELECT tree, size, ?, ? FROM checkpoint WHERE (tree, size) = (?, ?)"
        async with self._writing:
            await self._commit([(statement, [(url, answer, jetstream_ledger.STREAM, size)])])

    async def told(self, key: tuple[str, str, str]) -> None:
        """Somebody was told of the request ``key`` (tenant, txn, id). Forgotten with the tables: then it is told again."""
        async with self._writing:
            await self._commit([("UPDATE approval SET told = 1 WHERE (tenant, txn, id) = (?,?,?)", [key])])

    async def _follow_ledger(self, nc: Client, certain: float) -> None:
        names = (jetstream_ledger.STREAM, jetstream_ledger.SUBJECTS)
        tail = StreamTail(nc, *names, whole=True, hurry=self._hurry, certain=certain)
        async for batch in tail.batches(self.position):
            await self._patiently(functools.partial(self.add, batch))

    async def _follow_refusals(self, nc: Client, certain: float) -> None:
        names = (refusal_stream.STREAM, refusal_stream.SUBJECTS)
        tail = StreamTail(nc, *names, whole=False, hurry=self._hurry, certain=certain)
        try:
            async for batch in tail.batches(self._position[refusal_stream.STREAM]):
                await self._patiently(functools.partial(self.add_refusals, batch))
        except Regressed as lost:
            # INVARIANT: no decision and no scan stands on a refusal: the ledger is followed as before
            # (test_refusals_that_were_lost_keep_nobody_from_following_the_ledger).
            self._without_refusals = str(lost)
            self._wake()

    async def _patiently(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do ``work``, again and again while the disk or the server does not let it be done."""
        pause = 0.05
        while True:
            try:
                await work()
                self._trouble = None
                return
            except (sqlite3.OperationalError, Unreachable, ApiError) as error:
                self._trouble = str(error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)

    async def _witness(self) -> tuple[int, str]:
        query = "SELECT witness_seq, witness_hash FROM stream WHERE name = ?"
        async with self._reader.execute(query, (jetstream_ledger.STREAM,)) as rows:
            async for seq, seen in rows:
                return int(seq), str(seen)
        return 0, ""

    async def _heads(self, keys: set[Key]) -> dict[Key, Head]:
        wanted = msgspec.json.encode(sorted(keys)).decode()
        found = await self._writer.execute_fetchall(_HEADS, (GENESIS, wanted))
        return {(tenant, txn): Head(*head) for tenant, txn, *head in found}

    async def _commit(self, writes: Sequence[Write], then: Then | None = None) -> None:
        """One transaction, all of it in one visit to the writer's thread: each visit costs more than a statement."""
        # Not left half done by whoever is cancelled meanwhile: the thread finishes it.
        await self._writer._execute(_transaction, self._writer._conn, writes, then)  # type: ignore[no-untyped-call]

    def _moved_to(self, stream: str, seq: int) -> None:
        self._position[stream] = seq
        self._wake()

    def _wake(self) -> None:
        # A new event each time: one that stayed set would be waited for without ever yielding.
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()


async def _positions(db: aiosqlite.Connection) -> dict[str, int]:
    async with db.execute("SELECT name, last_seq FROM stream") as rows:
        return {str(name): int(seq) async for name, seq in rows}


def _transaction(db: sqlite3.Connection, writes: Sequence[Write], then: Then | None) -> None:
    try:
        db.execute("BEGIN IMMEDIATE")
        for statement, rows in writes:
            db.executemany(statement, rows)
        if then is not None:
            then(db)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _grown(tree: str, leaves: Sequence[bytes], first: int, db: sqlite3.Connection) -> None:
    index_tree.grow(db, tree, leaves, first)


def _sealed(tree: str, sign: Sign, at: str, db: sqlite3.Connection) -> None:
    index_tree.seal(db, tree, sign, at)


def _both(*work: Then) -> Then:
    def then(db: sqlite3.Connection) -> None:
        for each in work:
            each(db)

    return then


def _writes(rows: Rows) -> Iterator[Write]:
    for name, statement in _INSERTS.items():
        if values := getattr(rows, name):
            yield statement, list(values.values()) if isinstance(values, dict) else values
    yield index_marks.INSERT, index_marks.rows(rows.marks, lambda key: rows.heads[key].opened_at)
    if rows.charges:
        yield _CHARGES, [(*spent, *key, parent) for (key, parent), spent in rows.charges.items() if any(spent)]
    if charged := {*(key for key, _ in rows.charges), *((row[3], row[4]) for row in rows.late_charges)}:
        yield index_marks.COST, sorted(charged)
    if rows.last:
        yield _LAST, [(*last, *_counted(rows, key), *key) for key, last in rows.last.items()]


def _counted(rows: Rows, key: Key) -> tuple[int, int]:
    """How many more hops a txn has, and how many more that are open."""
    opened, closed = rows.counts.get(key, (0, 0))
    return opened, opened - closed


def _moves(stream: str, last: Message) -> Iterator[Write]:
    """The position after ``last``, and what was witnessed of it."""
    yield "UPDATE stream SET last_seq = ? WHERE name = ?", [(last.seq, stream)]
    yield (
        "UPDATE stream SET witness_seq = ?, witness_hash = ? WHERE name = ? AND witness_seq <= ?",
        [(last.seq, _hash(last), stream, last.seq)],
    )


def _hash(message: Message) -> str:
    """The hash in a message; what is not readable has none."""
    try:
        return str(parse_entry(message.data).record.get("hash", ""))
    except Exception:
        return ""


async def _prepare(db: aiosqlite.Connection, path: Path) -> None:
    """Settings and schema. Every step of the schema is one transaction; a schema newer than this version is refused."""
    await db.execute("PRAGMA journal_mode = WAL")
    await db.execute("PRAGMA synchronous = FULL")
    await db.execute("PRAGMA foreign_keys = ON")
    # In KiB. Ids are random, so that without it nearly every row is looked for on a page that must be read again.
    await db.execute("PRAGMA cache_size = -32768")
    steps = _migrations()
    async with db.execute("PRAGMA user_version") as rows:
        version = [int(row[0]) async for row in rows]
    if version[0] > len(steps):
        raise ConfigError(f"the index {path} was made by a newer version", "use that version, or move the file away")
    for number, sql in enumerate(steps[version[0] :], start=version[0] + 1):
        await db._execute(_step, db._conn, number, sql)  # type: ignore[no-untyped-call]


def _step(db: sqlite3.Connection, number: int, sql: str) -> None:
    """One step of the schema, as a whole or not at all."""
    try:
        db.executescript(f"BEGIN IMMEDIATE;\n{sql}\nPRAGMA user_version = {number};")
        if (more := _FILLED.get(number)) is not None:
            more(db)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _migrations() -> list[str]:
    folder = resources.files("remit_broker.adapters") / "migrations"
    found: dict[int, Any] = {int(m[1]): file for file in folder.iterdir() if (m := _MIGRATION.fullmatch(file.name))}
    return [found[number].read_text(encoding="utf-8") for number in range(1, len(found) + 1)]
