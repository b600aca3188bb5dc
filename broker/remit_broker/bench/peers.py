"""The other ends of the measured calls, each a process of its own: ``python -m remit_broker.bench.peers KIND …``.

``echo URL`` answers a plain request, ``relay URL`` forwards one and its answer (what any broker costs that does nothing),
``agent CREDENTIALS`` is an honest callee: it verifies its grant and answers with frames.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
import time
from pathlib import Path

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from remit_schemas import subjects
from remit_schemas.callee import Seen, answer_subject, check_dispatch
from remit_schemas.envelope import Request, Result, Started, encode, parse_dispatch
from remit_schemas.keys import KeySet

ECHO, RELAY = "bench.echo", "bench.relay"
SKILL = "echo"


async def echo(url: str) -> None:
    """Answer every request with what it brought."""
    nc = await nats.connect(url)

    async def answer(message: Msg) -> None:
        await nc.publish(message.reply, message.data)

    await nc.subscribe(ECHO, queue="echo", cb=answer)
    await _ready(nc)


async def relay(url: str) -> None:
    """Forward a request and its answer over one shared inbox, as a broker without governance would."""
    nc = await nats.connect(url)
    inbox = nc.new_inbox()
    waiting: dict[str, str] = {}

    async def forward(message: Msg) -> None:
        token = secrets.token_hex(8)
        waiting[token] = message.reply
        await nc.publish(ECHO, message.data, reply=f"{inbox}.{token}")

    async def back(message: Msg) -> None:
        reply = waiting.pop(message.subject.rpartition(".")[2], None)
        if reply:
            await nc.publish(reply, message.data)

    await nc.subscribe(f"{inbox}.*", cb=back)
    await nc.subscribe(RELAY, queue="relay", cb=forward)
    await _ready(nc)


async def agent(path: str) -> None:
    """An honest callee of one skill."""
    told = json.loads(Path(path).read_text(encoding="utf-8"))
    me, keys, issuer = told["agent"], KeySet.from_jwks(told["jwks"]), told["issuer"]
    nc, connection = await connect_agent(told)
    seen = Seen()
    started = encode(Started(connection=connection))

    async def serve(message: Msg) -> None:
        dispatch = parse_dispatch(message.data)
        now = time.time()
        check_dispatch(dispatch, me=me, kind="agent", keys=keys, issuer=issuer, now=now, seen=seen)
        seen.take(dispatch, now * 1000)
        to = answer_subject(me, dispatch)
        if to is not None:
            await nc.publish(to, started)
            await nc.publish(to, encode(Result(value=dispatch.args)))

    await nc.subscribe(f"svc.agent.{me}.*", queue=me, cb=serve)
    skill = {"name": SKILL, "input_schema": {"type": "object"}, "needs": []}
    inbox = f"{subjects.inbox_prefix(me, connection)}.attach"
    done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def attached(message: Msg) -> None:
        if not done.done():
            done.set_result(message.data)

    await nc.subscribe(inbox, cb=attached)
    request = encode(Request(args={"skills": [skill]}))
    await nc.publish(subjects.request(me, subjects.NEW, "remit", "attach", "put"), request, reply=inbox)
    async with asyncio.timeout(10):
        answer = await done
    if b'"frame":"result"' not in answer:
        raise SystemExit(answer.decode())
    await _ready(nc)


async def connect_agent(told: dict[str, str]) -> tuple[Client, str]:
    """A connection with an agent's credentials, and its own random name."""
    connection = secrets.token_hex(12)
    nc = await nats.connect(
        told["bus"],
        nkeys_seed_str=told["nkey_seed"],
        name=connection,
        inbox_prefix=subjects.inbox_prefix(told["agent"], connection),
    )
    return nc, connection


async def _ready(nc: Client) -> None:
    await nc.flush()
    print(f"ready {os.getpid()}", flush=True)
    await asyncio.to_thread(sys.stdin.read)  # the driver ends this process by closing its standard input
    await nc.close()


def main() -> None:
    """Entry point of a peer."""
    import uvloop

    kind, where = sys.argv[1:]
    work = {"echo": echo, "relay": relay, "agent": agent}[kind](where)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


if __name__ == "__main__":
    main()
