"""The broker's side of the wire for an attached server, by script: takes registrations, signs grants, dispatches, hears frames."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from pathlib import Path
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from remit_broker.adapters.keyfiles import new_user_seed
from remit_schemas import subjects
from remit_schemas.budget import Budget
from remit_schemas.callee import control_subject
from remit_schemas.claims import Actor, Claims
from remit_schemas.control import Control, encode_control
from remit_schemas.envelope import (
    FINAL,
    MAX_ENVELOPE,
    Dispatch,
    Error,
    Frame,
    Part,
    Progress,
    Result,
    Started,
    encode,
    parse_frame,
    parse_request,
)
from remit_schemas.errors import ErrorBody
from remit_schemas.grant import mint
from remit_schemas.keys import KeySet, SigningKey
from remit_schemas.names import Resource
from remit_schemas.scope import Detail

ISSUER = "https://remit.test"
REPLICA = "r1"


class Hop:
    """One dispatched call and what was heard of it."""

    def __init__(self, txn: str, hop: str) -> None:
        self.txn = txn
        self.hop = hop
        self.frames: list[Frame] = []
        self.grew = asyncio.Event()

    def hear(self, frame: Frame) -> None:
        self.frames.append(frame)
        self.grew.set()

    async def until(self, kind: type[Frame] | tuple[type[Frame], ...], seconds: float = 20) -> Frame:
        """The first frame of ``kind``."""
        async with asyncio.timeout(seconds):
            while True:
                for frame in self.frames:
                    if isinstance(frame, kind):
                        return frame
                self.grew.clear()
                await self.grew.wait()

    async def final(self, seconds: float = 20) -> Result | Error:
        frame = await self.until(FINAL, seconds)
        assert isinstance(frame, Result | Error)
        return frame

    async def error(self, seconds: float = 20) -> ErrorBody:
        frame = await self.final(seconds)
        assert isinstance(frame, Error), frame
        return frame.error

    async def value(self, seconds: float = 20) -> dict[str, Any]:
        frame = await self.final(seconds)
        assert isinstance(frame, Result), frame
        value: dict[str, Any] = frame.value
        return value

    @property
    def progress(self) -> list[Progress]:
        return [frame for frame in self.frames if isinstance(frame, Progress)]

    @property
    def finals(self) -> int:
        return sum(isinstance(frame, FINAL) for frame in self.frames)

    @property
    def connection(self) -> str:
        return next(frame.connection for frame in self.frames if isinstance(frame, Started))


class FakeBroker:
    """Connect with :meth:`start`."""

    def __init__(self, url: str, folder: Path, nc: Client | None = None) -> None:
        self.url = url
        self.folder = folder
        self.key = SigningKey.from_seed(bytes(range(32)))
        self.registrations: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
        self.answer: Frame = Result(value={"definitions": 0, "trace": True})
        self.strays: list[str] = []
        self._hops: dict[tuple[str, str], Hop] = {}
        self._nc = nc

    @property
    def nc(self) -> Client:
        assert self._nc is not None
        return self._nc

    async def start(self) -> None:
        if self._nc is None:
            self._nc = await nats.connect(self.url)
        await self.nc.subscribe("req.*.new.remit.attach.put", cb=self._on_put)
        await self.nc.subscribe("res.>", cb=self._on_frame)
        await self.nc.flush()

    async def stop(self) -> None:
        await self.nc.close()

    async def _on_put(self, message: Msg) -> None:
        at = subjects.parse_request(message.subject)
        assert at is not None and subjects.is_own_inbox(message.reply, at.caller)
        await self.nc.publish(message.reply, encode(self.answer))
        self.registrations.put_nowait((at.caller, parse_request(message.data).args))

    async def _on_frame(self, message: Msg) -> None:
        at = subjects.parse_reply(message.subject)
        assert at is not None, message.subject
        hop = self._hops.get((at.txn, at.hop))
        assert len(message.data) <= MAX_ENVELOPE
        if hop is None:
            self.strays.append(message.subject)
        elif message.data:
            hop.hear(frame := parse_frame(message.data))
            if isinstance(frame, Part):
                said = encode_control(Control(parts=frame.seq + 1))
                await self.nc.publish(control_subject(at.principal, hop.connection, at.txn, at.hop), said)

    async def registered(self, seconds: float = 30) -> dict[str, Any]:
        """The next registration."""
        async with asyncio.timeout(seconds):
            return (await self.registrations.get())[1]

    def credentials(self, name: str, **changes: Any) -> Path:
        """A credentials file of ``name``."""
        content = {
            "agent": name, "kind": "mcp", "nkey_seed": new_user_seed(), "bus": self.url, "issuer": ISSUER,
            "jwks": KeySet([self.key.public]).to_jwks(),
        }  # fmt: skip
        path = self.folder / f"{name}.json"
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(content | changes, file)
        return path

    def grant(self, txn: str, hop: str, resource: str, name: str, /, **changes: Any) -> str:
        """A grant of ann's, delegated by her planner to the researcher and by it to ``name``."""
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": ISSUER, "sub": "ann@example.org", "tenant": "default", "aud": name, "iat": now, "exp": now + 60,
            "jti": f"{txn}.{hop}.1", "txn": txn, "act": Actor("researcher", Actor("planner")), "depth": 2, "max_depth": 4,
            "par": "A" * 43, "rec": "0" * 64, "authorization_details": (Detail(resource=resource),),
            "budget": Budget(0, 0, 1), "labels": ("*",),
        }  # fmt: skip
        key = changes.pop("key", self.key)
        return mint(Claims(**(claims | changes)), key)

    def dispatch(self, name: str, tool: str, args: dict[str, Any], seconds: float = 30, **changes: Any) -> Dispatch:
        """A dispatch that is right unless ``changes`` says otherwise (``grant`` may be a dict of changed claims)."""
        txn, hop = secrets.token_hex(16), secrets.token_hex(8)
        resource = str(Resource("mcp", name, tool))
        claims = changes.pop("claims", {})
        fields: dict[str, Any] = {
            "txn": txn, "hop": hop, "replica": REPLICA, "resource": resource, "args": args,
            "grant": self.grant(txn, hop, resource, name, **claims) if "grant" not in changes else "",
            "deadline": int((time.time() + seconds) * 1000),
        }  # fmt: skip
        return Dispatch(**(fields | changes))

    async def send(self, name: str, dispatch: Dispatch, tool: str) -> Hop:
        """Publish a dispatch as it is."""
        hop = self._hops.setdefault((dispatch.txn, dispatch.hop), Hop(dispatch.txn, dispatch.hop))
        subject = subjects.service("mcp", name, tool)
        await self.nc.publish(subject, encode(dispatch))
        return hop

    async def call(
        self, name: str, tool: str, args: dict[str, Any] | None = None, seconds: float = 30, **changes: Any
    ) -> Hop:
        """Dispatch a governed call."""
        return await self.send(name, self.dispatch(name, tool, args or {}, seconds, **changes), tool)

    async def cancel(self, name: str, hop: Hop) -> None:
        """Tell the callee's connection that nobody waits any more."""
        await hop.until(Started)
        await self.nc.publish(control_subject(name, hop.connection, hop.txn, hop.hop), b'{"cancel":true}')


def definitions(args: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The registered tools by name."""
    return {tool["name"]: tool for tool in args["tools"]}
