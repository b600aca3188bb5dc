"""Agents and servers as an attacker would write them: nats-py, valid credentials, and nothing of the SDK.

:class:`RawAgent` sends whatever bytes it is told to and answers whatever it likes; :class:`Arena` is a running broker with
such agents around it, and an ear on what it refuses.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import string
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from remit_broker.testing import Lab, seed_name
from remit_schemas import subjects
from remit_schemas.budget import Budget
from remit_schemas.envelope import (
    FINAL,
    Dispatch,
    Error,
    Frame,
    InputRequired,
    Result,
    Started,
    encode,
    parse_dispatch,
    parse_frame,
)
from remit_schemas.errors import ErrorBody
from remit_schemas.names import DEFAULT_TENANT, Kind, parse_resource

SECONDS = 4.0
LETTERS = string.ascii_letters + string.digits

READ_ONLY = {"readOnlyHint": True}
OBJECT: dict[str, Any] = {"type": "object"}


def connection_name() -> str:
    """A connection's random name: 24 letters and digits."""
    return "".join(secrets.choice(LETTERS) for _ in range(24))


def tool(name: str, **extra: Any) -> dict[str, Any]:
    """A tool that says it only reads and takes any arguments."""
    return {"name": name, "inputSchema": OBJECT, "annotations": READ_ONLY, **extra}


def skill(name: str, **extra: Any) -> dict[str, Any]:
    """A skill that takes any arguments."""
    return {"name": name, "inputSchema": OBJECT, **extra}


class Taken:
    """A dispatch that reached a raw callee, which may answer anything, anywhere it is let."""

    def __init__(self, callee: RawAgent, message: Msg) -> None:
        self.callee = callee
        self.message = message
        self.dispatch: Dispatch = parse_dispatch(message.data)

    @property
    def grant(self) -> str:
        """The grant minted for this hop."""
        return self.dispatch.grant

    async def say(self, *frames: Frame | bytes, headers: dict[str, str] | None = None) -> None:
        """Publish frames (or any bytes) where the broker expects them."""
        for frame in frames:
            data = frame if isinstance(frame, bytes) else encode(frame)
            await self.callee.nc.publish(self.message.reply, data, headers=headers)
        await self.callee.nc.flush()

    async def park(self, request: Any = "may I?", cost: Budget | None = None) -> None:
        """Ask for an input, as a callee that then waits for it at this connection."""
        await self.say(Started(connection=self.callee.connection), InputRequired(request=request, cost=cost))

    async def done(self, value: Any = "done", cost: Budget | None = None) -> None:
        """Answer as an honest callee would."""
        await self.say(Result(value=value, cost=cost))


Handler = Callable[[Taken], Awaitable[None]]


