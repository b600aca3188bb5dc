"""The core of a broker, cheap enough for a hundred thousand runs: pipeline, ledger, bus, edge, refusals and accounts, on lean clients.

What watches key-value buckets (registry, agents' and users' revocations), the index and the SDK are left to the whole broker
(:mod:`tests.simulation.scene`). Here the registry never changes, callees are plain, and the scan is told by the books what is late.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from typing import Any

import msgspec

from remit_broker.adapters.identities import Issuers
from remit_broker.adapters.jetstream import JetStream
from remit_broker.adapters.jetstream_ledger import JetStreamLedger
from remit_broker.adapters.kv_accounts import KvAccounts
from remit_broker.adapters.limits import Unlimited
from remit_broker.adapters.mint import HmacDigester, KeyMint
from remit_broker.adapters.nats_bus import NatsBus
from remit_broker.adapters.pace import Pace
from remit_broker.adapters.refusal_stream import RefusalStream
from remit_broker.adapters.world import Failpoints, RandomIds, SystemClock
from remit_broker.config import Config
from remit_broker.core.registry import Annotations, Principal, Target
from remit_broker.edges.bus import BusEdge
from remit_broker.hop.parts import PartsRoom
from remit_broker.hop.scan import close_expired, close_orphans
from remit_broker.ports import Limits, Ports
from remit_schemas import subjects
from remit_schemas.budget import Budget
from remit_schemas.canonical import MAX_INTEGER
from remit_schemas.envelope import Dispatch, Error, Request, Result, Started, Want, encode
from remit_schemas.errors import Code, ErrorBody
from remit_schemas.names import Resource
from tests.simulation.disk import Disk
from tests.simulation.lean import LeanClient, LeanMsg
from tests.simulation.loop import Process
from tests.simulation.nats_server import NatsServer
from tests.simulation.people import Plan, Told
from tests.simulation.replicas import (
    ISSUER,
    KEY,
    KEYS,
    LABELS,
    Blind,
    Permissive,
    Replica,
    ReplicaProcess,
    Witness,
    app_caps,
)
from tests.simulation.seeded import wall
from tests.simulation.world import KeptHere, Lenient, NothingKept, NothingRevoked

KINDS = {"planner": "agent", "worker": "agent", "leaf": "agent", "odd": "agent", "tools": "mcp", "desk": "agent"}


class Registry:
    """Everybody there is, for ever."""

    revision = 1

    def __init__(self) -> None:
        self._principals = {name: Principal(name=name, kind=kind, nkey=name) for name, kind in KINDS.items()}  # type: ignore[arg-type]
        self._targets: dict[Resource, Target] = {}
        for name, kind in KINDS.items():
            for op in ("read",) if kind == "mcp" else ("do", "forbidden"):
                if name != "desk":
                    self._targets[Resource(kind, name, op)] = Target(  # type: ignore[arg-type]
                        kind=kind, callee=name, op=op, tier="standard", definition="d", input_schema={},  # type: ignore[arg-type]
                        output_schema=None, annotations=Annotations(), ceiling=None, labels=LABELS.of(f"{kind}/{name}/{op}"),
                    )  # fmt: skip

    def principal(self, name: str) -> Principal | None:
        return self._principals.get(name)

    def target(self, resource: Resource) -> Target | None:
        return self._targets.get(resource)

    def nearest(self, resource: Resource) -> tuple[()]:
        return ()


class Quiet(NothingRevoked):
    """Nothing is revoked but in the ledger."""

    async def announce(self, tenant: str, jti: str) -> None:
        pass


class CoreBroker:
    """The parts of one replica."""

    index = None

    def __init__(self, server: NatsServer, config: Config, fault: Callable[[str, BaseException], None]) -> None:
        self._server, self._config, self._fault = server, config, fault
        self.replica = secrets.token_hex(4)
        self.revocations = Quiet()

    async def start(
        self, late: Callable[[], tuple[list[tuple[str, str, str]], list[tuple[str, str]]]], grouped: bool
    ) -> None:
        """Connect and serve; ``late`` says what hops and txns are overdue."""
        clock, config, replica = SystemClock(), self._config, self.replica
        core = await LeanClient(self._server, ("CORE", "broker"), f"_INBOX_core.{replica}").connect()
        bus = await LeanClient(self._server, ("BUS", "broker"), f"_INBOX_bus.{replica}").connect()
        self.ledger = await JetStreamLedger.start(core, grouped=grouped)  # type: ignore[arg-type]
        self.refusals = await RefusalStream.start(core)  # type: ignore[arg-type]
        self.accounts = KvAccounts(JetStream(core), app_caps(config), clock, replica)  # type: ignore[arg-type]
        await self.accounts.start(1, self._fault)
        pace = Pace()
        listening = NatsBus(bus, replica, core, pace.soon)  # type: ignore[arg-type]
        await listening.start()
        self.ports = Ports(
            clock=clock, ids=RandomIds(), ledger=self.ledger, refusals=self.refusals, bus=listening, registry=Registry(),
            revocations=self.revocations, policy=Permissive(), detectors=Blind(), schemas=Lenient(),
            mint=KeyMint(ISSUER, KEY, KEYS, clock), digester=HmacDigester(b"k" * 32), rates=Unlimited(),
            target_rates=Unlimited(), accounts=self.accounts, results=NothingKept(), arguments=KeptHere(), room=PartsRoom(1 << 20),
            observer=Witness(self._fault), failpoints=Failpoints(""), limits=Limits(hop_ttl=config.limits.hop_ttl, labels=LABELS),
            identities=Issuers((), clock),
        )  # fmt: skip
        edge = BusEdge(bus, "default", self.ports, _attach, {}, pace.soon)  # type: ignore[arg-type]
        listening.on_input, listening.on_unwanted = edge.on_input, edge.on_unwanted
        await edge.start()
        self._scanning = asyncio.get_running_loop().create_task(self._scan(late))

    async def _scan(self, late: Callable[[], tuple[list[tuple[str, str, str]], list[tuple[str, str]]]]) -> None:
        while True:
            await asyncio.sleep(1.0)
            hops, txns = late()
            await close_orphans(hops, self.ports)
            await close_expired(txns, self.ports)


async def _attach(_: Any) -> None:
    pass


class CoreReplica(Replica):
    """A machine that runs the core."""

    def __init__(
        self, name: str, server: NatsServer, disk: Disk, config: Config, told: Any, late: Any, grouped: bool
    ) -> None:
        super().__init__(name, disk, config, told)
        self._server, self._late, self._grouped = server, late, grouped

    def start(self) -> None:
        self.starts += 1
        self.ready = False
        skew = self.process.skew
        self.process = process = ReplicaProcess(self.name, self.disk)
        process.skew = skew

        async def begin() -> None:
            while True:
                if self._server.up:
                    broker = CoreBroker(
                        self._server, self._config, lambda where, error: self._told(self.name, where, error)
                    )
                    self.broker = broker  # type: ignore[assignment]
                    process.kept.append(broker)
                    try:
                        await broker.start(self._late, self._grouped)
                    except Exception as error:
                        self._told(self.name, "start", error)
                    else:
                        self.ready = True
                        return
                await asyncio.sleep(0.5)

        self._starting = process.run(begin())


class PlainProcess(Process):
    """A process of an agent or a tool."""


class Plain:
    """A callee that follows its plan, and a caller, with nothing of the SDK."""

    def __init__(self, name: str, server: NatsServer, told: Told) -> None:
        self.name, self.server, self.told = name, server, told
        self.process = PlainProcess(name)
        self.agent = self
        self.nc: LeanClient | None = None
        self._starts = 0
        self._waiting: dict[str, asyncio.Queue[LeanMsg]] = {}

    def start(self) -> asyncio.Task[None]:
        """Run it, in a new process."""
        skew = self.process.skew
        self.process = PlainProcess(self.name)
        self.process.skew = skew
        self._starts += 1
        self._waiting = {}
        return self.process.run(self._begin(f"{self.name}{self._starts:020d}"))

    async def _begin(self, connection: str) -> None:
        while not self.server.up:
            await asyncio.sleep(0.1)
        self._connection = connection
        self._prefix = subjects.inbox_prefix(self.name, connection)
        nc = await LeanClient(self.server, ("BUS", self.name), self._prefix).connect()
        self.nc = nc
        self._tasks: dict[str, asyncio.Task[None]] = {}
        await nc.subscribe(f"{self._prefix}.>", cb=self._inbox)
        if self.name != "desk":
            await nc.subscribe(f"svc.{KINDS[self.name]}.{self.name}.*", queue=self.name, cb=self._heard)

    async def _inbox(self, message: LeanMsg) -> None:
        if ".ctl." in message.subject:
            hop = message.subject.rsplit(".", 1)[-1]
            if hop in self._tasks and b"cancel" in message.data:
                self._tasks[hop].cancel()
            return
        queue = self._waiting.get(message.subject.rsplit(".", 1)[-1])
        if queue is not None:
            queue.put_nowait(message)

    async def _heard(self, message: LeanMsg) -> None:
        dispatch = msgspec.json.decode(message.data, type=Dispatch)
        if wall() * 1000 >= dispatch.deadline or dispatch.hop in self._tasks:
            return
        self._tasks[dispatch.hop] = asyncio.get_running_loop().create_task(self._work(dispatch))

    async def _work(self, dispatch: Dispatch) -> None:
        plan: Plan = dispatch.args.get("plan") or {}
        assert self.nc is not None
        self.told("began", dispatch.hop, 1, self.name)
        where = subjects.reply(self.name, dispatch.replica, dispatch.txn, dispatch.hop)
        if plan.get("end") != "silent":
            await self.nc.publish(where, encode(Started(connection=self._connection)))
        try:
            frame: Any = await self._follow(plan, dispatch)
        except asyncio.CancelledError:
            frame = Error(error=ErrorBody(code=Code.CANCELLED, message="cancelled", rule="plain", effect="unknown"))
        self.told("ended", dispatch.hop, "")
        if frame is not None:
            for _ in range(2 if plan.get("end") == "twice" else 1):
                await self.nc.publish(where, frame if isinstance(frame, bytes) else encode(frame))

    async def _follow(self, plan: Plan, dispatch: Dispatch) -> Any:
        await asyncio.sleep(plan.get("sleep", 0.0))
        calls = [self.call(dispatch.txn, dispatch.grant, call, dispatch.deadline) for call in plan.get("calls", ())]
        if calls:
            await asyncio.gather(*calls)
        cost = None if plan.get("cost") is None else Budget(int(plan.get("usd", 0)), plan["cost"], 0)
        match plan.get("end", "value"):
            case "raise" | "refuse":
                effect: Any = "none" if plan["end"] == "refuse" else "unknown"
                return Error(error=ErrorBody(code=Code.INTERNAL, message="no", rule="plain", effect=effect), cost=cost)
            case "hang" | "silent":
                return None
            case "late":
                await asyncio.sleep(max(0.0, dispatch.deadline / 1000 - wall()) + 0.5)
            case "absurd":
                return Result(value={}, cost=Budget(MAX_INTEGER, MAX_INTEGER, MAX_INTEGER))
            case "rubbish":
                return b'{"frame":"result"'
        return Result(value={}, cost=cost, failed=plan.get("end") == "failed")

    async def call(self, txn: str, grant: str, call: Plan, until: int = 0) -> str:
        """One call, to its end, and the retries that are planned; what came of it in a word."""
        await asyncio.sleep(call.get("wait", 0.0))
        word = "given up"
        for _ in range(1 + call.get("retry", 0)):
            word = await self._once(txn, grant, call, until)
            if word not in ("LEDGER_UNAVAILABLE", "TARGET_UNAVAILABLE"):
                break
            await asyncio.sleep(0.1)
        self.told("answered", call["to"], word)
        return word

    async def _once(self, txn: str, grant: str, call: Plan, until: int) -> str:
        assert self.nc is not None
        token = secrets.token_hex(6)
        deadline = int((wall() + (call.get("ttl") or 4.0)) * 1000)
        want = Want(budget=None if call.get("budget") is None else Budget(*call["budget"]))
        request = Request(
            grant=grant, args={"plan": call["plan"]}, want=want, key=call.get("key"),
            deadline=min(deadline, until) if until else deadline,
        )  # fmt: skip
        queue: asyncio.Queue[LeanMsg] = asyncio.Queue()
        self._waiting[token] = queue
        kind, name, op = call["to"].split("/")
        where = ""
        try:
            async with asyncio.timeout(call.get("patience") or (call.get("ttl") or 4.0) + 0.5):
                await self.nc.publish(
                    subjects.request(self.name, txn, kind, name, op), encode(request), f"{self._prefix}.{token}"
                )
                while True:
                    message = await queue.get()
                    if not message.data:
                        return "TARGET_UNAVAILABLE"
                    frame = msgspec.json.decode(message.data)
                    if frame["frame"] == "accepted":
                        where = subjects.control(self.name, frame["replica"], txn, frame["hop"])
                    elif frame["frame"] == "result":
                        return "value"
                    elif frame["frame"] == "error":
                        return str(frame["error"]["code"])
        except (TimeoutError, asyncio.CancelledError) as ended:
            if where:
                with contextlib.suppress(Exception):
                    await self.nc.publish(where, b'{"cancel":true}')
            if isinstance(ended, asyncio.CancelledError):
                raise
            return "given up"
        finally:
            self._waiting.pop(token, None)

    async def close(self, txn: str, grant: str) -> str:
        """Close the task."""
        call = {"to": "remit/txn/close", "plan": {}, "ttl": 4.0}
        return await self._once(txn, grant, call, 0)
