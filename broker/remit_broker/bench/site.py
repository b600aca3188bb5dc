"""A broker to measure: its processes, a callee, open txns and a caller that calls under them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
from nats.aio.client import Client
from nats.aio.msg import Msg

from remit_broker.bench import peers
from remit_broker.bench.measure import Call
from remit_broker.bench.usage import children
from remit_broker.starter import write_policies
from remit_schemas import subjects
from remit_schemas.envelope import Error, encode, parse_frame

PAYLOAD: Final = {"text": "x" * 1000}
TXNS: Final = 256
CALLEE: Final = "bench-callee"
CALLER: Final = "bench-caller"
RESOURCE: Final = f"agent/{CALLEE}/{peers.SKILL}"
PATIENCE: Final = 60.0
"""Seconds for which a call that is refused is made again."""
REMIT: Final = ("-m", "remit_broker.cli.main")


class Site:
    """One broker of one or more processes on a NATS server of its own."""

    def __init__(self, ready: dict[str, Any], http: httpx.AsyncClient, told: dict[str, str]) -> None:
        self.http = http
        self.url = str(http.base_url).rstrip("/")
        self.told = told
        """The credentials of the caller."""
        self.brokers: list[int] = [one["pid"] for one in ready["replicas"]] if "replicas" in ready else [ready["pid"]]
        self.servers = children(ready["pid"], "nats-server")

    async def status(self) -> dict[str, Any]:
        """What runs, as it says itself."""
        found: dict[str, Any] = (await self.http.get("/api/status")).raise_for_status().json()
        return {**found, "broker_processes": len(self.brokers)}

    async def grants(self, count: int) -> list[tuple[str, str]]:
        """``count`` new txns, each with its root grant for the caller."""
        return [await self._grant() for _ in range(count)]

    async def _grant(self) -> tuple[str, str]:
        wish = {
            "user": "bench",
            "agent": CALLER,
            "scopes": [{"type": "remit", "resource": RESOURCE}],
            "budget": {"usd_micros": 10**9, "tokens": 10**9, "calls": 10**9},
            "ttl": 3600,
        }
        told = (await self.http.post("/api/grants", json=wish)).raise_for_status().json()
        return told["txn"], told["grant"]


@asynccontextmanager
async def site(
    folder: Path,
    sync: str,
    *,
    replicas: int = 1,
    concurrency: int = 2048,
    profile: Path | None = None,
    more: str = "",
) -> AsyncIterator[Site]:
    """Start one. ``concurrency`` is the hops it may have in hand, ``more`` the rest of its configuration.

    With ``profile`` the broker's process is profiled, and slower; the profile is written when it ends.
    """
    write_policies(folder / "policies")
    config = folder / "remit.toml"
    config.write_text(
        f'[bus]\nsync = "{sync}"\n[http]\nport = 0\n'
        f"[limits]\ncalls_per_second = 1000000\nburst = 1000000\nconcurrency = {concurrency}\n{more}",
        encoding="utf-8",
    )
    async with AsyncExitStack() as stack:
        before = ("-m", "remit_broker.bench.profiled", str(profile)) if profile is not None else ()
        words = ("up", "--json", "--quiet", "--replicas", str(replicas), "-c", str(config))
        ready = json.loads(await stack.enter_async_context(process(*before, *(REMIT[1:] if before else REMIT), *words)))
        paths = {}
        for name in (CALLER, CALLEE):
            async with process(*REMIT, "agents", "add", name, "--json", "-c", str(config)) as told:
                paths[name] = json.loads(told)["credentials"]
        await stack.enter_async_context(peer("agent", paths[CALLEE]))
        token = (folder / "data" / "keys" / "local.token").read_text(encoding="utf-8").strip()
        headers = {"Authorization": f"Bearer {token}"}
        http = httpx.AsyncClient(base_url=ready["http"], headers=headers, trust_env=False, timeout=30)
        stack.push_async_callback(http.aclose)
        yield Site(ready, http, json.loads(Path(paths[CALLER]).read_text(encoding="utf-8")))


@asynccontextmanager
async def process(*words: str) -> AsyncIterator[str]:
    """The first line that a Python process of ours says; it is ended when the block is left."""
    running = await asyncio.create_subprocess_exec(
        sys.executable, *words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=dict(os.environ)
    )
    try:
        if running.stdout is None:
            raise RuntimeError("no pipe")
        async with asyncio.timeout(60):
            line = await running.stdout.readline()
        yield line.decode().strip()
    finally:
        if running.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                running.terminate()
            async with asyncio.timeout(40):
                await running.wait()


@asynccontextmanager
async def peer(kind: str, where: str) -> AsyncIterator[int]:
    """One of :mod:`remit_broker.bench.peers` as a process; its id."""
    async with process("-m", "remit_broker.bench.peers", kind, where) as line:
        word, _, pid = line.partition(" ")
        if word != "ready":
            raise RuntimeError(f"the {kind} did not start: {line}")
        yield int(pid)


async def caller(nc: Client, connection: str, grants: list[tuple[str, str]]) -> Call:
    """Calls as the SDK makes them, under one of ``grants`` after the other: a request, and frames until the final one."""
    prefix = subjects.inbox_prefix(CALLER, connection)
    loop = asyncio.get_running_loop()
    waiting: dict[str, asyncio.Future[bytes]] = {}
    inbox = secrets.token_hex(4)

    async def on_frame(message: Msg) -> None:
        future = waiting.get(message.subject)
        if future is not None and not future.done() and b'"frame":"accepted"' not in message.data[:32]:
            future.set_result(message.data)

    await nc.subscribe(f"{prefix}.{inbox}.*", cb=on_frame, pending_msgs_limit=-1)
    want = {"budget": {"usd_micros": 0, "tokens": 0, "calls": 1}}
    ready = [
        (
            subjects.request(CALLER, txn, "agent", CALLEE, peers.SKILL),
            encode({"v": 1, "grant": grant, "args": PAYLOAD, "want": want}),
        )
        for txn, grant in grants
    ]

    async def call(number: int) -> None:
        subject, data = ready[number % len(ready)]
        reply = f"{prefix}.{inbox}.{secrets.token_hex(8)}"
        waiting[reply] = future = loop.create_future()
        try:
            await nc.publish(subject, data, reply=reply)
            async with asyncio.timeout(60):
                answer = await future
        finally:
            del waiting[reply]
        if b'"frame":"result"' not in answer[:32]:
            raise NotDone(answer)

    return call


class NotDone(RuntimeError):  # noqa: N818 - the broker said no
    """A call that ended with something else than a result."""

    def __init__(self, answer: bytes) -> None:
        super().__init__(answer.decode())
        frame = parse_frame(answer)
        self.may_repeat = isinstance(frame, Error) and frame.error.retryable and frame.error.effect == "none"
        self.wait = frame.error.retry_after or 0.1 if isinstance(frame, Error) else 0.0


class Patient:
    """Calls that are made again where the broker says that they may be, as callers do; the time counts, and ``refused`` how often."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.refused = 0

    async def __call__(self, number: int) -> None:
        """One call. Raises :class:`NotDone` for what may not be made again, or has been refused for a minute."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return await self._call(number)
            except NotDone as no:
                if not no.may_repeat or time.monotonic() > until:
                    raise
                self.refused += 1
                wait = no.wait
            await asyncio.sleep(wait)
