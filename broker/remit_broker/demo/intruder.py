"""An agent that forgets the SDK and takes its own valid credentials to the bus directly. What stops it is the NATS server."""

from __future__ import annotations

import asyncio
import json
import secrets
from pathlib import Path

import msgspec
import nats
from nats.aio.client import Client

from remit_schemas.subjects import inbox_prefix


class Attempt(msgspec.Struct, frozen=True):
    """Something that never became a hop, and the words of what stopped it; empty where nothing did."""

    what: str
    stopped_by: str


ATTEMPTS = (
    ("publish", "svc.mcp.git.git_log", "call the tool without the broker"),
    ("publish", "req.planner.new.agent.researcher.history", "ask in the planner's name"),
    ("publish", "res.git.broker.x.y", "answer in the tool's place"),
    ("publish", "$JS.API.STREAM.PURGE.LEDGER", "purge the ledger"),
    ("subscribe", "svc.mcp.git.>", "listen to the tool's calls"),
    ("subscribe", ">", "listen to everything"),
)


async def intrude(path: str) -> list[Attempt]:
    """Every attempt with the server's own answer."""
    told = json.loads(Path(path).read_text(encoding="utf-8"))
    connection, said = secrets.token_hex(12), asyncio.Queue[str]()

    async def error(problem: Exception) -> None:
        await said.put(str(problem))

    nc = await nats.connect(
        told["bus"],
        nkeys_seed_str=told["nkey_seed"],
        name=connection,
        inbox_prefix=inbox_prefix(told["agent"], connection),
        error_cb=error,
        allow_reconnect=False,
    )
    try:
        return [await _try(nc, said, told["agent"], *attempt) for attempt in ATTEMPTS]
    finally:
        await nc.close()


async def _try(nc: Client, said: asyncio.Queue[str], me: str, how: str, subject: str, why: str) -> Attempt:
    if how == "publish":
        await nc.publish(subject, b"{}")
    else:
        await nc.subscribe(subject)
    await nc.flush()
    try:
        async with asyncio.timeout(1.0):
            answer = await said.get()
    except TimeoutError:
        answer = ""
    return Attempt(f"{me} tries to {why}: {how} {subject}", answer)
