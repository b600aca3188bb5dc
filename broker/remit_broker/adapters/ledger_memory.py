"""What a replica knows of the ledger's stream, and whether the stream still holds it.

A fold is remembered with the stream sequence of its last record and the *generation* in which the stream was seen to
hold it. The generation grows with everything after which the stream may be another one: a new connection, a new leader,
a request without an answer. What is remembered from an earlier generation is read back before it is used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from nats.aio.msg import Msg

from remit_broker.adapters.jetstream import JetStream, Message
from remit_broker.adapters.remembered import Remembered
from remit_broker.core.fold import Corrupt, Fold, apply, fold_all
from remit_schemas.errors import Code, Refusal, refusal
from remit_schemas.names import is_tenant, is_txn
from remit_schemas.records import Entry, HopClosed, parse_entry, parse_record

STREAM: Final = "LEDGER"
ADVISORIES: Final = f"$JS.EVENT.ADVISORY.STREAM.*.{STREAM}"
_FEW: Final = 8
"""Up to so many records are read one by one; more are read through a consumer."""

Key = tuple[str, str]
"""(tenant, txn)."""


class Known(NamedTuple):
    """A fold, the stream sequence of its last record, and the generation in which the stream was seen to hold it."""

    fold: Fold
    at: int
    generation: int


class Lost(Exception):  # noqa: N818
    """An acknowledged record is missing or another one: that sealed by ``sealed`` was at ``seq`` of the stream.

    ``seq`` of 0 says that no answer to another question could make it good.
    """

    def __init__(self, why: str, seq: int = 0, sealed: str = "") -> None:
        super().__init__(why)
        self.seq, self.sealed = seq, sealed


_ORDINARY: Final = 32
"""Hops of an ordinary txn."""
_GRANT: Final = 2048
"""Bytes of a large ordinary grant."""

Witness = Callable[[str, str], Awaitable[tuple[int, str, int] | None]]
"""What is known of a txn outside of the stream: its last record seen there, the record's hash, and where it stood. Or None."""


async def _nobody(tenant: str, txn: str) -> None:
    return None


