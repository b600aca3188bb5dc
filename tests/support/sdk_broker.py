"""The broker's side of the wire for agents on the SDK, by script; and a link in process for what needs no bus."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nats
import nkeys
from nats.aio.client import Client
from nats.aio.msg import Msg

from remit.errors import Refused
from remit_schemas import subjects
from remit_schemas.budget import Budget
from remit_schemas.claims import Actor, Claims
from remit_schemas.envelope import (
    FINAL,
    Accepted,
    Dispatch,
    Error,
    Frame,
    Request,
    Result,
    Started,
    encode,
    parse_frame,
    parse_request,
)
from remit_schemas.errors import Code, refusal
from remit_schemas.grant import Grant, mint, parse, verify
from remit_schemas.keys import KeySet, SigningKey
from remit_schemas.scope import Detail

ISSUER = "https://remit.test"
REPLICA = "r1"
KEY = SigningKey.from_seed(bytes(range(32)))
KEYS = KeySet([KEY.public])

Script = Callable[[Request], list[Frame]]


def new_user_seed() -> str:
    """The seed of a NATS user."""
    return nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER).decode()


def accepted(hop: str | None = None) -> Accepted:
    return Accepted(txn="1" * 32, hop=hop or secrets.token_hex(8), replica=REPLICA)


def no(code: Code, **fields: Any) -> Error:
    return Error(error=refusal(code, "no", rule=fields.pop("rule", "test"), **fields).body)


def claims(txn: str, hop: str, aud: str, **changes: Any) -> dict[str, Any]:
    """A grant of ann's, delegated by her planner to ``aud``."""
    now = int(time.time())
    return {
        "iss": ISSUER, "sub": "ann@example.org", "tenant": "default", "aud": aud, "iat": now, "exp": now + 60,
        "jti": f"{txn}.{hop}.1", "txn": txn, "act": Actor("planner"), "depth": 1, "max_depth": 4,
        "par": "A" * 43, "rec": "0" * 64, "authorization_details": (Detail(resource="**"),),
        "budget": Budget(1_000_000, 1000, 9), "labels": ("*",),
    } | changes  # fmt: skip


def grant(txn: str, hop: str, aud: str, key: SigningKey = KEY, **changes: Any) -> str:
    return mint(Claims(**claims(txn, hop, aud, **changes)), key)


def root(aud: str, **changes: Any) -> str:
    """A root grant for ``aud``."""
    raw = claims(secrets.token_hex(16), secrets.token_hex(8), aud, depth=0, **changes)
    return mint(Claims(**{key: value for key, value in raw.items() if key not in ("act", "par")}), KEY)


def dispatch(
    resource: str, args: dict[str, Any], *, seconds: float = 30, claimed: dict[str, Any] | None = None, **changes: Any
) -> Dispatch:
    """A dispatch that is right unless ``changes`` (or the ``claimed`` of its grant) say otherwise."""
    txn, hop = secrets.token_hex(16), secrets.token_hex(8)
    fields: dict[str, Any] = {
        "txn": txn, "hop": hop, "replica": REPLICA, "resource": resource, "args": args,
        "deadline": int((time.time() + seconds) * 1000),
    }  # fmt: skip
    if "grant" not in changes:
        fields["grant"] = grant(txn, hop, **({"aud": resource.split("/")[1]} | (claimed or {})))
    return Dispatch(**(fields | changes))


def verified(d: Dispatch) -> Grant:
    return verify(parse(d.grant), KEYS, issuer=ISSUER, audience=d.resource.split("/")[1], now=time.time())


class FakeFrames:
    """A scripted answer; an exception in it is raised in its place."""

    def __init__(self, frames: list[Any]) -> None:
        self._frames = deque(frames)
        self.closed = False

    async def next(self) -> Frame:
        await asyncio.sleep(0)
        if not self._frames:
            await asyncio.Event().wait()
        frame = self._frames.popleft()
        if isinstance(frame, Exception):
            raise frame
        return frame

    def close(self) -> None:
        self.closed = True


class FakeLink:
    """A link in process. ``answers`` are taken in turn, one list of frames per request; ``told`` is what was published."""

    def __init__(self, name: str = "researcher", *answers: list[Any]) -> None:
        self.name = name
        self.connection = "c" * 22
        self.answers = deque(answers)
        self.asked: list[tuple[str, Request]] = []
        self.told: list[tuple[str, bytes]] = []
        self.refuse: Refused | None = None
        self.grew = asyncio.Event()

    async def ask(self, subject: str, request: Request) -> FakeFrames:
        self.asked.append((subject, request))
        if self.refuse is not None:
            raise self.refuse
        return FakeFrames(self.answers.popleft())

    async def tell(self, subject: str, data: bytes, seconds: float = 0) -> bool:
        self.told.append((subject, data))
        self.grew.set()
        return True

    def frames(self) -> list[Frame]:
        """What was published as frames."""
        return [parse_frame(data) for subject, data in self.told if subject.startswith("res.")]

    async def until_final(self) -> Frame:
        """The final frame, once it is there."""
        async with asyncio.timeout(5):
            while True:
                for frame in self.frames():
                    if isinstance(frame, FINAL):
                        return frame
                self.grew.clear()
                await self.grew.wait()


