"""How far the index is behind the ledger while hops are made at a given rate, and how long it takes to be caught up afterwards.

``python -m tools.bench_lag [--hops 1000] [--seconds 20]`` starts a NATS server (FULL sync on both sides), writes two records a hop from
a process of its own, and asks the stream and the index how far they are, again and again. What was really written a second is told: a
machine that is too small for the rate says so.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nats

from remit_broker.adapters.index_proofs import signer
from remit_broker.adapters.jetstream import JetStream, Message
from remit_broker.adapters.jetstream_ledger import STREAM, JetStreamLedger
from remit_broker.adapters.refusal_stream import RefusalStream
from remit_broker.adapters.sqlite_index import SqliteIndex
from tests.support.local_nats import local_nats
from tools.bench_index import KEY, messages

RECORDS_A_HOP = 2
LOOK = 0.05
TICK = 0.01
"""Seconds between two looks at the lag, and between two bursts of records."""


async def publish(url: str, hops: int, seconds: int) -> None:
    """Write at the rate, as evenly as the machine lets it, and say what was written."""
    made: list[Message] = list(messages(hops * RECORDS_A_HOP * seconds))
    js = JetStream(await nats.connect(url))
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    began, waiting = time.monotonic(), set[asyncio.Task[Any]]()
    left = iter(made)
    sent = 0
    while sent < len(made):
        due = int((time.monotonic() - began) * hops * RECORDS_A_HOP) - sent
        for message in itertools.islice(left, max(due, 0)):
            waiting.add(task := asyncio.create_task(js.publish(message.subject, message.data, {}, 60.0)))
            task.add_done_callback(waiting.discard)
            sent += 1
        await asyncio.sleep(TICK)
    await asyncio.gather(*waiting)
    print(json.dumps({"records": sent, "seconds": round(time.monotonic() - began, 2)}), flush=True)


async def measure(hops: int, seconds: int, folder: Path) -> dict[str, Any]:
    """The lag in records and in milliseconds at that rate, and the time to be caught up after the end."""
    (folder / "nats").mkdir()
    async with local_nats(folder / "nats", max_file_store=4 << 30) as server:
        nc = await server.connect()
        await JetStreamLedger.start(nc)
        await RefusalStream.start(nc)
        index = await SqliteIndex.open(folder / "index.db")
        index.signed_with(signer("https://remit.example", KEY))
        following = asyncio.create_task(index.run(nc))
        words = ["-m", "tools.bench_lag", "--publish", server.url, "--hops", str(hops), "--seconds", str(seconds)]
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(sys.executable, *words, stdin=pipe, stdout=pipe)
        assert child.stdin is not None and child.stdout is not None
        await child.stdout.readline()
        used, before = time.process_time(), time.monotonic()
        child.stdin.write(b"go\n")
        js, seen = JetStream(nc), list[int]()
        ended = asyncio.create_task(child.stdout.readline())
        while not ended.done():
            last = (await js.state(STREAM))["last_seq"]
            seen.append(max(0, last - index.position))
            await asyncio.sleep(LOOK)
        told = json.loads(await ended)
        end, last = time.monotonic(), (await js.state(STREAM))["last_seq"]
        await index.wait_for(last, 600)
        caught, used = time.monotonic() - end, time.process_time() - used
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await index.close()
        await child.wait()
    seen.sort()
    rate = told["records"] / told["seconds"]
    half, most = seen[len(seen) // 2], seen[min(len(seen) - 1, len(seen) * 99 // 100)]
    return {
        "offered_hops_per_second": hops,
        "written_hops_per_second": round(rate / RECORDS_A_HOP),
        "records": told["records"],
        "lag_records": {"p50": half, "p99": most, "most": seen[-1]},
        "lag_ms": {"p50": round(half / rate * 1000), "p99": round(most / rate * 1000), "most": round(seen[-1] / rate * 1000)},
        "caught_up_after_ms": round(caught * 1000),
        "index_us_of_processor_per_record": round(used / told["records"] * 1e6, 1),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "seconds": round(end - before, 1),
    }  # fmt: skip


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hops", type=int, default=1000)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--publish", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.publish:
        return asyncio.run(publish(given.publish, given.hops, given.seconds))
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(measure(given.hops, given.seconds, Path(folder))), indent=1))


if __name__ == "__main__":
    main()