class LedgerMemory:
    """The folds that were used last, each with where it stood in the stream.

    ``size`` is how many are kept of txns of up to 32 hops; larger ones count by their hops.
    """

    def __init__(self, js: JetStream, size: int) -> None:
        self._js = js
        self._folds: Remembered[Key, Known] = Remembered(size * _ORDINARY)
        self._grants: Remembered[str, str] = Remembered(size * _GRANT)
        self._closings: Remembered[tuple[str, str, str], int] = Remembered(size * _ORDINARY)
        self._doubts = 0
        self._checked = 0
        self._checking = asyncio.Lock()
        self.high = Message(0, "", b"")
        """The newest message of the stream that this replica has seen."""
        self._before: Message | None = None
        """The newest one of an earlier generation, until it was seen to be there still."""
        self.witness: Witness = _nobody

    def __len__(self) -> int:
        return len(self._folds)

    def clear(self) -> None:
        """Forget everything."""
        self._folds.clear()
        self._grants.clear()
        self._closings.clear()

    def keep_grant(self, rec: str, grant: str | None) -> None:
        """Remember the grant of a record that is stored."""
        if grant is None:
            return
        self._grants.put(rec, grant, len(grant))

    def grant(self, rec: str) -> str | None:
        """The grant of a record, where it is remembered."""
        return self._grants.get(rec)

    async def read_grant(self, key: Key, rec: str) -> str | None:
        """The grant of a record of a txn, from the stream."""
        newest = await self._last(key)
        if newest is None:
            raise unknown_txn()
        for message in await self._js.read(STREAM, subject_of(key), 0, newest.seq):
            entry = parsed(key, message)
            if entry.record["hash"] == rec:
                self.keep_grant(rec, entry.grant)
                return entry.grant
        return None

    def at_hand(self, key: Key) -> Known | None:
        """What :meth:`know` would answer, where nothing has to be asked for it."""
        generation = self.generation
        known = self._folds.get(key)
        if known is None or known.generation != generation or self._checked != generation:
            return None
        return known

    async def know(self, key: Key) -> Known:
        if not (is_tenant(key[0]) and is_txn(key[1])):
            raise unknown_txn()
        await self.check_log()
        known = self._folds.get(key)
        if known is None:
            return self.remember(key, await self.read_all(key))
        return known if known.generation == self.generation else await self._catch_up(key, known)

    async def renew(self, key: Key) -> Known:
        known = await self.know(key)
        return await self._catch_up(key, known)

    async def _catch_up(self, key: Key, known: Known) -> Known:
        """``known`` made the newest, its last record having been seen in the stream."""
        generation = self.generation
        newest = await self._last(key)
        if newest is None or newest.seq < known.at:
            raise _ended(known, newest)
        if newest.seq > known.at:
            known = self.advance(known, await self.tail(key, known, newest))
        elif (found := parsed(key, newest).record["hash"]) != known.fold.hash:
            why = f"{subject_of(key)} at {known.at} has the hash {found}, not {known.fold.hash}"
            raise Lost(why, known.at, known.fold.hash)
        return self.remember(key, known._replace(generation=generation))

    async def _last(self, key: Key) -> Message | None:
        """The newest record of a txn. That it was seen counts at once, whatever becomes of reading the others.

        INVARIANT: what was shown once and is not there any more halts (test_a_record_that_was_only_seen_and_then_lost_halts).
        """
        newest = await self._js.last(STREAM, subject_of(key))
        if newest is not None:
            self.raise_high(newest)
        return newest

    async def tail(self, key: Key, known: Known, newest: Message | None = None) -> list[Message]:
        """The records after ``known``, in order."""
        newest = newest or await self._last(key)
        if newest is None or newest.seq < known.at:
            raise _ended(known, newest)
        if newest.seq == known.at:
            return []
        missing = parsed(key, newest).record["seq"] - known.fold.seq
        if missing > _FEW:
            return await self._js.read(STREAM, subject_of(key), known.at, newest.seq)
        tail: list[Message] = []
        at = known.at
        for _ in range(missing - 1):
            found = await self._js.next(STREAM, subject_of(key), at + 1)
            if found is None or found.seq >= newest.seq:
                break
            tail.append(found)
            at = found.seq
        return [*tail, newest]

    async def read_all(self, key: Key) -> Known:
        generation = self.generation
        seen = await self.witness(*key)
        newest = await self._last(key)
        if newest is None:
            if seen is not None:
                raise Lost(f"{subject_of(key)} is gone, record {seen[0]} of it was seen", seen[2], seen[1])
            raise unknown_txn()
        messages = [newest]
        if parsed(key, newest).record["seq"] != 0:
            messages = await self._js.read(STREAM, subject_of(key), 0, newest.seq)
        fold = fold_all(parsed(key, message).record for message in messages)
        # A follower may have served the consumer; the last record was read from the leader and seals all before it.
        if fold.hash != parsed(key, newest).record["hash"]:
            raise Corrupt(f"{key[1]}#{fold.seq}", "it does not end in the record that the leader has last")
        # INVARIANT: a txn that lost its end is not used (test_a_txn_shorter_than_its_witness_halts_the_ledger).
        if seen is not None and (fold.seq < seen[0] or hash_in(messages[seen[0]]) != seen[1]):
            raise Lost(f"{subject_of(key)} lacks record {seen[0]} that was seen of it", seen[2], seen[1])
        self.raise_high(newest)
        return Known(fold, newest.seq, generation)

    def keep_closing(self, key: Key, hop: str, at: int) -> None:
        """Remember where in the stream the record stands that closed ``hop``."""
        self._closings.put((*key, hop), at, 1)

    async def closing(self, key: Key, hop: str) -> HopClosed | None:
        """The record that closed ``hop``: one message, where this replica has seen it closed, else it is looked for in all.

        INVARIANT: asking for the end of a hop does not cost more the longer its task is
        (test_the_end_of_a_hop_that_was_seen_is_one_message).
        """
        if at := self._closings.get((*key, hop)):
            seen = await self._js.at(STREAM, at)
            # What stands there by now is believed as little as anything that is read.
            if seen is not None and seen.subject == subject_of(key) and (found := _closing(key, hop, seen)) is not None:
                return found
        newest = await self._last(key)
        if newest is None:
            return None
        for message in await self._js.read(STREAM, subject_of(key), 0, newest.seq):
            if (found := _closing(key, hop, message)) is not None:
                return found
        return None

    def advance(self, known: Known, tail: list[Message]) -> Known:
        fold = known.fold
        key = (fold.tenant, fold.txn)
        # INVARIANT: what is built on is still there (test_a_txn_that_was_replaced_after_a_reconnect_halts_the_ledger).
        if (found := parsed(key, tail[0]).record["prev"]) != fold.hash:
            raise Lost(f"{subject_of(key)} after {known.at} continues {found}, not {fold.hash}")
        for message in tail:
            entry = parsed(key, message)
            fold = apply(fold, entry.record)
            self.keep_grant(fold.hash, entry.grant)
            if entry.record["kind"] == "hop.closed":
                self.keep_closing(key, entry.record["hop"], message.seq)
        self.raise_high(tail[-1])
        return Known(fold, tail[-1].seq, known.generation)

    @property
    def generation(self) -> int:
        """Grows whenever the stream may have become another one than it was."""
        return self._doubts + self._js.reconnects

    def doubt(self) -> None:
        self._doubts += 1

    async def advised(self, msg: Msg) -> None:
        if ".LEADER_ELECTED." in msg.subject or ".QUORUM_LOST." in msg.subject:
            self.doubt()

    async def check_log(self) -> None:
        """In a new generation: the newest message that this replica saw must still be where it was."""
        if self._checked == self.generation:
            return
        async with self._checking:
            if self._checked != (generation := self.generation):
                await self.check_message(self._before or self.high)
                self._before, self._checked = None, generation

    async def check_message(self, known: Message) -> None:
        if known.seq and await self._js.at(STREAM, known.seq) != known:
            why = f"the stream no longer has the acknowledged message {known.seq} of {known.subject}"
            raise Lost(why, known.seq, hash_in(known))

    async def check_known(self, known: Known | None) -> None:
        if known is None:
            return
        key = (known.fold.tenant, known.fold.txn)
        found = await self._js.at(STREAM, known.at)
        if found is None or parsed(key, found).record["hash"] != known.fold.hash:
            why = f"the stream no longer has record {known.fold.seq} of {subject_of(key)} at {known.at}"
            raise Lost(why, known.at, known.fold.hash)

    def raise_high(self, message: Message) -> None:
        if message.seq > self.high.seq:
            # INVARIANT: a message that comes after a loss does not hide it: the newest one from before is still looked for
            # (test_what_is_acknowledged_after_a_loss_does_not_hide_it).
            if self._before is None and self._checked != self.generation:
                self._before = self.high
            self.high = message

    def remember(self, key: Key, known: Known) -> Known:
        held = self._folds.get(key)
        if held is None or held.at <= known.at:
            held = known
            # INVARIANT: what is remembered is bounded by hops, not by txns (test_large_txns_push_out_more_than_one_small_one).
            self._folds.put(key, known, max(_ORDINARY, len(known.fold.nodes)))
        return held

    def forget(self, key: Key) -> None:
        self._folds.drop(key)


