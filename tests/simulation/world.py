"""Ports of a broker replica over a store and a bus that live in this process, with latencies and crashes from the seed.

What decides is the real code: pipeline, stages, fold, grants. What is simulated is the world around it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from remit_broker.adapters.identities import Issuers
from remit_broker.adapters.mint import HmacDigester, KeyMint
from remit_broker.core.accounts import Reservation
from remit_broker.core.arguments import NOTHING, Arguments
from remit_broker.core.caps import Whose
from remit_broker.core.fold import Fold, apply
from remit_broker.core.policy import PolicyRequest, Verdict
from remit_broker.core.registry import Annotations, Principal, Target
from remit_broker.hop.hop import Ask
from remit_broker.hop.parts import PartsRoom
from remit_broker.hop.pipeline import govern
from remit_broker.ledger_port import LostRace
from remit_broker.ports import Limits, Parties, Ports, Recipient
from remit_schemas.budget import Budget
from remit_schemas.control import Control
from remit_schemas.envelope import Dispatch, Error, Frame, Result, encode
from remit_schemas.errors import Code, Refusal, refusal
from remit_schemas.keys import KeySet, SigningKey
from remit_schemas.names import Resource
from remit_schemas.records import Decision, HopClosed, HopRefused, parse_record, plain

EPOCH = 1_800_000_000.0
KEY = SigningKey.from_seed(bytes(range(32)))
PERMIT = Verdict(allowed=True, decision=Decision(effect="allow", rules=("all",), revision="r" * 64))


class Crash(BaseException):
    """The replica dies here. No handler of the broker's may see it, as none would see a pulled plug."""