class RawAgent:
    """One connection with the credentials of one principal. ``errors`` are what the NATS server said to it."""

    def __init__(self, lab: Lab, name: str, kind: Kind, tenant: str = DEFAULT_TENANT) -> None:
        self.lab, self.name, self.kind, self.tenant = lab, name, kind, tenant
        self.connection = connection_name()
        self.errors: list[str] = []
        self.handlers: dict[str, Handler] = {}
        self.dispatched: list[Taken] = []
        self.heard: list[str] = []
        self._nc: Client | None = None
        self._grew = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    async def connect(self, **options: Any) -> RawAgent:
        """Connect; raises what nats-py raises where the server refuses."""
        self._nc = await nats.connect(
            self.lab.url,
            name=self.connection,
            nkeys_seed_str=self.lab.seeds[seed_name(self.name, self.tenant)],
            inbox_prefix=f"_INBOX_{self.name}.{self.connection}",
            error_cb=self._error,
            allow_reconnect=False,
            skip_subject_validation=True,
            **options,
        )
        return self

    async def close(self) -> None:
        """Disconnect."""
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(Exception):
            await self.nc.close()

    async def _error(self, problem: Exception) -> None:
        self.errors.append(str(problem))

    @property
    def nc(self) -> Client:
        """The client."""
        assert self._nc is not None, "not connected"
        return self._nc

    def inbox(self) -> str:
        """A new subject in the private inbox of this connection."""
        return f"_INBOX_{self.name}.{self.connection}.{connection_name()}"

    # Asking

    def subject(self, resource: str, txn: str) -> str:
        """Where to ask for ``resource`` (``remit/<service>/<op>`` for a service of the broker's own)."""
        kind, name, op = resource.split("/", 2)
        if kind != "remit":
            kind, name, op = parse_resource(resource)
        return subjects.request(self.name, txn, kind, name, op)

    async def call(
        self, resource: str, txn: str, grant: str | None, args: dict[str, Any] | None = None, **fields: Any
    ) -> list[Frame]:
        """One call: the frames up to the final one. ``fields``: ``want``, ``key``, ``deadline`` … of the request."""
        request = {"v": 1, "args": {} if args is None else args, **fields}
        if grant is not None:
            request["grant"] = grant
        return await self.ask(self.subject(resource, txn), json.dumps(request).encode())

    async def ask(
        self, subject: str, data: bytes, *, headers: dict[str, str] | None = None, seconds: float = SECONDS
    ) -> list[Frame]:
        """Any bytes on any subject: the frames up to the final one. Raises TimeoutError when nothing comes."""
        inbox = self.inbox()
        ear = await self.nc.subscribe(inbox, pending_msgs_limit=-1, pending_bytes_limit=-1)
        try:
            await self.nc.publish(subject, data, reply=inbox, headers=headers)
            frames: list[Frame] = []
            async with asyncio.timeout(seconds):
                while not (frames and isinstance(frames[-1], FINAL)):
                    frames.append(parse_frame((await ear.next_msg(seconds + 1)).data))
            return frames
        finally:
            await ear.unsubscribe()

    async def error(self, resource: str, txn: str, grant: str | None, args: Any = None, **fields: Any) -> ErrorBody:
        """The error that a call ends with."""
        return error_of(await self.call(resource, txn, grant, args, **fields))

    async def result(self, resource: str, txn: str, grant: str | None, args: Any = None, **fields: Any) -> Result:
        """The result that a call ends with."""
        final = (await self.call(resource, txn, grant, args, **fields))[-1]
        assert isinstance(final, Result), final
        return final

    async def wire(self, line: bytes, payload: bytes = b"") -> None:
        """Bytes straight into the connection: ``line`` is a protocol line of the NATS client protocol without its end."""
        await self.nc._send_command(line + b"\r\n" + (payload + b"\r\n" if line.startswith((b"PUB", b"HPUB")) else b""))
        await self.nc._flush_pending()
        await self.nc.flush()

    # Serving

    async def attach(self, *definitions: dict[str, Any]) -> list[Frame]:
        """Tell the broker what this principal serves."""
        what = "tools" if self.kind == "mcp" else "skills"
        return await self.call("remit/attach/put", subjects.NEW, None, {what: list(definitions)})

    async def serve(self, *definitions: dict[str, Any]) -> None:
        """Attach and take work: each dispatch goes to the handler of its operation, or waits to be taken by a test."""
        await self.nc.subscribe(f"svc.{self.kind}.{self.name}.>", self.name, cb=self._on_work)
        await self.nc.flush()
        final = (await self.attach(*definitions))[-1]
        assert isinstance(final, Result), final

    async def wait_for_input(self) -> None:
        """Take work that goes on as well: what the broker hands to this very connection, whatever the hop."""

        async def hear(message: Msg) -> None:
            if b'"cancel"' in message.data[:16]:
                self.heard.append(f"cancel {message.subject.rsplit('.', 1)[-1]}")
                async with self._grew:
                    self._grew.notify_all()
            else:
                await self._on_work(message)

        await self.nc.subscribe(f"_INBOX_{self.name}.{self.connection}.ctl.*.*", cb=hear)
        await self.nc.flush()

    async def told_to_stop(self, hop: str) -> None:
        """Wait until the broker has said that nobody waits for ``hop`` any more."""
        async with asyncio.timeout(SECONDS), self._grew:
            await self._grew.wait_for(lambda: f"cancel {hop}" in self.heard)

    async def overhear(self) -> None:
        """Keep in ``heard`` the subject of whatever reaches the private inbox of this connection, as of all work."""

        async def hear(message: Msg) -> None:
            self.heard.append(message.subject)

        await self.nc.subscribe(f"_INBOX_{self.name}.{self.connection}.>", cb=hear)
        await self.nc.flush()

    async def _on_work(self, message: Msg) -> None:
        self.heard.append(message.subject)
        taken = Taken(self, message)
        handler = self.handlers.get(parse_resource(taken.dispatch.resource).op)
        if handler is not None:
            task = asyncio.ensure_future(handler(taken))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        async with self._grew:
            self.dispatched.append(taken)
            self._grew.notify_all()

    async def took(self, txn: str, count: int = 1) -> Taken:
        """The ``count``-th dispatch of a txn, as soon as it is here."""
        async with asyncio.timeout(SECONDS), self._grew:
            await self._grew.wait_for(lambda: len(self.work(txn)) >= count)
        return self.work(txn)[count - 1]

    def work(self, txn: str) -> list[Taken]:
        """The dispatches of a txn so far."""
        return [taken for taken in self.dispatched if taken.dispatch.txn == txn]