def parsed(key: Key, message: Message) -> Entry:
    """The entry of a stored message. Raises :class:`Corrupt`."""
    try:
        entry = parse_entry(message.data)
        if not isinstance(entry.record.get("hash"), str) or not isinstance(entry.record.get("seq"), int):
            raise ValueError("it has no hash or no seq")
    except (ValueError, Refusal) as error:
        raise Corrupt(f"{key[1]} at {message.seq} of the stream", f"not a ledger entry: {error}") from None
    return entry


def _closing(key: Key, hop: str, message: Message) -> HopClosed | None:
    """The record in a message, where it is the one that closed ``hop``."""
    raw = parsed(key, message).record
    if raw["kind"] != "hop.closed" or raw["hop"] != hop:
        return None
    record = parse_record(raw)
    return record if isinstance(record, HopClosed) else None


def hash_in(message: Message) -> str:
    """The hash of the record in a message; what is not readable has none."""
    try:
        return str(parse_entry(message.data).record.get("hash", ""))
    except (ValueError, Refusal):
        return ""


def _ended(known: Known, newest: Message | None) -> Lost:
    subject = subject_of((known.fold.tenant, known.fold.txn))
    why = f"{subject} ended at {known.at}, now at {newest.seq if newest else 0}"
    return Lost(why, known.at, known.fold.hash)


def subject_of(key: Key) -> str:
    return f"ledger.{key[0]}.{key[1]}"


def unknown_txn() -> Refusal:
    ask = "a grant issued by this broker, of a txn that it keeps"
    return refusal(Code.GRANT_INVALID, "the ledger has no such txn", rule="ledger.unknown-txn", ask=ask)


def unavailable(rule: str, message: str, cause: str) -> Refusal:
    """Nothing was done, and nobody can say when it can be. ``cause`` is for operators."""
    return refusal(
        Code.LEDGER_UNAVAILABLE,
        message,
        rule=rule,
        ask="try again later; nothing was done",
        retry_after=1.0,
        cause=cause,
    )
