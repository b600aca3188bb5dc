"""Agents on the real SDK, callees that misbehave with a raw client, and what they do, told by the arguments of each call.

A *plan* travels in the arguments: ``{"sleep": s, "calls": [call, …], "gather": bool, "cost": tokens, "end": how}``, and a call is
``{"to": resource, "plan": plan, "budget": [usd_micros, tokens, calls], "ttl": s, …}``. So a story is one value, drawn from the seed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from remit import agent as remit_agent
from remit.agent import Agent
from remit.caller import Call, Caller
from remit.credentials import Credentials
from remit.errors import InputNeeded, Refused, ToolFailed
from remit.schema import skill_of
from remit_schemas import subjects
from remit_schemas.budget import Budget
from remit_schemas.canonical import MAX_INTEGER
from remit_schemas.envelope import (
    Dispatch,
    Error,
    Frame,
    InputRequired,
    Progress,
    Request,
    Result,
    Started,
    Want,
    encode,
)
from remit_schemas.errors import Code, ErrorBody
from remit_schemas.subjects import inbox_prefix, reply
from tests.simulation.borders import named
from tests.simulation.loop import PROCESS, Process
from tests.simulation.replicas import ISSUER, KEYS, URL, seed_of
from tests.simulation.seeded import wall

Plan = dict[str, Any]
Told = Callable[..., None]


STALE: Plan = {"to": "agent/odd/do", "plan": {}, "budget": [1, 1, 1], "ttl": 1.0}
"""A call that nobody may make."""


def credentials(name: str, tenant: str = "default") -> Credentials:
    return Credentials(name, URL, ISSUER, KEYS, seed_of(named(name, tenant)), Path(tenant) / name)


@contextlib.contextmanager
def known() -> Any:
    """While a run lasts, the credentials of every agent are known without a file."""
    changes: dict[str, Any] = {
        "find_credentials": lambda name, where=None: Path(where or "default") / name,
        "read_credentials": lambda path, name: credentials(name, path.parent.name),
    }
    before = {name: getattr(remit_agent, name) for name in changes}
    for name, value in changes.items():
        setattr(remit_agent, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(remit_agent, name, value)


class PersonProcess(Process):
    """A process of an agent or a callee; ``told`` hears what its skills do."""

    def __init__(self, name: str, told: Told) -> None:
        super().__init__(name)
        self.told = told


async def do(hop: Any, plan: dict[str, Any]) -> Any:
    """Do what the plan says."""
    process = PROCESS.get()
    assert isinstance(process, PersonProcess)
    process.told("began", hop.id, hop.grant.jti.n, process.name)
    try:
        value = await follow(hop, plan)
    except BaseException as error:
        process.told("ended", hop.id, type(error).__name__)
        raise
    process.told("ended", hop.id, "value")
    return value


SKILLS = {name: skill_of(do, name=name) for name in ("do", "careful")}


async def follow(hop: Any, plan: Plan) -> Any:
    """The body of the skill."""
    for number in range(plan.get("progress", 0)):
        await hop.progress(f"step {number}")
    if plan.get("sleep"):
        await asyncio.sleep(plan["sleep"])
    if plan.get("park") and hop.input is None:
        process_told("parks", hop.id)
        await hop.park({"more": True})
    answers = await all_calls(hop, plan.get("calls", ()), together=plan.get("gather", False))
    if plan.get("ask"):
        process_told("asks", hop.id)
        old, limit = hop.grant.token, hop.grant.claims.budget
        asking = asyncio.ensure_future(hop.ask({"may I": True}, wait=plan["ask"]))
        try:
            if plan.get("stale"):
                # While it is parked, and with the grant that it had before.
                await asyncio.sleep(0.05)
                await all_calls(Caller(hop._link, old, hop.txn, limit, hop.until), [STALE])
            await asking
        finally:
            asking.cancel()
        if plan.get("stale"):
            await all_calls(Caller(hop._link, old, hop.txn, limit, hop.until), [STALE])
    if plan.get("cost") is not None:
        hop.cost(tokens=plan["cost"], usd=plan.get("usd", 0))
    match plan.get("end", "value"):
        case "raise":
            raise RuntimeError("as planned")
        case "hang":
            await asyncio.get_running_loop().create_future()
        case "refuse":
            raise Refused(ErrorBody(code=Code.UNKNOWN_TARGET, message="not mine", rule="plan", ask="", effect="none"))
    return {"answers": answers}


async def all_calls(caller: Caller, calls: Any, *, together: bool = False) -> list[str]:
    """Make the calls of a plan; what came of each in a word. ``together``: all fail where one does."""
    if together:
        try:
            return ["value" for _ in await caller.gather(*(call_of(caller, call) for call in calls))]
        except (Refused, ToolFailed, InputNeeded) as no:
            return [word_of(no)]
    return list(await asyncio.gather(*(one_call(caller, call) for call in calls)))


def call_of(caller: Caller, call: Plan) -> Call:
    return caller.call(
        call["to"], args={"plan": call["plan"]}, budget=_budget(call), ttl=call.get("ttl"), key=call.get("key"),
        retry=call.get("retry", 0), window=call.get("window"), keep=call.get("keep", False),
        labels=call.get("labels"), approval=call.get("approval"), wait_for_approval="2s" if call.get("waits") else False,
    )  # fmt: skip


def _budget(call: Plan) -> Budget | None:
    return None if call.get("budget") is None else Budget(*call["budget"])


def process_told(what: str, *about: Any) -> None:
    """Say what a skill does."""
    process = PROCESS.get()
    assert isinstance(process, PersonProcess)
    process.told(what, *about)


async def answered(caller: Caller, call: Plan) -> None:
    """A call to its end; who is asked for an input gives it after a while, or gives the call up."""
    if call.get("detach"):
        detached = await caller.detach(
            call["to"], args={"plan": call["plan"]}, budget=_budget(call), ttl=call.get("ttl") or 4.0
        )
        if call["detach"] == "wait":
            await detached.result()
        return
    work: Any = call_of(caller, call)
    again = call.get("again", 0)
    while True:
        try:
            await work
            return
        except Refused as no:
            if no.code is not Code.APPROVAL_REQUIRED or not again:
                raise
            again -= 1
            await asyncio.sleep(call.get("pause", 0.2))
            named_ = no.approval if call.get("names") else None
            if named_ and call.get("twist") and again % 2:
                other = {**call, "plan": {**call["plan"], "other": again}, "approval": named_}
                with contextlib.suppress(Refused, ToolFailed, InputNeeded):
                    await call_of(caller, other)
            work = call_of(caller, {**call, "approval": named_})
        except InputNeeded as need:
            await asyncio.sleep(call.get("think", 0.1))
            if call.get("reply", "answer") == "cancel":
                await need.cancel()
                return
            if call.get("reply") == "leave":
                return
            work = need.answer("yes", ttl=call.get("ttl"), budget=_budget(call))


async def one_call(caller: Caller, call: Plan) -> str:
    """One call, begun after its ``wait`` and given up after its ``patience``."""
    process = PROCESS.get()
    assert isinstance(process, PersonProcess)
    if call.get("wait"):
        await asyncio.sleep(call["wait"])
    try:
        async with asyncio.timeout(call.get("patience")):
            # Several at once, each as if it were the only one.
            await asyncio.gather(*(answered(caller, call) for _ in range(call.get("eager", 1))))
    except (Refused, ToolFailed) as no:
        word = word_of(no)
    except TimeoutError:
        word = "given up"
    else:
        word = "value"
    process.told("answered", call["to"], word)
    return word


async def crossed(agent: Agent, call: Plan) -> str:
    """A call with a grant and ids of another tenant's, past all that the SDK would know better; what came of it in a word."""
    link = agent._client
    if link is None:
        return "not connected"
    kind, name, op = call["to"].split("/")
    resume = call.get("resume")
    request = Request(
        grant=call["grant"], args=call.get("args") or {"plan": call["plan"]}, want=Want(budget=Budget(1, 1, 1)),
        deadline=int((wall() + 2.0) * 1000), approval=call.get("approval"), resume=resume,
        input={"word": "yes"} if resume else None,
    )  # fmt: skip
    try:
        frames = await link.ask(subjects.request(agent.name, call["txn"], kind, name, op), request)
        while True:
            frame = await frames.next()
            if isinstance(frame, Result | InputRequired):
                return "value"
            if isinstance(frame, Error):
                return frame.error.code.value
    except Refused as no:
        return no.code.value


