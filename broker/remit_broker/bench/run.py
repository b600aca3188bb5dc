"""The run: servers and peers as processes of their own, the three ways interleaved round by round, one table at the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import secrets
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from remit_broker.adapters.nats_server import find_binary
from remit_broker.bench import peers
from remit_broker.bench.measure import Call, Samples, round_of
from remit_broker.starter import write_policies
from remit_schemas import subjects
from remit_schemas.envelope import Request, encode

WAYS: Final = ("direct", "relay", "governed", "governed_fsync")
PAYLOAD: Final = {"text": "x" * 1000}
TXNS: Final = 256
CALLEE: Final = "bench-callee"
CALLER: Final = "bench-caller"
RESOURCE: Final = f"agent/{CALLEE}/{peers.SKILL}"

Say = Callable[[str], None]


async def bench(rounds: int, seconds_hint: float, say: Say) -> dict[str, Any]:
    """Measure everything. ``seconds_hint`` scales how many calls a round has."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="remit-bench-")))
        say("starting a plain NATS server, an echo and a relay")
        plain = await stack.enter_async_context(_plain_server(folder))
        for kind in ("echo", "relay"):
            await stack.enter_async_context(_peer(kind, plain))
        calls: dict[str, Call] = {}
        direct = await _connected(stack, plain)
        calls["direct"] = _plain_call(direct, peers.ECHO)
        calls["relay"] = _plain_call(direct, peers.RELAY)
        setup: dict[str, Any] = {}
        for way, sync in (("governed", "default"), ("governed_fsync", "always")):
            say(f"starting a broker whose NATS server syncs: {sync}")
            calls[way], setup[way] = await _governed(stack, folder / way, sync)
        found = await _interleaved(calls, rounds, seconds_hint, say)
        return {**found, "setup": {**setup, **_machine(), "rounds": rounds, "payload_bytes": len(encode(PAYLOAD))}}


async def _interleaved(calls: dict[str, Call], rounds: int, scale: float, say: Say) -> dict[str, Any]:
    """Every way in every round, so that what else the machine does hits all of them alike."""
    samples = {(way, depth): Samples() for way in calls for depth in (1, 32, 256)}
    for way, call in calls.items():
        say(f"warming up {way}")
        await round_of(call, int(600 * scale), 16)
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for depth, count in ((1, 400), (32, 2400), (256, 3200)):
            for way, call in calls.items():
                size = count // 2 if way == "governed_fsync" else count
                samples[way, depth].add(await round_of(call, max(depth, int(size * scale)), depth))
    return {way: _figures(samples, way) for way in calls}


def _figures(samples: dict[tuple[str, int], Samples], way: str) -> dict[str, float]:
    one, some, many = (samples[way, depth] for depth in (1, 32, 256))
    return {
        "p50_us_1": one.quantile(0.5),
        "p99_us_1": one.quantile(0.99),
        "ops_32": some.rate,
        "p50_us_32": some.quantile(0.5),
        "p99_us_32": some.quantile(0.99),
        "ops_256": many.rate,
    }


def _machine() -> dict[str, Any]:
    return {"cpus": os.cpu_count(), "python": platform.python_version(), "machine": platform.machine()}


async def _connected(stack: AsyncExitStack, url: str) -> Client:
    nc = await nats.connect(url)
    stack.push_async_callback(nc.close)
    return nc


def _plain_call(nc: Client, subject: str) -> Call:
    data = encode(Request(args=PAYLOAD))

    async def call(_: int) -> None:
        await nc.request(subject, data, timeout=30)

    return call


