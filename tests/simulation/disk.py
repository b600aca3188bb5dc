"""The index's file without a thread and without a file: SQLite in memory, asked in the same words as aiosqlite.

What was not committed when a replica died is gone, the rest is there when it starts again. A read sees what is committed.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Any

from remit_broker.adapters import sqlite_index
from remit_broker.adapters.sqlite_index import SqliteIndex

_template: bytes | None = None


class Disk:
    """What a replica finds when it starts again. ``unkind`` is the probability that a write finds the disk full or slow."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.unkind = 0.0
        self.seconds = 0.0005
        self.refused = 0
        self.db: sqlite3.Connection | None = None
        self.idle = asyncio.Event()
        self.idle.set()

    def lose(self) -> None:
        """Another machine takes the place: its index is empty."""
        self.db = None

    def crash(self) -> None:
        """The process is gone: so is what it had not committed."""
        if self.db is not None and self.db.in_transaction:
            self.db.rollback()
        self.idle = asyncio.Event()
        self.idle.set()

    async def index(self) -> SqliteIndex:
        """Open the index on this disk."""
        if self.db is None:
            self.db = await _fresh()
        writer, reader = Connection(self, self.db, writes=True), Connection(self, self.db, writes=False)
        positions = await sqlite_index._positions(writer)  # type: ignore[arg-type]
        return SqliteIndex(writer, reader, positions)  # type: ignore[arg-type]

    async def pause(self, write: bool) -> None:
        """The time a disk takes."""
        await asyncio.sleep(self.rng.expovariate(1.0) * self.seconds)
        if write and self.unkind and self.rng.random() < self.unkind:
            self.refused += 1
            if self.rng.random() < 0.5:
                await asyncio.sleep(self.rng.random() * 2)
            else:
                raise sqlite3.OperationalError("database or disk is full")


async def _fresh() -> sqlite3.Connection:
    """A database with the real schema, made by the real migrations once and copied."""
    global _template
    if _template is None:
        first = sqlite3.connect(":memory:", isolation_level=None)
        disk = Disk(random.Random(0))
        disk.seconds = 0.0
        await sqlite_index._prepare(Connection(disk, first, writes=True), Path("index.db"))  # type: ignore[arg-type]
        _template = first.serialize()
        first.close()
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.deserialize(_template)
    return db


class Cursor:
    """Rows that have been read already."""

    def __init__(self, rows: list[Any]) -> None:
        self._rows = rows

    async def fetchall(self) -> list[Any]:
        return self._rows

    def __aiter__(self) -> Cursor:
        self._left = iter(self._rows)
        return self

    async def __anext__(self) -> Any:
        try:
            return next(self._left)
        except StopIteration:
            raise StopAsyncIteration from None


class Asked:
    """A statement: awaited, or entered for its rows, as aiosqlite has it."""

    def __init__(self, work: Awaitable[Cursor]) -> None:
        self._work = work

    def __await__(self) -> Generator[Any, None, Cursor]:
        return self._work.__await__()

    async def __aenter__(self) -> Cursor:
        return await self._work

    async def __aexit__(self, *_: object) -> None:
        pass


class Connection:
    """One of the index's two connections."""

    def __init__(self, disk: Disk, db: sqlite3.Connection, *, writes: bool) -> None:
        self._disk, self._db, self._writes = disk, db, writes

    @property
    def in_transaction(self) -> bool:
        return self._writes and self._db.in_transaction

    def execute(self, sql: str, parameters: Any = ()) -> Asked:
        return Asked(self._ask(sql, parameters))

    async def _ask(self, sql: str, parameters: Any) -> Cursor:
        if not self._writes:
            while self._db.in_transaction:
                await self._disk.idle.wait()
            return Cursor(self._db.execute(sql, parameters).fetchall())
        begins, commits = sql.startswith("BEGIN"), sql.startswith("COMMIT")
        if begins or commits:
            await self._disk.pause(commits)
        rows = self._db.execute(sql, parameters).fetchall()
        if begins:
            self._disk.idle.clear()
        elif commits or sql.startswith("ROLLBACK"):
            self._disk.idle.set()
        return Cursor(rows)

    @property
    def _conn(self) -> sqlite3.Connection:
        return self._db

    async def _execute(self, work: Callable[..., Any], *args: Any) -> Any:
        """A whole transaction, as aiosqlite does it in its thread: nothing comes between."""
        await self._disk.pause(self._writes)
        return work(*args)

    async def execute_fetchall(self, sql: str, parameters: Any = ()) -> list[Any]:
        return await (await self._ask(sql, parameters)).fetchall()

    async def executemany(self, sql: str, parameters: Any) -> None:
        self._db.executemany(sql, parameters)

    async def executescript(self, sql: str) -> None:
        self._db.executescript(sql)

    async def close(self) -> None:
        pass
