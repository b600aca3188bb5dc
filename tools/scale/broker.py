"""A broker as ``remit up`` starts it: what a hop costs each process and each disk, and what waiting costs in memory."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import secrets
import sys
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
from nats.aio.client import Client
from nats.aio.msg import Msg

from remit_broker.bench import peers
from remit_broker.core import nkey
from remit_broker.credentials import credentials_file
from remit_broker.starter import write_policies
from remit_schemas import subjects
from remit_schemas.envelope import encode
from tools.scale.machine import child_named, cpu, rss, size
from tools.scale.sample import Txns

CALLER: Final = "scale-caller"
CALLEE: Final = "scale-callee"
REMIT: Final = (sys.executable, "-m", "remit_broker.cli.main")
PAYLOAD: Final = {"text": "x" * 1000}
FLIGHT: Final = 64


class Running:
    """A broker, its NATS server, and how to speak to it as its operator."""

    def __init__(self, folder: Path, pid: int, bus: str, api: httpx.AsyncClient) -> None:
        self.folder, self.pid, self.bus, self.api = folder, pid, bus, api
        self.nats = child_named(pid, "nats-server")

    async def agent(self, name: str) -> dict[str, Any]:
        """Registers an agent; what its credentials file says."""
        status = (await self.api.get("/api/status")).raise_for_status().json()
        path, public = credentials_file(self.folder / "made", name, "agent", {"bus": self.bus, **status["published"]})
        body = {"name": name, "nkey": public, "kind": "agent", "tier": "standard"}
        (await self.api.post("/api/agents", json=body)).raise_for_status()
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {**told, "path": str(path), "public": nkey.public_of("U", told["nkey_seed"])}

    async def grant(self, calls: int) -> tuple[str, str]:
        """A new txn of the caller's and its root grant."""
        wish = {
            "user": "ann@example.org", "agent": CALLER, "ttl": 3600,
            "scopes": [{"type": "remit", "resource": f"agent/{CALLEE}/{peers.SKILL}"}],
            "budget": {"usd_micros": 10**9, "tokens": 10**9, "calls": calls},
        }  # fmt: skip
        told = (await self.api.post("/api/grants", json=wish)).raise_for_status().json()
        return told["txn"], told["grant"]


@asynccontextmanager
async def running(folder: Path, sync: str) -> AsyncIterator[Running]:
    """A broker of its own process, with no limit that this measurement would meet."""
    write_policies(folder / "policies")
    config = folder / "remit.toml"
    config.write_text(
        f'[bus]\nsync = "{sync}"\n[http]\nport = 0\n[limits]\ncalls_per_second = 1000000\nburst = 1000000\n',
        encoding="utf-8",
    )
    async with AsyncExitStack() as stack:
        process = await asyncio.create_subprocess_exec(
            *REMIT, "up", "--json", "--quiet", "-c", str(config), stdout=asyncio.subprocess.PIPE
        )
        stack.push_async_callback(_ended, process)
        if process.stdout is None:
            raise RuntimeError("no pipe")
        ready = json.loads(await asyncio.wait_for(process.stdout.readline(), 60))
        token = (folder / "data" / "keys" / "local.token").read_text(encoding="utf-8").strip()
        bearer = {"Authorization": f"Bearer {token}"}
        api = httpx.AsyncClient(base_url=ready["http"], headers=bearer, timeout=60, trust_env=False)
        stack.push_async_callback(api.aclose)
        yield Running(folder, ready["pid"], ready["nats"], api)


