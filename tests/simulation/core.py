"""The core of a broker, cheap enough for a hundred thousand runs: pipeline, ledger, bus, edge, refusals and accounts, on lean clients.

What watches key-value buckets (registry, agents' and users' revocations), the index and the SDK are left to the whole broker
(:mod:`tests.simulation.scene`). Here the registry never changes, callees are plain, and the scan is told by the books what is late.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from typing import Any, NamedTuple

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
from remit_schemas.control import goes_on
from remit_schemas.envelope import Dispatch, Error, InputRequired, Request, Result, Started, Want, encode
from remit_schemas.errors import Code, ErrorBody
from remit_schemas.names import Resource
from tests.simulation.borders import account_of, named
from tests.simulation.consent import DIGEST_KEY
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
    Replica,
    ReplicaProcess,
    Witness,
    app_caps,
)
from tests.simulation.rules import Rules
from tests.simulation.seeded import wall
from tests.simulation.town import APPROVAL_TTL, APPROVAL_USE
from tests.simulation.world import KeptHere, Lenient, NothingKept, NothingRevoked

KINDS = {"planner": "agent", "worker": "agent", "leaf": "agent", "odd": "agent", "tools": "mcp", "desk": "agent"}


class Registry:
    """Everybody there is, for ever."""

    revision = 1

    def __init__(self, tenant: str) -> None:
        self._principals = {
            name: Principal(name=name, kind=kind, nkey=named(name, tenant), tenant=tenant)  # type: ignore[arg-type]
            for name, kind in KINDS.items()
        }
        self._targets: dict[Resource, Target] = {}
        for name, kind in KINDS.items():
            for op in ("read", "write") if kind == "mcp" else ("do", "careful", "forbidden"):
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

    def __init__(
        self,
        server: NatsServer,
        config: Config,
        rules: Rules,
        kept: KeptHere,
        fault: Callable[[str, BaseException], None],
    ) -> None:
        self._server, self._config, self._rules, self._kept, self._fault = server, config, rules, kept, fault
        self.replica = secrets.token_hex(4)
        self.revocations = Quiet()
        self._tenants: dict[str, Ports] = {}

    @property
    def ports(self) -> Ports:
        """Those of the default tenant."""
        return self._tenants["default"]

    def ports_of(self, tenant: str) -> Ports:
        """Those of any tenant."""
        return self._tenants[tenant]

    async def start(
        self, late: Callable[[], tuple[list[tuple[str, str, str]], list[tuple[str, str]]]], grouped: bool
    ) -> None:
        """Connect and serve; ``late`` says what hops and txns are overdue."""
        clock, config, replica = SystemClock(), self._config, self.replica
        core = await LeanClient(self._server, ("CORE", "broker"), f"_INBOX_core.{replica}").connect()
        tenants = ("default", *config.tenants)
        buses = [
            await LeanClient(self._server, (account_of(tenant), "broker"), f"_INBOX_bus.{replica}").connect()
            for tenant in tenants
        ]
        self.ledger = await JetStreamLedger.start(core, grouped=grouped)  # type: ignore[arg-type]
        self.refusals = await RefusalStream.start(core)  # type: ignore[arg-type]
        self.accounts = KvAccounts(JetStream(core), app_caps(config), clock, replica)  # type: ignore[arg-type]
        await self.accounts.start(1, self._fault)
        pace = Pace()
        shared: dict[str, Any] = {
            "clock": clock, "ids": RandomIds(), "ledger": self.ledger, "refusals": self.refusals,
            "revocations": self.revocations, "policy": self._rules, "detectors": Blind(), "schemas": Lenient(),
            "mint": KeyMint(ISSUER, KEY, KEYS, clock), "digester": HmacDigester(DIGEST_KEY), "rates": Unlimited(),
            "target_rates": Unlimited(), "accounts": self.accounts, "results": NothingKept(), "arguments": self._kept,
            "room": PartsRoom(1 << 20), "observer": Witness(self._fault), "failpoints": Failpoints(""),
            "limits": Limits(
                hop_ttl=config.limits.hop_ttl, labels=LABELS, approval_ttl=APPROVAL_TTL, approval_use=APPROVAL_USE
            ),
            "identities": Issuers((), clock),
        }  # fmt: skip
        for tenant, bus in zip(tenants, buses, strict=True):
            listening = NatsBus(bus, replica, core, pace.soon, tenant=tenant)  # type: ignore[arg-type]
            await listening.start()
            self._tenants[tenant] = ports = Ports(**shared, bus=listening, registry=Registry(tenant))
            edge = BusEdge(bus, tenant, ports, _attach, {}, pace.soon)  # type: ignore[arg-type]
            listening.on_input, listening.on_unwanted = edge.on_input, edge.on_unwanted
            await edge.start()
        self._scanning = asyncio.get_running_loop().create_task(self._scan(late))

    async def _scan(self, late: Callable[[], tuple[list[tuple[str, str, str]], list[tuple[str, str]]]]) -> None:
        while True:
            await asyncio.sleep(1.0)
            hops, txns = late()
            for tenant, ports in self._tenants.items():
                await close_orphans([hop for hop in hops if hop[0] == tenant], ports)
                await close_expired([txn for txn in txns if txn[0] == tenant], ports)


async def _attach(_: Any) -> None:
    pass


class CoreReplica(Replica):
    """A machine that runs the core."""

    def __init__(
        self,
        name: str,
        server: NatsServer,
        disk: Disk,
        config: Config,
        told: Any,
        late: Any,
        grouped: bool,
        kept: KeptHere,
    ) -> None:
        super().__init__(name, disk, config, told)
        self._server, self._late, self._grouped, self._kept = server, late, grouped, kept

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
                        self._server, self._config, self.rules, self._kept,
                        lambda where, error: self._told(self.name, where, error),
                    )  # fmt: skip
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


class Answer(NamedTuple):
    """How a call ended: in a word, the hop that asks for an input, and the approval that it waits for."""

    word: str
    hop: str = ""
    approval: str | None = None


class PlainProcess(Process):
    """A process of an agent or a tool."""


class Plain:
    """A callee that follows its plan, and a caller, with nothing of the SDK."""

    def __init__(self, name: str, server: NatsServer, told: Told, tenant: str = "default") -> None:
        self.name, self.server, self.told, self.tenant = name, server, told, tenant
        self.process = PlainProcess(named(name, tenant))
        self.agent = self
        self.nc: LeanClient | None = None
        self._starts = 0
        self._waiting: dict[str, asyncio.Queue[LeanMsg]] = {}

    def start(self) -> asyncio.Task[None]:
        """Run it, in a new process."""
        skew = self.process.skew
        self.process = PlainProcess(named(self.name, self.tenant))
        self.process.skew = skew
        self._starts += 1
        self._waiting = {}
        return self.process.run(self._begin(f"{self.name}{self._starts:020d}"))

    async def _begin(self, connection: str) -> None:
        while not self.server.up:
            await asyncio.sleep(0.1)
        self._connection = connection
        self._prefix = subjects.inbox_prefix(self.name, connection)
        nc = await LeanClient(self.server, (account_of(self.tenant), self.name), self._prefix).connect()
        self.nc = nc
        self._tasks: dict[tuple[str, int], asyncio.Task[None]] = {}
        await nc.subscribe(f"{self._prefix}.>", cb=self._inbox)
        if self.name != "desk":
            await nc.subscribe(f"svc.{KINDS[self.name]}.{self.name}.*", queue=self.name, cb=self._heard)

    async def _inbox(self, message: LeanMsg) -> None:
        if ".ctl." in message.subject:
            if goes_on(message.data):
                await self._heard(message)
            elif b"cancel" in message.data:
                hop = message.subject.rsplit(".", 1)[-1]
                for (one, _), task in self._tasks.items():
                    if one == hop:
                        task.cancel()
            return
        queue = self._waiting.get(message.subject.rsplit(".", 1)[-1])
        if queue is not None:
            queue.put_nowait(message)

    async def _heard(self, message: LeanMsg) -> None:
        dispatch = msgspec.json.decode(message.data, type=Dispatch)
        key = (dispatch.hop, dispatch.resumed.n if dispatch.resumed is not None else 1)
        if wall() * 1000 >= dispatch.deadline or key in self._tasks:
            return
        self._tasks[key] = asyncio.get_running_loop().create_task(self._work(dispatch))

    async def _work(self, dispatch: Dispatch) -> None:
        plan: Plan = dispatch.args.get("plan") or {}
        assert self.nc is not None
        self.told("began", dispatch.hop, dispatch.resumed.n if dispatch.resumed is not None else 1, self.process.name)
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
        if (plan.get("park") or plan.get("ask")) and dispatch.resumed is None:
            return InputRequired(request={"more": True})
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
        """One call, to its end, and the retries that are planned; what came of it in a word. An eager caller makes it several times
        at once, each as if it were the only one.
        """
        await asyncio.sleep(call.get("wait", 0.0))
        turns = [self._insist(txn, grant, call, until) for _ in range(call.get("eager", 1))]
        words = await asyncio.gather(*turns)
        for word in words:
            self.told("answered", call["to"], word)
        return words[0]

    async def _insist(self, txn: str, grant: str, call: Plan, until: int) -> str:
        retries, again = call.get("retry", 0), call.get("again", 0)
        end = await self._once(txn, grant, call, until)
        while True:
            if end.word == "input_required":
                await asyncio.sleep(call.get("think", 0.1))
                if call.get("reply", "answer") != "answer":
                    return end.word
                # What is left out is to be what it was.
                call = {**call, "resume": end.hop, "key": None, "labels": None}
            elif end.word in ("LEDGER_UNAVAILABLE", "TARGET_UNAVAILABLE") and retries:
                retries -= 1
                await asyncio.sleep(0.1)
            elif end.word == "APPROVAL_REQUIRED" and again:
                again -= 1
                if call.get("waits") and end.approval:
                    wait = {"to": "remit/approval/wait", "args": {"id": end.approval}, "ttl": 2.0}
                    await self._once(txn, grant, wait, until)
                else:
                    await asyncio.sleep(call.get("pause", 0.2))
                if call.get("names"):
                    call = {**call, "approval": end.approval}
                    if call.get("twist") and again % 2:
                        end = await self._once(txn, grant, {**call, "plan": {**call["plan"], "other": again}}, until)
                        continue
            elif end.word == "value" and call.get("reuse") and call.get("approval"):
                # It was used: once more with the same.
                call = {**call, "reuse": False}
            else:
                return end.word
            end = await self._once(txn, grant, call, until)

    async def _once(self, txn: str, grant: str, call: Plan, until: int) -> Answer:
        assert self.nc is not None
        token = secrets.token_hex(6)
        deadline = int((wall() + (call.get("ttl") or 4.0)) * 1000)
        want = Want(budget=None if call.get("budget") is None else Budget(*call["budget"]), labels=call.get("labels"))
        resume = call.get("resume")
        request = Request(
            grant=grant, args=call.get("args") or {"plan": call["plan"]}, want=want, key=call.get("key"),
            deadline=min(deadline, until) if until else deadline, approval=call.get("approval"), resume=resume,
            input={"word": "yes"} if resume else None,
        )  # fmt: skip
        queue: asyncio.Queue[LeanMsg] = asyncio.Queue()
        self._waiting[token] = queue
        kind, name, op = call["to"].split("/")
        where, hop = "", ""
        try:
            async with asyncio.timeout(call.get("patience") or (call.get("ttl") or 4.0) + 0.5):
                await self.nc.publish(
                    subjects.request(self.name, txn, kind, name, op), encode(request), f"{self._prefix}.{token}"
                )
                while True:
                    message = await queue.get()
                    if not message.data:
                        return Answer("TARGET_UNAVAILABLE")
                    frame = msgspec.json.decode(message.data)
                    if frame["frame"] == "accepted":
                        hop = frame["hop"]
                        where = subjects.control(self.name, frame["replica"], txn, hop)
                    elif frame["frame"] == "result":
                        return Answer("value")
                    elif frame["frame"] == "input_required":
                        return Answer("input_required", hop)
                    elif frame["frame"] == "error":
                        error = frame["error"]
                        return Answer(str(error["code"]), approval=error.get("approval"))
        except (TimeoutError, asyncio.CancelledError) as ended:
            if where:
                with contextlib.suppress(Exception):
                    await self.nc.publish(where, b'{"cancel":true}')
            if isinstance(ended, asyncio.CancelledError):
                raise
            return Answer("given up")
        finally:
            self._waiting.pop(token, None)

    async def close(self, txn: str, grant: str) -> str:
        """Close the task."""
        call = {"to": "remit/txn/close", "plan": {}, "ttl": 4.0}
        return (await self._once(txn, grant, call, 0)).word

    async def crossed(self, call: Plan) -> str:
        """A call with what is another tenant's."""
        return (await self._once(call["txn"], call["grant"], call, 0)).word