@asynccontextmanager
async def _process(
    *words: str, env: dict[str, str] | None = None
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A child process and the first line it says; ended when the block is left."""
    process = await asyncio.create_subprocess_exec(
        *words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env={**os.environ, **(env or {})}
    )
    try:
        if process.stdout is None:
            raise RuntimeError("no pipe")
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        yield process, line.decode().strip()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await asyncio.wait_for(process.wait(), 20)


@asynccontextmanager
async def _plain_server(folder: Path) -> AsyncIterator[str]:
    """The same binary without accounts or JetStream: what a direct call costs on this machine."""
    ports = folder / "plain"
    ports.mkdir()
    process = await asyncio.create_subprocess_exec(
        str(find_binary()), "-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", str(ports),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(10):
            while not (found := list(ports.glob("*.ports"))) or not found[0].stat().st_size:
                await asyncio.sleep(0.02)
        yield json.loads(found[0].read_text(encoding="utf-8"))["nats"][0]
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def _peer(kind: str, where: str) -> AsyncIterator[None]:
    async with _process(sys.executable, "-m", "remit_broker.bench.peers", kind, where) as (_, line):
        if line != "ready":
            raise RuntimeError(f"the {kind} did not start: {line}")
        yield


async def _governed(stack: AsyncExitStack, folder: Path, sync: str) -> tuple[Call, dict[str, Any]]:
    """A broker process with a callee, and a call under one of :data:`TXNS` open txns."""
    write_policies(folder / "policies")
    config = folder / "remit.toml"
    config.write_text(
        f'[bus]\nsync = "{sync}"\n[http]\nport = 0\n[limits]\ncalls_per_second = 1000000\nburst = 1000000\n',
        encoding="utf-8",
    )
    remit = [sys.executable, "-m", "remit_broker.cli.main"]
    _, line = await stack.enter_async_context(_process(*remit, "up", "--json", "--quiet", "-c", str(config)))
    ready = json.loads(line)
    paths = {}
    for name in (CALLER, CALLEE):
        async with _process(*remit, "agents", "add", name, "--json", "-c", str(config)) as (_, told):
            paths[name] = json.loads(told)["credentials"]
    await stack.enter_async_context(_peer("agent", paths[CALLEE]))
    token = (folder / "data" / "keys" / "local.token").read_text(encoding="utf-8").strip()
    client = httpx.AsyncClient(base_url=ready["http"], headers={"Authorization": f"Bearer {token}"}, trust_env=False)
    stack.push_async_callback(client.aclose)
    grants = [await _grant(client) for _ in range(TXNS)]
    nc, connection = await peers.connect_agent(json.loads(Path(paths[CALLER]).read_text(encoding="utf-8")))
    stack.push_async_callback(nc.close)
    status = (await client.get("/api/status")).raise_for_status().json()
    return await _governed_call(nc, connection, grants), status


async def _grant(client: httpx.AsyncClient) -> tuple[str, str]:
    wish = {
        "user": "bench",
        "agent": CALLER,
        "scopes": [{"type": "remit", "resource": RESOURCE}],
        "budget": {"usd_micros": 10**9, "tokens": 10**9, "calls": 10**9},
        "ttl": 3600,
    }
    told = (await client.post("/api/grants", json=wish)).raise_for_status().json()
    return told["txn"], told["grant"]


async def _governed_call(nc: Client, connection: str, grants: list[tuple[str, str]]) -> Call:
    """One call as the SDK makes it: a request, and frames until the final one."""
    prefix = subjects.inbox_prefix(CALLER, connection)
    waiting: dict[str, asyncio.Future[bytes]] = {}

    async def on_frame(message: Msg) -> None:
        future = waiting.get(message.subject.rpartition(".")[2])
        if future is not None and not future.done() and b'"frame":"accepted"' not in message.data[:32]:
            future.set_result(message.data)

    await nc.subscribe(f"{prefix}.r.*", cb=on_frame)
    want = {"budget": {"usd_micros": 0, "tokens": 0, "calls": 1}}
    ready = [
        (
            subjects.request(CALLER, txn, "agent", CALLEE, peers.SKILL),
            encode({"v": 1, "grant": grant, "args": PAYLOAD, "want": want}),
        )
        for txn, grant in grants
    ]
    loop = asyncio.get_running_loop()

    async def call(number: int) -> None:
        subject, data = ready[number % len(ready)]
        token = secrets.token_hex(8)
        waiting[token] = future = loop.create_future()
        try:
            await nc.publish(subject, data, reply=f"{prefix}.r.{token}")
            answer = await asyncio.wait_for(future, 30)
        finally:
            del waiting[token]
        if b'"frame":"result"' not in answer[:32]:
            raise RuntimeError(answer.decode())

    return call