def word_of(error: Refused | ToolFailed | InputNeeded) -> str:
    return (
        error.code.value
        if isinstance(error, Refused)
        else "failed"
        if isinstance(error, ToolFailed)
        else "input needed"
    )


class Person:
    """An agent on the SDK. ``serves`` says whether it offers its skill; whoever does not is a caller only."""

    def __init__(self, name: str, told: Told, *, serves: bool = True, tenant: str = "default") -> None:
        self.name, self.told, self.serves, self.tenant = name, told, serves, tenant
        self.process = PersonProcess(named(name, tenant), told)
        self.agent: Agent | None = None

    def start(self) -> asyncio.Task[None]:
        """Run it, in a new process."""
        skew = self.process.skew
        self.process = process = PersonProcess(named(self.name, self.tenant), self.told)
        process.skew = skew
        self.agent = agent = Agent(self.name, credentials=self.tenant)
        if self.serves:
            agent.skills.update(SKILLS)
        process.kept.append(agent)

        async def begin() -> None:
            while True:
                try:
                    await agent.start(20.0)
                    return
                except Refused as no:
                    self.told("not started", self.name, no.code.value)
                    await asyncio.sleep(0.5)

        return process.run(begin())


class Raw:
    """A callee with a raw client, honest or not: answers twice, late, with absurd costs, with rubbish, or never."""

    def __init__(self, name: str, kind: str, told: Told, tenant: str = "default") -> None:
        self.name, self.kind, self.told, self.tenant = name, kind, told, tenant
        self.process = PersonProcess(named(name, tenant), told)
        self._connections = 0

    def start(self) -> asyncio.Task[None]:
        """Run it, in a new process."""
        skew = self.process.skew
        self.process = process = PersonProcess(named(self.name, self.tenant), self.told)
        process.skew = skew
        self._connections += 1
        return process.run(self._begin(f"{self.name}{self._connections:020d}"))

    async def _begin(self, connection: str) -> None:
        prefix = inbox_prefix(self.name, connection)
        options: dict[str, Any] = {
            "name": connection, "nkeys_seed_str": seed_of(named(self.name, self.tenant)), "inbox_prefix": prefix,
            "max_reconnect_attempts": -1,
            "reconnect_time_wait": 0.1, "connect_timeout": 2, "error_cb": _quiet,
        }  # fmt: skip
        nc: Client | None = None
        while nc is None:
            try:
                nc = await nats.connect(URL, **options)
            except Exception:
                await asyncio.sleep(0.3)
        client = nc
        self.process.kept.append(nc)
        await nc.subscribe(f"{prefix}.>", cb=_ignore)

        async def heard(message: Msg) -> None:
            dispatch = msgspec.json.decode(message.data, type=Dispatch)
            asyncio.get_running_loop().create_task(self._work(client, connection, dispatch))

        await nc.subscribe(f"svc.{self.kind}.{self.name}.>", queue=self.name, cb=heard)

    async def _work(self, nc: Client, connection: str, dispatch: Dispatch) -> None:
        plan: Plan = dispatch.args.get("plan") or {}
        self.told("began", dispatch.hop, 0, self.name)
        where = reply(self.name, dispatch.replica, dispatch.txn, dispatch.hop)

        async def say(frame: Frame | bytes) -> None:
            with contextlib.suppress(nats.errors.Error):
                await nc.publish(where, frame if isinstance(frame, bytes) else encode(frame))

        cost = None if plan.get("cost") is None else Budget(plan.get("usd", 0), plan["cost"], plan.get("sub", 0))
        done = Result(value={"content": [], "plan": "done"}, cost=cost)
        if plan.get("end") != "silent":
            await say(Started(connection=connection))
        for number in range(plan.get("progress", 0)):
            await say(Progress(message=str(number)))
        await asyncio.sleep(plan.get("sleep", 0.0))
        match plan.get("end", "value"):
            case "twice":
                await say(done)
                await say(done)
            case "late":
                await asyncio.sleep(
                    max(0.0, dispatch.deadline / 1000 - 1_800_000_000 - asyncio.get_running_loop().time()) + 0.5
                )
                await say(done)
            case "absurd":
                await say(Result(value={}, cost=Budget(MAX_INTEGER, MAX_INTEGER, MAX_INTEGER)))
            case "rubbish":
                await say(b'{"frame":"result"')
            case "hang" | "silent":
                pass
            case "raise":
                await say(
                    Error(error=ErrorBody(code=Code.INTERNAL, message="no", rule="plan", ask="", effect="unknown"))
                )
            case "failed":
                await say(Result(value={"content": []}, cost=cost, failed=True))
            case _:
                await say(done)


async def _quiet(_: Exception) -> None:
    return None


async def _ignore(_: Msg) -> None:
    return None
