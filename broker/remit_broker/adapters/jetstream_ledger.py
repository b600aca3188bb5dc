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
operator has looked. On a cluster that is made sure of first (:mod:`remit_broker.adapters.ledger_suspicion`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from nats.aio.client import Client

from remit_broker.adapters.commit_groups import CommitGroups, Publish
from remit_broker.adapters.jetstream import (
    EXPECT_STREAM,
    EXPECT_SUBJECT,
    IN_FLIGHT,
    WRONG_LAST_SEQUENCE,
    ApiError,
    JetStream,
    Message,
    Unreachable,
)
from remit_broker.adapters.ledger_append import Ready, Shot, Stored, ready
from remit_broker.adapters.ledger_memory import (
    ADVISORIES,
    STREAM,
    Key,
    Known,
    LedgerMemory,
    Lost,
    Witness,
    parsed,
    subject_of,
    unavailable,
)
from remit_broker.adapters.ledger_room import Room
from remit_broker.adapters.ledger_stream import MAY_DIFFER, SUBJECTS, settings
from remit_broker.adapters.ledger_suspicion import SECONDS, Suspicion, suspected
from remit_broker.core.fold import Corrupt, Fold
from remit_broker.ledger_port import LostRace
from remit_schemas.errors import Code, Refusal, refusal
from remit_schemas.records import (
    Following,
    GrantRenewed,
    HopClosed,
    HopOpened,
    HopResumed,
    Record,
    TxnOpened,
)

__all__ = ["STREAM", "SUBJECTS", "JetStreamLedger", "Turn"]

_T = TypeVar("_T")


class JetStreamLedger:
    """The ledger of one broker replica (port ``Ledger``). Times are in seconds.

    ``patience`` is how long one operation may take before it refuses, ``remembered`` how many folds are kept, ``certain`` how
    long a record must be missing before that is believed (see :class:`Suspicion`).
    """

    def __init__(
        self,
        js: JetStream,
        *,
        patience: float = 5.0,
        attempt: float = 1.0,
        remembered: int = 4096,
        soft_mark: int = 0,
        certain: float = 0.0,
    ) -> None:
        self._js = js
        self._memory = LedgerMemory(js, remembered)
        self._patience = patience
        self._attempt = attempt
        self.room = Room(js, soft_mark)
        self._groups: CommitGroups | None = None
        self._locks: dict[Key, tuple[asyncio.Lock, int]] = {}
        self._found = 0
        self._halted: str | None = None
        self._suspicion = Suspicion(js, certain, self.halt, self._memory.doubt)
        self.races = 0
        """Appends before which another replica's came."""
        self.ambiguous = 0
        """Attempts to append that had no answer: the record may have been stored or not, and was asked for again."""

    @classmethod
    async def start(
        cls,
        nc: Client,
        *,
        replicas: int = 1,
        max_bytes: int = -1,
        soft_mark: float = 0.9,
        grouped: bool = False,
        **limits: Any,
    ) -> JetStreamLedger:
        """Make or check the stream. ``nc`` is a connection in the CORE account.

        With ``grouped`` appends of different txns that are ready together share one wait for the disk, where the stream
        allows it: worth it where every commit waits for the disk, and a loss where none does.

        From ``soft_mark`` times ``max_bytes`` on nothing new is opened, so that what is open can still be closed.
        Raises :class:`ConfigError` where the server or the stream could lose a record.
        """
        js = JetStream(nc)
        js.require_version()
        info = await js.ensure(settings(replicas, max_bytes), unequal_ok=MAY_DIFFER)
        cap = await _raised(js, info["config"], max_bytes)
        ledger = cls(js, **{"certain": SECONDS if replicas > 1 else 0.0, **limits})
        ledger.room = Room(js, 0, soft_mark)
        ledger.room.weighed(info["state"]["bytes"], cap)
        if grouped and info["config"].get("allow_atomic"):
            ledger._groups = CommitGroups(js)
        ledger._found = info["state"]["last_seq"]
        await nc.subscribe(ADVISORIES, cb=ledger._memory.advised)
        return ledger

    @property
    def halted(self) -> str | None:
        """Why the ledger refuses everything, or None while it works."""
        return self._halted

    @property
    def trouble(self) -> str | None:
        """Why everything is refused just now: it has halted, or may have to. None while it works."""
        return self._halted or self._suspicion.cause

    def witnessed(self, witness: Witness) -> None:
        """Compare what is read of a txn for the first time with what ``witness`` has seen of it."""
        self._memory.witness = witness

    @property
    def high(self) -> int:
        """The newest stream sequence that this replica has appended, read or found: what a projection must have reached."""
        return max(self._memory.high.seq, self._found)

    def halt(self, cause: str) -> None:
        """Refuse everything from now on: an acknowledged record is not there any more. ``cause`` is for operators."""
        self._halted = self._halted or cause
        self._memory.clear()

    async def create(self, record: TxnOpened, grant: str) -> Fold:
        """Start a txn whose id this broker drew. Refuses LEDGER_UNAVAILABLE, or CONFLICT where the txn exists."""
        if self.room.due:
            await self._within(self.room.require())
        key = (record.tenant, record.txn)
        appended = await self._append(key, None, ready(None, record, grant))
        if isinstance(appended, LostRace):
            raise refusal(Code.CONFLICT, "a txn of this id exists", rule="ledger.txn-exists", ask="try again")
        return appended

    async def fold(self, tenant: str, txn: str) -> Fold:
        """What this replica knows of a txn; another replica may have appended since (an append would find out).

        Refuses GRANT_INVALID for an unknown txn and LEDGER_UNAVAILABLE for one with a gap or an unreachable ledger.
        """
        return (await self._known((tenant, txn))).fold

    async def newest(self, tenant: str, txn: str) -> Fold:
        """The fold after a leader read: for answers that nothing is appended after. Refuses as :meth:`fold`."""
        return (await self._within(self._memory.renew((tenant, txn)))).fold

    async def closing(self, tenant: str, txn: str, hop: str) -> HopClosed:
        """The record that closed a hop, read from the stream. Refuses LEDGER_UNAVAILABLE where there is none."""
        found = await self._within(self._memory.closing((tenant, txn), hop))
        if found is None:
            raise unavailable("ledger.no-closing", "the record of an ended hop is not there", f"{txn}.{hop}")
        return found

    async def grant(self, tenant: str, txn: str, rec: str) -> str:
        """The grant that the record with the hash ``rec`` authorised. Refuses LEDGER_UNAVAILABLE where there is none."""
        known = self._memory.grant(rec)
        found = known if known is not None else await self._within(self._memory.read_grant((tenant, txn), rec))
        if found is None:
            raise unavailable("ledger.no-grant", "the record of a grant is not there", f"{txn}: no record {rec}")
        return found

    def turn(self, tenant: str, txn: str, patience: float | None = None) -> _Waiting:
        """Wait, first come first served, for this replica's turn to append to a txn.

        Refuses LEDGER_UNAVAILABLE when it does not come in ``patience`` seconds (the ledger's own by default).
        """
        return _Waiting(self, (tenant, txn), patience)

    async def enter(self, key: Key, patience: float | None) -> Turn:
        """For ``async with`` :meth:`turn`."""
        lock, users = self._locks.get(key, (None, 0))
        lock = lock or asyncio.Lock()
        self._locks[key] = (lock, users + 1)
        try:
            # Nobody has it or waits for it: taken at once, and no timer needed.
            await (self._within(lock.acquire(), patience=patience) if users else lock.acquire())
            try:
                return Turn(self, key, (await self._known(key)).fold)
            except BaseException:
                lock.release()
                raise
        except BaseException:
            self._forgo(key)
            raise

    def leave(self, key: Key) -> None:
        """For the end of ``async with`` :meth:`turn`."""
        self._locks[key][0].release()
        self._forgo(key)

    def _forgo(self, key: Key) -> None:
        lock, users = self._locks[key]
        if users > 1:
            self._locks[key] = (lock, users - 1)
        else:
            del self._locks[key]

    async def _known(self, key: Key) -> Known:
        """What is remembered of a txn where that is good without asking, else what the stream says."""
        known = self._memory.at_hand(key) if self._halted is None else None
        return known if known is not None else await self._within(self._memory.know(key))

    async def append(self, key: Key, ready: Ready, sent: Callable[[], None]) -> Fold | LostRace:
        """Append a record that was made ready on a fold. ``sent`` hears that it may be stored from now on. For :class:`Turn`."""
        if isinstance(ready.record, HopOpened | HopResumed | GrantRenewed) and self.room.due:
            await self._within(self.room.require())
        known = await self._known(key)
        if ready.record.prev != known.fold.hash:
            self.races += 1
            return LostRace(known.fold)
        self._require_working()
        sent()
        return await self._append(key, known, ready)

    async def _append(self, key: Key, known: Known | None, ready: Ready) -> Fold | LostRace:
        """One publish, and where its ack settles the matter, as nearly always, nothing more; else :meth:`_insist`."""
        self._require_working()
        due = asyncio.get_running_loop().time() + self._patience
        headers = {EXPECT_SUBJECT: str(known.at if known else 0), EXPECT_STREAM: STREAM}
        shot = Shot(key, known, subject_of(key), headers, ready)
        try:
            stored = await self._publish(shot, min(self._attempt, self._patience))
            if stored is not None and stored.ack.error is None and self._is_same_stream(known, stored):
                self._acknowledged(shot, stored)
                return self._remembered(shot, stored.ack.seq, stored.generation)
            async with asyncio.timeout_at(due):
                return await self._insist(shot, stored)
        except BaseException as error:
            # INVARIANT: a turn cut short leaves nothing believed (test_a_cancelled_append_leaves_the_next_turn_right).
            self._memory.forget(key)
            raise self._translated(error) from None

    async def _publish(self, shot: Shot, seconds: float, *, again: bool = False) -> Stored | None:
        """One attempt, the first perhaps together with others; None where it had no answer."""
        before, generation = self._memory.high.seq, self._memory.generation
        try:
            if self._groups is not None and not again:
                ack = await self._groups.publish(Publish(shot.subject, shot.ready.payload, shot.headers), seconds)
            else:
                ack = await self._js.publish(shot.subject, shot.ready.payload, shot.headers, seconds)
        except Unreachable:
            # INVARIANT: an append without an answer is never taken for done or undone
            # (test_an_append_whose_ack_is_lost_is_stored_once).
            self._memory.doubt()
            self.ambiguous += 1
            return None
        return Stored(ack, before, generation)

    async def _insist(self, shot: Shot, stored: Stored | None) -> Fold | LostRace:
        """Until it is known what became of a record: the same bytes again at the same place, or what is there instead."""
        pause = 0.005
        while True:
            if stored is not None:
                error = stored.ack.error
                if error is None:
                    return await self._stored(shot, stored)
                if error.err_code not in (WRONG_LAST_SEQUENCE, IN_FLIGHT):
                    raise ApiError(error.err_code, error.description)
                if (outcome := await self._lost(shot.key, shot.known, shot.ready.record)) is not None:
                    return outcome
            pause = await _wait(pause)
            stored = await self._publish(shot, self._attempt, again=True)

    def _is_same_stream(self, known: Known | None, stored: Stored) -> bool:
        """Whether nothing happened since the record was decided after which the stream may be another one."""
        generation = self._memory.generation
        return stored.generation == generation and (known is None or known.generation == generation)

    def _acknowledged(self, shot: Shot, stored: Stored) -> None:
        """What an ack says of the stream itself, which only grows."""
        seq = stored.ack.seq
        # INVARIANT: acknowledged sequences grow (test_a_stream_whose_sequence_goes_backwards_halts_the_ledger).
        if stored.ack.stream != STREAM or seq <= stored.before:
            raise Lost(f"an append was acknowledged at {seq} of {stored.ack.stream!r} after {stored.before} was")
        self._memory.raise_high(Message(seq, shot.subject, shot.ready.payload))
        self.room.grew(len(shot.ready.payload))

    def _remembered(self, shot: Shot, seq: int, generation: int) -> Fold:
        # INVARIANT: what was on its way when the ledger halted is not believed (test_an_append_that_outlasts_the_halt_is_refused).
        self._require_working()
        self._memory.keep_grant(shot.ready.record.hash, shot.ready.grant)
        if isinstance(shot.ready.record, HopClosed):
            self._memory.keep_closing(shot.key, shot.ready.record.hop, seq)
        return self._memory.remember(shot.key, Known(shot.ready.after, seq, generation)).fold

    async def _stored(self, shot: Shot, stored: Stored) -> Fold:
        """The record was acknowledged, perhaps by another stream: it counts when what it stands on is still there."""
        self._acknowledged(shot, stored)
        generation = self._memory.generation
        if not self._is_same_stream(shot.known, stored):
            await self._memory.check_log()
            await self._memory.check_known(shot.known)
            await self._memory.check_message(Message(stored.ack.seq, shot.subject, shot.ready.payload))
        return self._remembered(shot, stored.ack.seq, generation)

    async def _lost(self, key: Key, known: Known | None, record: Record) -> Fold | LostRace | None:
        """After a refused compare-and-set: our own record (an earlier attempt won), a lost race, or None: unknown."""
        if known is None:
            found = await self._js.next(STREAM, subject_of(key), 1)
            if found is None:
                return None
            newest = await self._memory.read_all(key)
            mine = parsed(key, found).record["hash"] == record.hash
        else:
            tail = await self._memory.tail(key, known)
            if not tail:
                return None
            newest = self._memory.advance(known, tail)
            mine = parsed(key, tail[0]).record["hash"] == record.hash
        fold = self._memory.remember(key, newest).fold
        if mine:
            return fold
        self.races += 1
        return LostRace(fold)

    async def _within(self, work: Awaitable[_T], patience: float | None = None) -> _T:
        """Do ``work`` in time, or refuse."""
        try:
            self._require_working()
        except Refusal:
            if asyncio.iscoroutine(work):
                work.close()
            raise
        try:
            async with asyncio.timeout(self._patience if patience is None else patience):
                return await work
        except BaseException as error:
            raise self._translated(error) from None

    def _require_working(self) -> None:
        if self._halted:
            raise unavailable("ledger.halted", "the ledger has halted; an operator must look at it", self._halted)
        if self._suspicion.cause:
            raise suspected(self._suspicion.cause)

    def _translated(self, error: BaseException) -> BaseException:
        match error:
            case Lost():
                if not self._suspicion.raised(error):
                    return suspected(str(error))
                self.halt(str(error))
                return unavailable("ledger.halted", "the ledger has halted; an operator must look at it", str(error))
            case Corrupt():
                return unavailable("ledger.corrupt", "the records of this txn do not hold together", str(error))
            case TimeoutError() | Unreachable() | ApiError():
                cause = str(error) or "it could not be known in time whether the record is stored"
                return unavailable("ledger.unreachable", "the ledger does not answer as it must", cause)
            case _:
                return error


class _Waiting:
    """The way into a turn and out of it: ``async with``."""

    __slots__ = ("_key", "_ledger", "_patience")

    def __init__(self, ledger: JetStreamLedger, key: Key, patience: float | None) -> None:
        self._ledger = ledger
        self._key = key
        self._patience = patience

    async def __aenter__(self) -> Turn:
        return await self._ledger.enter(self._key, self._patience)

    async def __aexit__(self, *_: object) -> None:
        self._ledger.leave(self._key)


class Turn:
    """The right to append to one txn in this replica (port ``Turn``)."""

    def __init__(self, ledger: JetStreamLedger, key: Key, fold: Fold) -> None:
        self._ledger = ledger
        self._key = key
        self._fold = fold
        self._unclear = False

    @property
    def fold(self) -> Fold:
        """The newest fold known."""
        return self._fold

    @property
    def unclear(self) -> bool:
        """Whether an append ended in an error and its record may be stored all the same."""
        return self._unclear

    async def append(self, record: Following, grant: str | None) -> Fold | LostRace:
        """Append a sealed record that follows :attr:`fold`. It is durable when a Fold is returned.

        Refuses LEDGER_UNAVAILABLE: then it may be stored or not, and nothing may be done on its authority.
        """
        appended = await self._ledger.append(self._key, ready(self._fold, record, grant), self._sent)
        self._unclear = False
        self._fold = appended.fold if isinstance(appended, LostRace) else appended
        return appended

    def _sent(self) -> None:
        self._unclear = True


async def _wait(pause: float) -> float:
    await asyncio.sleep(pause)
    return min(pause * 2, 0.25)


async def _raised(js: JetStream, found: dict[str, Any], wanted: int) -> int:
    """The stream's cap in bytes (-1: none), raised where the configuration allows more than when the stream was made."""
    cap = int(found.get("max_bytes", -1))
    if cap > 0 and (wanted < 0 or wanted > cap):
        await js.api(f"STREAM.UPDATE.{STREAM}", {**found, "max_bytes": wanted})
        return wanted
    # A smaller one counts as a cap of this broker: what is there cannot be made to fit.
    return cap if wanted < 0 else min(wanted, cap) if cap > 0 else wanted