async def _ended(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    await asyncio.wait_for(process.wait(), 60)


async def hops(folder: Path, count: int, sync: str) -> dict[str, Any]:
    """``count`` hops of one agent calling another, ten in each txn, no two of a txn at once, :data:`FLIGHT` in flight."""
    async with AsyncExitStack() as stack:
        lab = await stack.enter_async_context(running(folder, sync))
        caller, callee = await lab.agent(CALLER), await lab.agent(CALLEE)
        peer = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "remit_broker.bench.peers", "agent", callee["path"],
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=dict(os.environ),
        )  # fmt: skip
        stack.push_async_callback(_ended, peer)
        if peer.stdout is None or await asyncio.wait_for(peer.stdout.readline(), 60) != b"ready\n":
            raise RuntimeError("the callee did not start")
        nc, connection = await peers.connect_agent(caller)
        stack.push_async_callback(nc.close)
        call = await _caller(nc, connection)
        grants = [await lab.grant(1000) for _ in range(max(count // 10, 1))]
        await _all(call, grants[:FLIGHT])  # warm
        files = {"ledger": lab.folder / "data" / "jetstream", "index": lab.folder / "data" / "index"}
        pids = {"broker": lab.pid, "nats": lab.nats, "callee": peer.pid}
        before = {name: cpu(pid) for name, pid in pids.items()}, {name: size(path) for name, path in files.items()}
        await _all(call, (grants * 10)[:count])
        used = {f"{name}_cpu_us": round((cpu(pid) - before[0][name]) / count * 1e6) for name, pid in pids.items()}
        (await lab.api.get("/api/chains", params={"limit": 1})).raise_for_status()  # the index has caught up
        grown = {
            f"{name}_bytes": round((size(path) - before[1][name]) * 1024 * 1024 / count) for name, path in files.items()
        }
        entries = (await lab.api.get(f"/api/chains/{grants[-1][0]}")).raise_for_status().json()["records"]
        made = [record for record in entries if record["kind"].startswith("hop.")]
        return {"hops": count, "sync": sync, "records": len(made) / (len(made) // 2), **used, **grown}


async def _all(call: Any, grants: list[tuple[str, str]]) -> None:
    waiting = iter(grants)

    async def worker() -> None:
        for txn, grant in waiting:
            await call(txn, grant)

    await asyncio.gather(*(worker() for _ in range(FLIGHT)))


async def _caller(nc: Client, connection: str) -> Any:
    """A call as the SDK makes it: a request, and frames until the final one."""
    prefix = subjects.inbox_prefix(CALLER, connection)
    waiting: dict[str, asyncio.Future[bytes]] = {}

    async def on_frame(message: Msg) -> None:
        future = waiting.get(message.subject.rpartition(".")[2])
        if future is not None and not future.done() and b'"frame":"accepted"' not in message.data[:32]:
            future.set_result(message.data)

    await nc.subscribe(f"{prefix}.r.*", cb=on_frame)

    async def call(txn: str, grant: str) -> None:
        token, future = secrets.token_hex(8), asyncio.get_running_loop().create_future()
        waiting[token] = future
        want = {"budget": {"usd_micros": 0, "tokens": 0, "calls": 1}}
        data = encode({"v": 1, "grant": grant, "args": PAYLOAD, "want": want})
        subject = subjects.request(CALLER, txn, "agent", CALLEE, peers.SKILL)
        await nc.publish(subject, data, reply=f"{prefix}.r.{token}")
        try:
            answer = await asyncio.wait_for(future, 60)
        finally:
            del waiting[token]
        if b'"frame":"result"' not in answer[:32]:
            raise RuntimeError(answer.decode())

    return call


async def connections(folder: Path, count: int, each: int = 16) -> dict[str, Any]:
    """``count`` connections that do nothing, ``each`` for one agent. KiB and µs a connection."""
    async with running(folder, "default") as lab:
        told = [await lab.agent(f"scale{number}") for number in range(-(-count // each))]
        before = {pid: (rss(pid), cpu(pid)) for pid in (lab.pid, lab.nats)}
        idle: list[Client] = []
        for begun in range(0, count, each):
            agent = told[begun // each]
            made = await asyncio.gather(*(peers.connect_agent(agent) for _ in range(min(each, count - begun))))
            idle += [nc for nc, connection in made]
            for nc, connection in made:
                # What an attached agent listens on.
                await nc.subscribe(f"svc.agent.{agent['agent']}.>", queue=agent["agent"])
                await nc.subscribe(f"{subjects.inbox_prefix(agent['agent'], connection)}.>")
        await asyncio.gather(*(nc.flush() for nc in idle))
        row: dict[str, Any] = {"connections": count}
        for name, pid in (("broker", lab.pid), ("nats", lab.nats)):
            row[f"{name}_kib"] = round((rss(pid) - before[pid][0]) * 1024 / count, 1)
            row[f"{name}_connect_cpu_us"] = round((cpu(pid) - before[pid][1]) / count * 1e6)
        began = {pid: cpu(pid) for pid in before}
        await asyncio.sleep(30)
        row |= {f"{name}_idle_cpu_per_s": round((cpu(pid) - began[pid]) / 30, 4) for name, pid in
                (("broker", lab.pid), ("nats", lab.nats))}  # fmt: skip
        for nc in idle:
            await nc.close()
        return row


def folds(count: int) -> list[dict[str, Any]]:
    """Memory of what a broker remembers of ``count`` open txns, by how many hops they have had. KiB a txn."""
    txns, rows = Txns(), list[dict[str, Any]]()
    tracemalloc.start()
    for hop_count in (1, 10, 100):
        few = max(count // hop_count, 100)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        kept = [txns.whole(hop_count)[0] for _ in range(few)]
        gc.collect()
        used = tracemalloc.get_traced_memory()[0] - before
        rows.append({"txns": len(kept), "hops_each": hop_count, "kib_each": round(used / 1024 / few, 1)})
        del kept
    tracemalloc.stop()
    return rows