def error_of(frames: list[Frame]) -> ErrorBody:
    """The error body of the final frame."""
    final = frames[-1]
    assert isinstance(final, Error), final
    return final.error


class Ear:
    """The refusal records as the broker writes them into their stream."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self._grew = asyncio.Condition()

    async def hear(self, message: Msg) -> None:
        """Keep one record."""
        async with self._grew:
            self.records.append(json.loads(message.data)["record"])
            self._grew.notify_all()

    async def until(self, **wanted: Any) -> dict[str, Any]:
        """The record that has these fields, as soon as it is written."""

        def fits(record: dict[str, Any]) -> bool:
            return all(record[name] == value for name, value in wanted.items())

        async with asyncio.timeout(SECONDS), self._grew:
            await self._grew.wait_for(lambda: any(map(fits, self.records)))
            return next(filter(fits, self.records))

    async def number(self, index: int) -> dict[str, Any]:
        """The record of this number, counted from 0, as soon as it is written."""
        async with asyncio.timeout(SECONDS), self._grew:
            await self._grew.wait_for(lambda: len(self.records) > index)
            return self.records[index]


class Arena:
    """A broker, raw agents around it, and an ear on its refusals."""

    def __init__(self, lab: Lab, refused: Ear, stack: AsyncExitStack) -> None:
        self.lab, self.refused, self._stack = lab, refused, stack
        self._count = 0

    async def agent(
        self, name: str = "", kind: Kind = "agent", tier: str = "standard", tenant: str = DEFAULT_TENANT
    ) -> RawAgent:
        """Register a principal (without a name: one that nobody else has) and connect as it."""
        self._count += 1
        name = name or f"{kind}{self._count}"
        if seed_name(name, tenant) not in self.lab.seeds:
            await self.lab.agent(name, tier, kind, tenant)
        raw = await RawAgent(self.lab, name, kind, tenant).connect()
        self._stack.push_async_callback(raw.close)
        return raw

    async def kinds(self, txn: str) -> list[str]:
        """The kinds of the records of a txn, in order."""
        return [record["kind"] for record in await self.lab.records(txn)]

    async def silent(self, raw: RawAgent) -> None:
        """Everything the broker has sent so far has arrived at ``raw``."""
        await self.lab.broker.nats.bus.flush()
        await raw.nc.flush()

    async def refused_before_opening(self, body: ErrorBody, code: str, rule: str, txn: str) -> dict[str, Any]:
        """Assert one refusal in full: the answer, its record, and that the ledger has not grown. The record."""
        assert (body.code, body.rule, body.effect) == (code, rule, "none"), body
        assert body.message and body.ask, "a refusal says what was refused and what to ask instead"
        record = await self.refused.until(hop=body.hop)
        assert (record["code"], record["rule"]) == (code, rule)
        assert await self.kinds(txn) == ["txn.opened"]
        return record


@asynccontextmanager
async def arena_on(lab: Lab) -> AsyncIterator[Arena]:
    """Agents around a running broker, disconnected at the end."""
    async with AsyncExitStack() as stack:
        ear = Ear()
        heard = await lab.broker.nats.core.subscribe("refusals.>", cb=ear.hear)
        stack.push_async_callback(heard.unsubscribe)
        await lab.broker.nats.core.flush()
        yield Arena(lab, ear, stack)