class Heard:
    """The frames of one dispatched hop."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.grew = asyncio.Event()

    def hear(self, frame: Frame) -> None:
        self.frames.append(frame)
        self.grew.set()

    async def until(self, kind: Any, seconds: float = 10) -> Frame:
        async with asyncio.timeout(seconds):
            while True:
                for frame in self.frames:
                    if isinstance(frame, kind):
                        return frame
                self.grew.clear()
                await self.grew.wait()

    async def final(self, seconds: float = 10) -> Result | Error:
        frame = await self.until(FINAL, seconds)
        assert isinstance(frame, Result | Error)
        return frame

    @property
    def connection(self) -> str:
        return next(frame.connection for frame in self.frames if isinstance(frame, Started))


class ScriptedBroker:
    """On a real bus. ``scripts`` maps ``kind/name/op`` to what it answers; attach and close work without one."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self.scripts: dict[str, Script] = {}
        self.attached: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
        self.requests: list[tuple[subjects.Request, Request]] = []
        self.controls: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self.strays: list[str] = []
        self.registered = 0
        self._hops: dict[tuple[str, str], Heard] = {}
        self._nc: Client | None = None

    @property
    def nc(self) -> Client:
        assert self._nc is not None
        return self._nc

    async def start(self, **options: Any) -> None:
        self._nc = await nats.connect(self.url, **options)
        self._listening = await self.nc.subscribe("req.*.*.*.*.*", queue=subjects.BROKER_QUEUE, cb=self._on_request)
        await self.nc.subscribe("res.>", cb=self._on_frame)
        await self.nc.subscribe("ctl.>", cb=self._on_control)
        # Twice: the library's first ping overtakes what it still holds back.
        await self.nc.flush()
        await self.nc.flush()

    async def stop(self) -> None:
        if not self.nc.is_closed:
            await self.nc.close()

    async def go_deaf(self) -> None:
        """Listen to requests no longer, and wait until the server knows that."""
        await self._listening.unsubscribe()
        await self.nc.flush()
        await self.nc.flush()

    async def _on_request(self, message: Msg) -> None:
        at = subjects.parse_request(message.subject)
        assert at is not None and subjects.is_own_inbox(message.reply, at.caller), message.reply
        request = parse_request(message.data)
        assert request.deadline is not None
        self.requests.append((at, request))
        for frame in self._script(at, request):
            await self.nc.publish(message.reply, encode(frame))

    def _script(self, at: subjects.Request, request: Request) -> list[Frame]:
        name = f"{at.kind}/{at.name}/{at.op}"
        if name in self.scripts:
            return self.scripts[name](request)
        if name == "remit/attach/put":
            self.attached.put_nowait((at.caller, request.args))
            return [
                Result(value={"principal": at.caller, "issuer": ISSUER, "jwks": KEYS.to_jwks(), "replica": REPLICA})
            ]
        if name == "remit/txn/close":
            return [Result(value={"txn": at.txn, "spent": {"usd_micros": 0, "tokens": 0, "calls": 1}})]
        return [no(Code.UNKNOWN_TARGET)]

    async def _on_frame(self, message: Msg) -> None:
        at = subjects.parse_reply(message.subject)
        assert at is not None, message.subject
        hop = self._hops.get((at.txn, at.hop))
        if hop is None:
            self.strays.append(message.subject)
        elif message.data:
            hop.hear(parse_frame(message.data))

    async def _on_control(self, message: Msg) -> None:
        self.controls.put_nowait((message.subject, message.data))

    async def until_attached(self) -> dict[str, Any]:
        async with asyncio.timeout(10):
            return (await self.attached.get())[1]

    def credentials(self, name: str, *, seed: str | None = None, **changes: Any) -> Path:
        """A credentials file; a change to None leaves the member out."""
        content = {
            "agent": name, "kind": "agent", "nkey_seed": seed or new_user_seed(), "bus": self.url, "issuer": ISSUER,
            "jwks": KEYS.to_jwks(),
        } | changes  # fmt: skip
        path = self.folder / f"{name}.json"
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump({key: value for key, value in content.items() if value is not None}, file)
        return path

    async def send(self, d: Dispatch, subject: str | None = None, data: bytes | None = None) -> Heard:
        """Publish a dispatch as it is."""
        heard = self._hops.setdefault((d.txn, d.hop), Heard())
        kind, name, op = d.resource.split("/", 2)
        await self.nc.publish(subject or subjects.service(kind, name, op), encode(d) if data is None else data)
        return heard

    async def call(self, resource: str, seconds: float = 30, **args: Any) -> Heard:
        """Dispatch a governed call."""
        return await self.send(dispatch(resource, args, seconds=seconds))
