"""The ledger on JetStream: one subject per txn, every record appended by compare-and-set, no record believed unread.

How an append is made sure of. The record is published with the stream sequence of the txn's last record as
``Nats-Expected-Last-Subject-Sequence``, and with no ``Nats-Msg-Id`` (a reused id is acknowledged as a duplicate and not
stored). Then one of four things happens:

- an ack: the record is stored, if the stream's sequence has grown;
- no answer: the same bytes are published again at the same expected sequence. If that wins, they are stored once;
- the expected sequence is wrong, or taken by an append in flight: both mean *unknown*. The subject is read and hashes
  are compared: our record may be there from an earlier attempt, or somebody else's, which is a lost race;
- none of that within the time there is: LEDGER_UNAVAILABLE, and what was known of the txn is forgotten.

Compare-and-set compares numbers, not content. So, after anything that could have lost or replaced records (a new
connection, a new leader, a request without an answer), what is known is read back and its hash compared before it is
built on; and where an acknowledged record is missing or differs, the ledger halts: everything is refused until an
operator has looked.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from nats.aio.client import Client

from remit_broker.adapters.jetstream import (
    EXPECT_STREAM,
    EXPECT_SUBJECT,
    IN_FLIGHT,
    WRONG_LAST_SEQUENCE,
    Ack,
    ApiError,
    JetStream,
    Message,
    Unreachable,
)
from remit_broker.adapters.ledger_memory import (
    ADVISORIES,
    STREAM,
    Key,
    Known,
    LedgerMemory,
    Lost,
    parsed,
    subject_of,
)
from remit_broker.core.fold import Corrupt, Fold, apply
from remit_broker.ports import LostRace
from remit_schemas.errors import Code, Refusal, refusal
from remit_schemas.records import (
    MAX_ENTRY,
    Entry,
    GrantRevoked,
    HopClosed,
    HopOpened,
    TxnClosed,
    TxnOpened,
    plain,
)

__all__ = ["STREAM", "SUBJECTS", "JetStreamLedger", "Turn"]

SUBJECTS: Final = "ledger.>"
_OVERHEAD: Final = 256
"""What a message takes in the stream beside its payload, at most: subject, headers, framing. In bytes."""
_WEIGH: Final = 5.0
"""How often, in seconds, the stream is asked for its size: other replicas append to it too."""

_T = TypeVar("_T")
_encode = msgspec.json.Encoder().encode


class JetStreamLedger:
    """The ledger of one broker replica (port ``Ledger``). Times are in seconds.

    ``patience`` is how long one operation may take before it refuses, ``remembered`` how many folds are kept.
    """

    def __init__(
        self, js: JetStream, *, patience: float = 5.0, attempt: float = 1.0, remembered: int = 4096, soft_mark: int = 0
    ) -> None:
        self._js = js
        self._memory = LedgerMemory(js, remembered)
        self._patience = patience
        self._attempt = attempt
        self._soft_mark = soft_mark
        self._locks: dict[Key, tuple[asyncio.Lock, int]] = {}
        self._bytes = 0
        self._weigh_at = 0.0
        self._halted: str | None = None

    @classmethod
    async def start(
        cls, nc: Client, *, replicas: int = 1, max_bytes: int = -1, soft_mark: float = 0.9, **limits: Any
    ) -> JetStreamLedger:
        """Make or check the stream. ``nc`` is a connection in the CORE account.

        From ``soft_mark`` times ``max_bytes`` on nothing new is opened, so that what is open can still be closed.
        Raises :class:`ConfigError` where the server or the stream could lose a record.
        """
        js = JetStream(nc)
        js.require_version()
        info = await js.ensure(_settings(replicas, max_bytes), unequal_ok=frozenset({"max_bytes"}))
        size = info["config"].get("max_bytes", -1)
        ledger = cls(js, soft_mark=int(size * soft_mark) if size > 0 else 0, **limits)
        ledger._bytes = info["state"]["bytes"]
        await nc.subscribe(ADVISORIES, cb=ledger._memory.advised)
        return ledger

    @property
    def halted(self) -> str | None:
        """Why the ledger refuses everything, or None while it works."""
        return self._halted

    @property
    def high(self) -> int:
        """The newest stream sequence that this replica has appended or read: what a projection must have reached."""
        return self._memory.high.seq

    def halt(self, cause: str) -> None:
        """Refuse everything from now on: an acknowledged record is not there any more. ``cause`` is for operators."""
        self._halted = self._halted or cause
        self._memory.clear()

    async def create(self, record: TxnOpened, grant: str) -> Fold:
        """Start a txn whose id this broker drew. Refuses LEDGER_UNAVAILABLE, or CONFLICT where the txn exists."""
        await self._within(self._require_room())
        fold = _checked_apply(None, plain(record))
        key = (record.tenant, record.txn)
        appended = await self._within(self._append(key, None, fold, _entry(record, grant)), key)
        if isinstance(appended, LostRace):
            raise refusal(Code.CONFLICT, "a txn of this id exists", rule="ledger.txn-exists", ask="try again")
        return appended

    async def fold(self, tenant: str, txn: str) -> Fold:
        """What this replica knows of a txn; another replica may have appended since (an append would find out).

        Refuses GRANT_INVALID for an unknown txn and LEDGER_UNAVAILABLE for one with a gap or an unreachable ledger.
        """
        return (await self._within(self._memory.know((tenant, txn)))).fold

    async def newest(self, tenant: str, txn: str) -> Fold:
        """The fold after a leader read: for answers that nothing is appended after. Refuses as :meth:`fold`."""
        return (await self._within(self._memory.renew((tenant, txn)))).fold

    @contextlib.asynccontextmanager
    async def turn(self, tenant: str, txn: str, patience: float | None = None) -> AsyncIterator[Turn]:
        """Wait, first come first served, for this replica's turn to append to a txn.

        Refuses LEDGER_UNAVAILABLE when it does not come in ``patience`` seconds (the ledger's own by default).
        """
        key = (tenant, txn)
        lock, users = self._locks.get(key, (None, 0))
        lock = lock or asyncio.Lock()
        self._locks[key] = (lock, users + 1)
        try:
            await self._within(lock.acquire(), patience=patience)
            try:
                known = await self._within(self._memory.know(key))
                yield Turn(self, key, known.fold)
            finally:
                lock.release()
        finally:
            users = self._locks[key][1] - 1
            if users:
                self._locks[key] = (lock, users)
            else:
                del self._locks[key]

    async def append(self, key: Key, after: Fold, entry: Entry) -> Fold | LostRace:
        """Append ``entry``; ``after`` is the fold that it makes. For :class:`Turn`."""
        if entry.record["kind"] == "hop.opened":
            await self._within(self._require_room())
        known = await self._within(self._memory.know(key))
        if entry.record["prev"] != known.fold.hash:
            return LostRace(known.fold)
        return await self._within(self._append(key, known, after, entry), key)

    async def _append(self, key: Key, known: Known | None, after: Fold, entry: Entry) -> Fold | LostRace:
        payload = _encode(entry)
        if len(payload) > MAX_ENTRY:
            raise refusal(
                Code.TOO_LARGE, f"a record and its grant have {len(payload)} bytes, at most {MAX_ENTRY} are stored",
                rule="ledger.entry", ask="ask for fewer scopes or shorter constraints",
            )  # fmt: skip
        subject = subject_of(key)
        expected = known.at if known else 0
        headers = {EXPECT_SUBJECT: str(expected), EXPECT_STREAM: STREAM}
        pause = 0.005
        while True:
            before, generation = self._memory.high.seq, self._memory.generation
            try:
                ack = await self._js.publish(subject, payload, headers, self._attempt)
            except Unreachable:
                # INVARIANT: an append without an answer is never taken for done or undone
                # (test_an_append_whose_ack_is_lost_is_stored_once).
                self._memory.doubt()
                pause = await _wait(pause)
                continue
            if ack.error is None:
                return await self._stored(key, known, after, _Stored(ack, before, generation, subject, payload))
            if ack.error.err_code not in (WRONG_LAST_SEQUENCE, IN_FLIGHT):
                self._memory.forget(key)
                raise ApiError(ack.error.err_code, ack.error.description)
            if (outcome := await self._lost(key, known, entry)) is not None:
                return outcome
            pause = await _wait(pause)

    async def _stored(self, key: Key, known: Known | None, after: Fold, stored: _Stored) -> Fold:
        """The record was acknowledged: it counts when what it stands on is still there."""
        seq = stored.ack.seq
        # INVARIANT: acknowledged sequences grow (test_a_stream_whose_sequence_goes_backwards_halts_the_ledger).
        if stored.ack.stream != STREAM or seq <= stored.before:
            raise Lost(f"an append was acknowledged at {seq} of {stored.ack.stream!r} after {stored.before} was")
        self._memory.raise_high(Message(seq, stored.subject, stored.payload))
        self._bytes += len(stored.payload) + _OVERHEAD
        generation = self._memory.generation
        if stored.generation != generation or (known is not None and known.generation != generation):
            await self._memory.check_log()
            await self._memory.check_known(known)
            await self._memory.check_message(Message(seq, stored.subject, stored.payload))
        return self._memory.remember(key, Known(after, seq, generation)).fold

    async def _lost(self, key: Key, known: Known | None, entry: Entry) -> Fold | LostRace | None:
        """After a refused compare-and-set: our own record (an earlier attempt won), a lost race, or None: unknown."""
        if known is None:
            found = await self._js.next(STREAM, subject_of(key), 1)
            if found is None:
                return None
            newest = await self._memory.read_all(key)
            mine = parsed(key, found).record["hash"] == entry.record["hash"]
        else:
            tail = await self._memory.tail(key, known)
            if not tail:
                return None
            newest = self._memory.advance(known, tail)
            mine = parsed(key, tail[0]).record["hash"] == entry.record["hash"]
        fold = self._memory.remember(key, newest).fold
        return fold if mine else LostRace(fold)

    async def _require_room(self) -> None:
        if not self._soft_mark:
            return
        now = asyncio.get_running_loop().time()
        if now >= self._weigh_at:
            self._weigh_at = now + _WEIGH
            self._bytes = (await self._js.state(STREAM))["bytes"]
        if self._bytes >= self._soft_mark:
            raise _unavailable(
                "ledger.soft-mark", "the ledger is nearly full; nothing new is opened", f"{self._bytes} B"
            )

    async def _within(self, work: Awaitable[_T], key: Key | None = None, patience: float | None = None) -> _T:
        """Do ``work`` in time, or refuse. Whatever stops it, what was known of ``key`` is forgotten."""
        if self._halted:
            if asyncio.iscoroutine(work):
                work.close()
            raise _unavailable("ledger.halted", "the ledger has halted; an operator must look at it", self._halted)
        try:
            async with asyncio.timeout(self._patience if patience is None else patience):
                return await work
        except BaseException as error:
            # INVARIANT: a turn cut short leaves nothing believed (test_a_cancelled_append_leaves_the_next_turn_right).
            if key is not None:
                self._memory.forget(key)
            raise self._translated(error) from None

    def _translated(self, error: BaseException) -> BaseException:
        match error:
            case Lost():
                self.halt(str(error))
                return _unavailable("ledger.halted", "the ledger has halted; an operator must look at it", str(error))
            case Corrupt():
                return _unavailable("ledger.corrupt", "the records of this txn do not hold together", str(error))
            case TimeoutError() | Unreachable() | ApiError():
                cause = str(error) or "it could not be known in time whether the record is stored"
                return _unavailable("ledger.unreachable", "the ledger does not answer as it must", cause)
            case _:
                return error


class _Stored(NamedTuple):
    """An ack, with what was known when its record was published."""

    ack: Ack
    before: int
    generation: int
    subject: str
    payload: bytes


class Turn:
    """The right to append to one txn in this replica (port ``Turn``)."""

    def __init__(self, ledger: JetStreamLedger, key: Key, fold: Fold) -> None:
        self._ledger = ledger
        self._key = key
        self._fold = fold

    @property
    def fold(self) -> Fold:
        """The newest fold known."""
        return self._fold

    async def append(
        self, record: HopOpened | HopClosed | GrantRevoked | TxnClosed, grant: str | None
    ) -> Fold | LostRace:
        """Append a sealed record that follows :attr:`fold`. It is durable when a Fold is returned.

        Refuses LEDGER_UNAVAILABLE: then it may be stored or not, and nothing may be done on its authority.
        """
        after = _checked_apply(self._fold, plain(record))
        appended = await self._ledger.append(self._key, after, _entry(record, grant))
        self._fold = appended.fold if isinstance(appended, LostRace) else appended
        return appended


def _checked_apply(fold: Fold | None, raw: dict[str, Any]) -> Fold:
    try:
        return apply(fold, raw)
    except Corrupt as corrupt:
        raise refusal(
            Code.INTERNAL, "the broker made a record that cannot stand here", rule="ledger.unfit", cause=str(corrupt)
        ) from None


def _entry(record: TxnOpened | HopOpened | HopClosed | GrantRevoked | TxnClosed, grant: str | None) -> Entry:
    return Entry(record=plain(record), grant=grant)


def _unavailable(rule: str, message: str, cause: str) -> Refusal:
    return refusal(
        Code.LEDGER_UNAVAILABLE,
        message,
        rule=rule,
        ask="try again later; nothing was done",
        retry_after=1.0,
        cause=cause,
    )


async def _wait(pause: float) -> float:
    await asyncio.sleep(pause)
    return min(pause * 2, 0.25)


def _settings(replicas: int, max_bytes: int) -> dict[str, Any]:
    """The stream, with everything that could lose a record switched off."""
    return {
        "name": STREAM,
        "subjects": [SUBJECTS],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "num_replicas": replicas,
        "max_bytes": max_bytes,
        "max_age": 0,
        "max_msgs": -1,
        "max_msgs_per_subject": -1,
        "max_consumers": -1,
        "max_msg_size": -1,
        "deny_delete": True,
        "deny_purge": True,
        "allow_direct": False,
        "mirror_direct": False,
        "allow_rollup_hdrs": False,
        "allow_msg_ttl": False,
        "no_ack": False,
        "sealed": False,
        "persist_mode": "",
    }