class Life:
    """One incarnation of a replica. After its death nothing it was about to do has any effect: it stands still for ever."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def pause(self) -> None:
        """The time a message takes, if there still is somebody to send it."""
        await self._world.pause()
        if self.ended.done():
            await asyncio.shield(self._world.judgement)


class World:
    """What all replicas share: the store, the callees, and a log of what happened in which order."""

    def __init__(self, rng: random.Random, names: Sequence[str], crash_rate: float) -> None:
        self.rng, self.crash_rate = rng, crash_rate
        self.store: dict[str, list[dict[str, Any]]] = {}
        self.grants: dict[str, str] = {}
        self.principals = {name: Principal(name=name, kind="agent", nkey=name) for name in names}
        self.work: Callable[[Dispatch], Awaitable[Frame]] | None = None
        self.log: list[tuple[str, str]] = []
        self.answers: dict[str, Frame] = {}
        self.answered = asyncio.Condition()
        self.refusals: list[HopRefused] = []
        self.lost_races = 0
        self.crashes = 0
        self.faults: list[str] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.judgement: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def pause(self) -> None:
        """The time a message takes."""
        await asyncio.sleep(self.rng.expovariate(1000))

    async def bury(self) -> None:
        """After the story: what stood still in dead replicas ends, without any effect."""
        self.judgement.set_exception(Crash("the end"))
        self.judgement.exception()
        await asyncio.wait(self.tasks)


class Replica:
    """One broker process. A crash abandons everything it was doing; :meth:`ask` after it reaches a new incarnation."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.life = Life(world)
        self.ports = self._ports(self.life)

    def _ports(self, life: Life) -> Ports:
        clock = SimClock()
        return Ports(
            clock=clock,
            ids=SimIds(self.world.rng),
            ledger=SimLedger(self.world, life),
            refusals=self,
            bus=SimBus(self.world, life, self.name),
            registry=SimRegistry(self.world),
            revocations=NothingRevoked(),
            policy=Permissive(),
            detectors=Blind(),
            schemas=Lenient(),
            mint=KeyMint("sim", KEY, KeySet([KEY.public]), clock),
            digester=HmacDigester(b"k" * 32),
            rates=Unlimited(),
            target_rates=Unlimited(),
            accounts=Uncapped(),
            room=PartsRoom(1 << 20),
            results=NothingKept(),
            arguments=KeptHere(),
            observer=Witness(self.world),
            failpoints=self,
            limits=Limits(hop_ttl=5.0),
            identities=Issuers((), clock),
        )

    def hit(self, name: str) -> None:
        """A failpoint: the seed decides whether the replica dies at it."""
        if self.world.rng.random() < self.world.crash_rate:
            self.world.crashes += 1
            self.world.log.append(("crash", f"{self.name} at {name}"))
            self.life.ended.set_result(None)
            self.life = Life(self.world)
            self.ports = self._ports(self.life)
            raise Crash(name)

    async def write(self, record: HopRefused) -> None:
        """The refusal stream."""
        self.world.refusals.append(record)

    async def ask(self, caller: str, txn: str, resource: str, body: dict[str, Any], reply: str) -> None:
        """Govern one request; a crash takes every other hop of this replica with it."""
        loop = asyncio.get_running_loop()
        _, name, op = resource.split("/")
        data = msgspec.json.encode({"v": 1, **body})
        ask = Ask(
            tenant="default", caller=caller, txn=txn, resource=Resource("agent", name, op), reply=reply, data=data,
            at=EPOCH + loop.time(), mono=loop.time(),
        )  # fmt: skip
        await self.survive(govern(ask, self.ports))

    async def survive(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do ``work`` on this replica, or as much of it as it lives to do."""
        task = asyncio.ensure_future(_guarded(work))
        self.world.tasks.append(task)
        await asyncio.wait([task, self.life.ended], return_when=asyncio.FIRST_COMPLETED)


async def _guarded(work: Coroutine[Any, Any, Any]) -> None:
    with contextlib.suppress(Crash, Refusal):
        await work


class SimClock:
    def now(self) -> float:
        return EPOCH + asyncio.get_running_loop().time()

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


class SimIds:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def txn(self) -> str:
        return f"{self._rng.getrandbits(128):032x}"

    def hop(self) -> str:
        return f"{self._rng.getrandbits(64):016x}"

    def blind(self) -> str:
        return f"{self._rng.getrandbits(128):032x}"


class SimLedger:
    """A replica's view of the store: a cached fold that may be behind, and a compare-and-set that says so."""

    def __init__(self, world: World, life: Life) -> None:
        self._world, self._life = world, life
        self._folds: dict[str, Fold] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def create(self, record: Any, grant: str) -> Fold:
        await self._life.pause()
        self._world.store[record.txn] = [plain(record)]
        self._world.grants[record.hash] = grant
        return self._folds.setdefault(record.txn, apply(None, plain(record)))

    async def fold(self, tenant: str, txn: str) -> Fold:
        if txn not in self._folds:
            await self._catch_up(txn)
        return self._folds[txn]

    async def newest(self, tenant: str, txn: str) -> Fold:
        return await self._catch_up(txn)

    async def closing(self, tenant: str, txn: str, hop: str) -> HopClosed:
        for raw in self._world.store[txn]:
            if raw["kind"] == "hop.closed" and raw["hop"] == hop:
                record = parse_record(raw)
                assert isinstance(record, HopClosed)
                return record
        raise refusal(Code.LEDGER_UNAVAILABLE, "not there", rule="ledger.no-closing", ask="none")

    async def _catch_up(self, txn: str) -> Fold:
        await self._life.pause()
        if txn not in self._world.store:
            raise refusal(Code.GRANT_INVALID, "unknown", rule="ledger.unknown-txn", ask="none")
        fold = self._folds.get(txn)
        for raw in self._world.store[txn][0 if fold is None else fold.seq + 1 :]:
            fold = apply(fold, raw)
        assert fold is not None
        self._folds[txn] = fold
        return fold

    async def grant(self, tenant: str, txn: str, rec: str) -> str:
        await self._life.pause()
        return self._world.grants[rec]

    @asynccontextmanager
    async def turn(self, tenant: str, txn: str) -> AsyncIterator[SimTurn]:
        async with self._locks.setdefault(txn, asyncio.Lock()):
            yield SimTurn(self, txn, await self.fold(tenant, txn))

    def keep(self, rec: str, grant: str) -> None:
        self._world.grants[rec] = grant

    async def append(self, txn: str, fold: Fold, raw: dict[str, Any]) -> Fold | LostRace:
        after = apply(fold, raw)
        await self._life.pause()
        stored = self._world.store[txn]
        if len(stored) != fold.seq + 1:
            self._world.lost_races += 1
            return LostRace(await self._catch_up(txn))
        stored.append(raw)
        self._world.log.append((raw["kind"], raw["hop"]))
        await self._life.pause()  # the acknowledgement
        self._folds[txn] = after
        return after


class SimTurn:
    def __init__(self, ledger: SimLedger, txn: str, fold: Fold) -> None:
        self._ledger, self._txn, self.fold = ledger, txn, fold
        self.unclear = False

    async def append(self, record: Any, grant: str | None) -> Fold | LostRace:
        self.unclear = True
        done = await self._ledger.append(self._txn, self.fold, plain(record))
        self.unclear = False
        if grant is not None and not isinstance(done, LostRace):
            self._ledger.keep(record.hash, grant)
        self.fold = done.fold if isinstance(done, LostRace) else done
        return done


class SimChannel:
    def __init__(self) -> None:
        self.frames: asyncio.Queue[bytes] = asyncio.Queue()
        self.worker = ""

    async def next(self, seconds: float) -> bytes | None:
        if seconds <= 0:
            raise TimeoutError
        async with asyncio.timeout(seconds):
            return await self.frames.get()


class SimBus:
    def __init__(self, world: World, life: Life, replica: str) -> None:
        self._world, self._life, self.replica = world, life, replica
        self._channels: dict[str, SimChannel] = {}

    async def answer(self, reply: str, frame: Frame) -> None:
        await self._life.pause()
        if isinstance(frame, Result | Error):
            if isinstance(frame, Result):
                self._world.log.append(("released", reply))
            async with self._world.answered:
                self._world.answers[reply] = frame
                self._world.answered.notify_all()

    async def release(self, to: Recipient, result: Result) -> None:
        await self.answer(to.reply, result)

    async def tell(self, callee: str, connection: str, at: tuple[str, str], said: Control) -> None:
        pass

    @asynccontextmanager
    async def channel(self, parties: Parties, txn: str, hop: str) -> AsyncIterator[SimChannel]:
        self._channels[hop] = channel = SimChannel()
        try:
            yield channel
        finally:
            self._channels.pop(hop, None)

    async def cancel(self, callee: str, connection: str, txn: str, hop: str) -> None:
        pass

    async def resume(self, callee: str, connection: str, dispatch: Dispatch) -> None:
        raise NotImplementedError("nobody here asks for an input")

    async def ended(self, tenant: str, txn: str, hop: str) -> None:
        pass

    async def until_ended(self, at: tuple[str, str], seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def dispatch(self, resource: Resource, callee: str, dispatch: Dispatch) -> None:
        await self._life.pause()
        self._world.log.append(("dispatched", dispatch.hop))
        channel = self._channels[dispatch.hop]

        async def work() -> None:
            await self._world.pause()
            assert self._world.work is not None
            frame = await self._world.work(dispatch)
            await self._world.pause()
            channel.frames.put_nowait(encode(frame))

        self._world.tasks.append(asyncio.ensure_future(work()))


class SimRegistry:
    revision = 1

    def __init__(self, world: World) -> None:
        self._world = world

    def principal(self, name: str) -> Principal | None:
        return self._world.principals.get(name)

    def target(self, resource: Resource) -> Target | None:
        if resource.name not in self._world.principals:
            return None
        return Target(
            kind="agent", callee=resource.name, op=resource.op, tier="standard", definition="d", input_schema={},
            output_schema=None, annotations=Annotations(), ceiling=None,
        )  # fmt: skip

    def nearest(self, resource: Resource) -> Sequence[str]:
        return ()


class NothingRevoked:
    revision = 0
    fresh = True
    paused = None

    def tenant(self, name: str) -> None:
        return None

    def check(self, actors: tuple[str, ...], user: str, resource: Resource | None = None) -> None:
        return None

    def silence(self, replica: str) -> float:
        return 0.0


class Permissive:
    revision = "r" * 64
    labels = False

    def arguments(self, *_: Any) -> Arguments:
        return NOTHING

    def decide(self, request: PolicyRequest) -> Verdict:
        return PERMIT


class Blind:
    def scan(self, value: Any) -> tuple[()]:
        return ()

    def redact(self, value: Any, classes: Sequence[str]) -> tuple[Any, tuple[str, ...]]:
        return value, ()


class Lenient:
    def check(self, schema: Any) -> None:
        pass

    def arguments(self, definition: str, schema: Any, value: Any) -> None:
        pass

    def result(self, definition: str, schema: Any, value: Any) -> None:
        pass


class Unlimited:
    def admit(self, who: str, weight: int = 1) -> float:
        return 0.0

    def charge(self, who: str, weight: int) -> None:
        """Nothing is counted."""


class NothingKept:
    async def put(self, at: tuple[str, str, str], data: bytes) -> bool:
        return False

    async def get(self, at: tuple[str, str, str]) -> None:
        return None


class KeptHere:
    """Arguments that wait for a person, for as long as the process lives."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str, str], bytes] = {}

    async def put(self, at: tuple[str, str, str], data: bytes) -> bool:
        self._kept[at] = data
        return True

    async def get(self, at: tuple[str, str, str]) -> bytes | None:
        return self._kept.get(at)

    async def forget(self, at: tuple[str, str, str]) -> None:
        self._kept.pop(at, None)


class Uncapped:
    async def reserve(self, whose: Whose, amount: Budget) -> Reservation:
        return Reservation()

    def settle(self, reservation: Reservation, spent: Budget) -> None:
        pass


class Witness:
    """Hears of faults only: a broker whose own code fails has broken no promise yet, and is wrong all the same."""

    def __init__(self, world: World) -> None:
        self._world = world

    def fault(self, where: str, error: BaseException) -> None:
        self._world.faults.append(f"{where}: {error!r}")

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None
