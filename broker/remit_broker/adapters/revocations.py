"""What is revoked, kept in a JetStream key-value bucket and mirrored in memory by a watch, with a heartbeat through both.

A revocation that was acknowledged stands in the bucket's stream before every later heartbeat. A replica that sees the heartbeat
it sent itself at a moment ``t`` has therefore seen every revocation acknowledged before ``t``: its own clock alone says how
far behind it can be, and one that is too far behind knows that it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.errors import BucketNotFoundError
from nats.js.kv import KeyValue

from remit_broker.adapters.bucket_watch import watch
from remit_broker.adapters.tasks import ended
from remit_broker.core.presence import Beat, Presence
from remit_broker.core.revocations import Entry, Revoked
from remit_broker.ports import Clock
from remit_schemas.errors import Code, Refusal, refusal
from remit_schemas.names import DEFAULT_TENANT, Jti, Resource, parse_jti

BUCKET: Final = "revocations"
HISTORY: Final = 64
"""Changes of one thing that the bucket keeps, the most one can: what is in force. All that ever was is in the ADMIN stream."""
HEARTBEAT: Final = "heartbeat"
GRANT: Final = "grant"
"""Key under which it is said that a grant was revoked in the ledger: for those who run hops below it, not for deciding."""
BEAT_SECONDS: Final = 0.5
SILENCE: Final = 2.0
"""Seconds a replica goes on deciding without seeing a heartbeat of its own return."""
SEEN_WITHIN: Final = 5.0
"""Seconds a write may take to come back through the watch."""

Fault = Callable[[str, BaseException], None]
Heard = Callable[[Entry], None]


class KvRevocations:
    """One replica's mirror. ``heard`` is told of each entry when it is first seen; it must not wait."""

    def __init__(self, clock: Clock, fault: Fault, replica: str = "") -> None:
        """``replica`` is how the heartbeats name this one; drawn where nobody needs to know."""
        self._clock, self._fault = clock, fault
        self._everything = Revoked()
        self._revoked: dict[str, Revoked] = {}
        self._me = replica or secrets.token_hex(8)
        self.presence = Presence(self._me, SILENCE)
        self.about: Callable[[], dict[str, Any]] = dict
        """What the heartbeats say of this replica."""
        self._beaten = float("-inf")
        self._seen_seq = self._revision = 0
        self._seen: set[asyncio.Future[None]] = set()
        self._heard: list[Heard] = []
        self.on_grant: Callable[[str, Jti], None] = lambda tenant, jti: None
        """Told of each grant that was revoked, and in which tenant; it must not wait."""
        self._last_grant = 0
        self._kv: KeyValue | None = None
        self.tasks: list[asyncio.Task[None]] = []

    async def start(self, js: JetStreamContext, replicas: int) -> None:
        """Create or open the bucket and mirror it; returns when everything acknowledged before has been read."""
        try:
            self._kv = await js.key_value(BUCKET)
        except BucketNotFoundError:
            self._kv = await js.create_key_value(bucket=BUCKET, history=HISTORY, replicas=replicas)
        self.tasks = [asyncio.create_task(work) for work in (self._mirror(js), self._beat())]
        async with asyncio.timeout(10):
            await self._until(lambda: self.fresh)

    async def speak(self, about: Callable[[], dict[str, Any]]) -> None:
        """From now on the heartbeats say this of the replica; returns when one that does was heard. Refuses LEDGER_UNAVAILABLE.

        INVARIANT: whoever says that it is ready counts itself (test_the_first_line_tells_where_it_is).
        """
        self.about = about
        await self._seen_after(HEARTBEAT, self._beat_now(), "spoken of")

    async def stop(self) -> None:
        """Say goodbye and stop mirroring; what is asked from now on is answered until the silence is noticed."""
        with contextlib.suppress(Exception):
            if self._kv is not None and self.fresh:
                async with asyncio.timeout(1):
                    await self._kv.put(HEARTBEAT, msgspec.json.encode(Beat(self._me, 0, bye=True)))
        await ended(*self.tasks)

    def on_entry(self, heard: Heard) -> None:
        """Tell ``heard`` of what is in force now, and of every entry from now on."""
        self._heard.append(heard)
        for entry in self.entries():
            heard(entry)

    @property
    def revision(self) -> int:
        """Grows with every entry seen, not with heartbeats."""
        return self._revision

    @property
    def fresh(self) -> bool:
        """Whether everything acknowledged up to two seconds ago has been seen.

        INVARIANT: freshness is the age of the newest heartbeat of this replica's own that came back through its watch, by its
        own clock (test_a_replica_that_cannot_hear_refuses).
        """
        return self._clock.monotonic() - self._beaten < SILENCE

    @property
    def paused(self) -> Entry | None:
        """The entry that stops everything."""
        return self._everything.paused

    def of(self, tenant: str) -> OfTenant:
        """What concerns one tenant."""
        return OfTenant(self, self.revoked_in(tenant), tenant)

    def revoked_in(self, tenant: str) -> Revoked:
        """The entries of one tenant, kept up to date."""
        return self._revoked.setdefault(tenant, Revoked())

    def silence(self, replica: str) -> float:
        """For how many seconds a replica has certainly said nothing."""
        return self.presence.silence(replica, self._clock.monotonic())

    def entries(self) -> list[Entry]:
        """What was last said of each thing in all tenants, in force or reinstated, oldest first."""
        tables = (self._everything, *self._revoked.values())
        return _in_order(entry for table in tables for entry in table.last.values())

    async def put(self, entry: Entry) -> None:
        """Write an entry. Durable, and seen by this replica, when it returns. Refuses LEDGER_UNAVAILABLE."""
        await self._seen_after(_key(entry), msgspec.json.encode(entry), "written")

    async def _seen_after(self, key: str, value: bytes, what: str) -> None:
        try:
            seq = await self._bucket.put(key, value)
            async with asyncio.timeout(SEEN_WITHIN):
                await self._until(lambda: self._seen_seq >= seq)
        except (NatsError, OSError, TimeoutError) as error:
            raise _unavailable(what, error) from None

    async def announce(self, tenant: str, jti: str) -> None:
        """Say to every replica that a grant was revoked, after its record is durable. Best effort: the record alone decides."""
        try:
            await self._bucket.put(GRANT, f"{tenant} {jti}".encode())
        except (NatsError, OSError, TimeoutError) as error:
            self._fault("revocations.announce", error)

    @property
    def _bucket(self) -> KeyValue:
        if self._kv is None:
            raise RuntimeError("not started")
        return self._kv

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Until something was heard that makes ``condition`` true."""
        while not condition():
            told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._seen.add(told)
            try:
                await told
            finally:
                self._seen.discard(told)

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                # What counts comes through the watch: for an answer that is lost, the next beat does not wait
                # (test_a_heartbeat_whose_answer_is_lost_silences_nobody).
                async with asyncio.timeout(BEAT_SECONDS):
                    await self._bucket.put(HEARTBEAT, self._beat_now())
            except Exception as error:
                self._fault("revocations.heartbeat", error)
            await asyncio.sleep(max(0.0, began + BEAT_SECONDS - loop.time()))

    def _beat_now(self) -> bytes:
        return msgspec.json.encode(Beat(self._me, self._clock.monotonic(), self.about()))

    async def _mirror(self, js: JetStreamContext) -> None:
        while True:
            try:
                await watch(js._nc, BUCKET, self._take, SILENCE)
            except Exception as error:
                self._fault("revocations.watch", error)
            await asyncio.sleep(0.2)

    def _take(self, key: str, value: bytes | None, seq: int) -> None:
        if key == HEARTBEAT and value is not None:
            beat = msgspec.json.decode(value, type=Beat)
            if beat.by == self._me:
                self._beaten = max(self._beaten, beat.at)
            self.presence.hear(beat, self._clock.monotonic())
        elif key == GRANT and value is not None and seq > self._last_grant:
            self._last_grant = seq
            tenant, _, said = value.decode(errors="replace").rpartition(" ")
            if (jti := parse_jti(said)) is not None:
                self.on_grant(tenant, jti)
        elif key not in (HEARTBEAT, GRANT) and seq > self._revision:
            self._apply(key, value)
            self._revision = seq
        self._seen_seq = max(self._seen_seq, seq)
        for told in self._seen:
            if not told.done():
                told.set_result(None)

    def _apply(self, key: str, value: bytes | None) -> None:
        if value is None:
            # Nobody deletes an entry but by hand: then it is as if it had never been made.
            for entry in self.entries():
                if _key(entry) == key:
                    self._table(entry).forget(entry.kind, entry.name)
            return
        try:
            entry = msgspec.json.decode(value, type=Entry)
            self._table(entry).apply(entry)
        except (msgspec.DecodeError, Refusal) as error:
            # Unreadable, and somebody meant to stop something by it: stop all of it.
            self._fault("revocations.entry", error)
            entry = Entry(kind="all", name="everything", who="broker", at="", why=f"the revocation {key} is unreadable")
            self._table(entry).apply(entry)
        for heard in self._heard:
            heard(entry)

    def _table(self, entry: Entry) -> Revoked:
        return self._everything if entry.kind == "all" else self.revoked_in(entry.tenant)


class OfTenant:
    """Revocations as one tenant has them (port ``RevocationList``): its own, and that everything is paused.

    INVARIANT: what is revoked in one tenant stops nothing in another, whatever it is called there
    (test_revoking_an_agent_of_one_tenant_does_not_touch_its_namesake).
    """

    def __init__(self, everywhere: KvRevocations, revoked: Revoked, tenant: str) -> None:
        self._all, self._revoked, self._tenant = everywhere, revoked, tenant

    @property
    def revision(self) -> int:
        """Grows with every entry seen, of any tenant."""
        return self._all.revision

    @property
    def fresh(self) -> bool:
        """Whether everything acknowledged up to two seconds ago has been seen."""
        return self._all.fresh

    @property
    def paused(self) -> Entry | None:
        """The entry that stops everything."""
        return self._all.paused

    def agent(self, name: str) -> Entry | None:
        """The entry that stops an agent or server."""
        return self._revoked.agent(name)

    def tenant(self, name: str) -> Entry | None:
        """The entry that stops a tenant."""
        return self._revoked.tenant(name)

    def check(self, actors: tuple[str, ...], user: str, resource: Resource | None = None) -> Entry | None:
        """The first entry that stops this call."""
        return self._revoked.check(actors, user, resource)

    def silence(self, replica: str) -> float:
        """For how many seconds a replica has certainly said nothing."""
        return self._all.silence(replica)

    def entries(self) -> list[Entry]:
        """What was last said of each thing of this tenant and of everything, oldest first."""
        return _in_order(entry for entry in self._all.entries() if entry.kind == "all" or entry.tenant == self._tenant)

    async def put(self, entry: Entry) -> None:
        """Write an entry. Durable, and seen by this replica, when it returns. Refuses LEDGER_UNAVAILABLE."""
        await self._all.put(entry)

    async def announce(self, jti: str) -> None:
        """Say to every replica that a grant of this tenant was revoked in the ledger. Best effort."""
        await self._all.announce(self._tenant, jti)


def _in_order(entries: Iterable[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: (entry.at, entry.tenant, entry.kind, entry.name))


def _key(entry: Entry) -> str:
    """A bucket's key: a user's name may hold what no key may, so names are in the value."""
    if entry.tenant != DEFAULT_TENANT:
        return f"{entry.kind}.{entry.tenant}.{hashlib.sha256(entry.name.encode()).hexdigest()[:32]}"
    return f"{entry.kind}.{hashlib.sha256(entry.name.encode()).hexdigest()[:32]}"


def _unavailable(what: str, error: BaseException) -> Refusal:
    return refusal(
        Code.LEDGER_UNAVAILABLE, f"revocations cannot be {what}", rule="revocations.write", ask="try again",
        cause=repr(error),
    )  # fmt: skip
