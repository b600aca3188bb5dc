"""Everything that an audit is given: both streams from their first message on, and the index beside them.

It works on what a broker runs on, while it runs, and on a data folder on which no broker runs, or will run.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from remit_broker.adapters import index_tree, jetstream_ledger, refusal_stream
from remit_broker.adapters.jetstream import NO_STREAM, ApiError, JetStream, Message, Unreachable
from remit_broker.adapters.keyfiles import KeyFiles
from remit_broker.adapters.nats_connect import connect
from remit_broker.adapters.nats_server import EmbeddedServer, Options
from remit_broker.core.audit import Audit, Report
from remit_broker.core.audit_log import LogAudit
from remit_broker.core.merkle import HASH
from remit_schemas.keys import KeySet

_WINDOW: Final = 1000
_SECONDS: Final = 10.0
_END: Final = 2**63 - 1
"""Beyond every place of a stream."""
INDEX: Final = Path("index") / "index.db"


class Kept(NamedTuple):
    """What the auditor brings: a checkpoint (a note), and the keys that are trusted instead of those of the data folder."""

    since: str | None = None
    keys: KeySet | None = None


NOTHING: Final = Kept()


async def audit(data: Path, url: str, *, sync: Any = "always", kept: Kept = NOTHING) -> Report:
    """Check the ledger of the broker whose data folder is ``data``, on the NATS server at ``url``.

    Where that is empty nobody runs, and the embedded server is started on the folder for as long as this takes.
    Raises :class:`ConfigError` or :class:`ServiceError`.
    """
    keys = KeyFiles.open(data, create=False)
    found = Audit(kept.keys or KeySet.from_jwks(keys.jwks()))
    async with serving(keys, url, sync) as at:
        nc = await connect(at, keys, "core")
        try:
            js = JetStream(nc, timeout=_SECONDS)
            with _rows(data / INDEX, found) as index:
                await _opened(found, jetstream_ledger.STREAM, "stream", _ledger(js, found, index))
                await _opened(found, refusal_stream.STREAM, "refusals", _refusals(js, found, index))
            if kept.since is not None:
                found.note("since", found.log.since(kept.since))
        finally:
            await nc.close()
    return found.report()


@asynccontextmanager
async def serving(keys: KeyFiles, url: str, sync: Any) -> AsyncIterator[str]:
    """The URL of the NATS server: ``url``, or that of an embedded one for as long as this takes."""
    if url:
        yield url
        return
    async with EmbeddedServer(keys, Options(sync=sync)) as server:
        yield server.url


async def _opened(found: Audit, stream: str, check: str, work: Coroutine[Any, Any, None]) -> None:
    """Do ``work``, unless the server has no such stream: then it was never there, or its description is damaged."""
    try:
        await work
    except ApiError as error:
        if error.code != NO_STREAM:
            raise
        found.say(
            check, 0, f"the NATS server opens no stream {stream}: what describes it is damaged or gone (see its log)"
        )


async def _ledger(js: JetStream, found: Audit, index: _Index) -> None:
    async for message in _messages(js, jetstream_ledger.STREAM, jetstream_ledger.SUBJECTS):
        # What the index has between the last message and this one, the stream has lost.
        index.upto(message.seq - 1)
        record = found.entry(message.seq, message.subject, message.data)
        index.beside(message.seq, record)
    found.end((await js.state(jetstream_ledger.STREAM))["last_seq"] if found.last == 0 else found.last)
    index.end()
    index.tree(found.log, jetstream_ledger.STREAM)


async def _refusals(js: JetStream, found: Audit, index: _Index) -> None:
    index.refused(found.refused)
    async for message in _messages(js, refusal_stream.STREAM, refusal_stream.SUBJECTS):
        found.refusal(message.seq, message.data, index.refusal(message.seq))


async def _messages(js: JetStream, stream: str, subjects: str) -> AsyncIterator[Message]:
    """Every message of a stream in order, those missing left out."""
    state = await js.state(stream)
    at, last = max(state["first_seq"] - 1, 0), state["last_seq"]
    while at < last:
        upto = min(at + _WINDOW, last)
        for message in await _window(js, stream, subjects, at, upto):
            yield message
        at = upto


async def _window(js: JetStream, stream: str, subjects: str, after: int, upto: int) -> list[Message]:
    """Through a consumer; where that does not bring the last one, one by one: it may be missing."""
    if await js.at(stream, upto) is not None:
        with contextlib.suppress(Unreachable):
            return await js.read(stream, subjects, after, upto)
    found: list[Message] = []
    while after < upto and (message := await js.next(stream, subjects, after + 1)) is not None and message.seq <= upto:
        found.append(message)
        after = message.seq
    return found


class _Index:
    """The rows of the index, read along with the stream."""

    def __init__(self, found: Audit, db: sqlite3.Connection | None) -> None:
        self._found, self._db = found, db
        self._rows = (
            iter(()) if db is None else iter(db.execute("SELECT stream_seq, body FROM record ORDER BY stream_seq"))
        )
        self._row: tuple[int, str] | None = next(self._rows, None)
        self._passed, self._witness, self._sealed = _position(db)
        self._seen: str | None = None
        self._leaves = b""

    def tree(self, log: LogAudit, name: str) -> None:
        """The tiles and the checkpoints of a tree, beside the one that was made anew."""
        if self._db is None:
            return
        size, _ = index_tree.state(self._db, name)
        query = "SELECT level, idx, hashes FROM tile WHERE tree = ?"
        log.kept((((level, at), hashes) for level, at, hashes in self._db.execute(query, (name,))), size)
        query = "SELECT note, size FROM checkpoint WHERE tree = ? ORDER BY size"
        for note, said in self._db.execute(query, (name,)):
            log.said(note, said)

    def refused(self, log: LogAudit) -> None:
        """The tree of the refusals from the leaves that the index has: what they were of may have been discarded."""
        if self._db is None:
            return
        size, log.first = index_tree.state(self._db, refusal_stream.STREAM)
        query = "SELECT hashes FROM tile WHERE tree = ? AND level = 0 ORDER BY idx"
        self._leaves = b"".join(row[0] for row in self._db.execute(query, (refusal_stream.STREAM,)))[: size * HASH]
        for at in range(0, len(self._leaves), HASH):
            log.hash(self._leaves[at : at + HASH])
        self.tree(log, refusal_stream.STREAM)

    def refusal(self, seq: int) -> bytes | None:
        """The leaf that stands for a message of the refusals, where there is one."""
        row = self._db and self._db.execute("SELECT leaf FROM refusal WHERE stream_seq = ?", (seq,)).fetchone()
        return self._leaves[row[0] * HASH : (row[0] + 1) * HASH] if row else None

    def upto(self, seq: int) -> None:
        """Rows up to ``seq`` have no message any more."""
        while self._row is not None and self._row[0] <= seq:
            self._found.indexed(self._row[0], None, json.loads(self._row[1]))
            self._row = next(self._rows, None)

    def beside(self, seq: int, record: dict[str, Any] | None) -> None:
        """The row of a message."""
        if seq == self._witness:
            self._seen = str((record or {}).get("hash", ""))
        if seq > self._passed or record is None:
            return
        row = None
        if self._row is not None and self._row[0] == seq:
            row = json.loads(self._row[1])
            self._row = next(self._rows, None)
        self._found.indexed(seq, record, row)

    def end(self) -> None:
        """The stream has ended. All was read of the index in one moment: what it has beyond its own place is made up, too.

        INVARIANT: no row stands for a message that was not read
        (test_rows_of_the_index_that_were_moved_made_up_or_cut_off_are_found).
        """
        self.upto(_END)
        if self._witness:
            self._found.witness(self._witness, self._sealed, self._seen)


def _position(db: sqlite3.Connection | None) -> tuple[int, int, str]:
    """How far the index has read, and the last message of the ledger that it has seen, with its hash."""
    if db is None:
        return 0, 0, ""
    query = "SELECT last_seq, witness_seq, witness_hash FROM stream WHERE name = ?"
    last, seq, sealed = db.execute(query, (jetstream_ledger.STREAM,)).fetchone() or (0, 0, "")
    return int(last), int(seq), str(sealed)


@contextlib.contextmanager
def _rows(path: Path, found: Audit) -> Iterator[_Index]:
    """The index, read only. Without one the end of the ledger has no witness, which is said."""
    if not path.exists():
        for check in ("witness", "index", "tree", "checkpoints"):
            found.note(check, "there is no index: an end of the ledger that is missing would not be seen")
        yield _Index(found, None)
        return
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
    try:
        # One moment for all that is read of it: a broker may be writing. What it had then, the streams have now.
        db.execute("BEGIN")
        yield _Index(found, db)
    except sqlite3.DatabaseError as error:
        found.say("index", 0, f"{path} cannot be read: {error}")
    finally:
        db.close()
