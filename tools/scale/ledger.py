"""What an append costs: per kind of stream, and per number of txns that are in it already."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from nats.aio.client import Client

from remit_broker.adapters.jetstream import EXPECT_STREAM, EXPECT_SUBJECT, JetStream
from remit_broker.adapters.jetstream_ledger import STREAM, JetStreamLedger
from remit_broker.adapters.ledger_memory import subject_of
from remit_schemas.records import HopClosed, TxnOpened
from tools.scale.machine import Server, connected, cpu, one_server, rss, size, three_servers
from tools.scale.sample import Txns

BATCH: Final = 1000
STEPS: Final = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)


async def streams(folder: Path, appends: int) -> list[dict[str, Any]]:
    """One row for each kind of stream: appends by the broker's own ledger, in ever more txns."""
    rows = []
    for name, sync in (("one server, default sync", "default"), ("one server, sync always", "always")):
        async with one_server(folder / name.replace(" ", "-"), sync) as (server, nc):  # type: ignore[arg-type]
            rows.append({"stream": name, **await _appended(nc, [server], 1, appends)})
    async with three_servers(folder / "three", "default") as (servers, nc):
        rows.append({"stream": "three servers, default sync", **await _appended(nc, servers, 3, appends)})
    return rows


async def _appended(nc: Client, servers: Sequence[Server], replicas: int, appends: int) -> dict[str, Any]:
    ledger, txns = await _started(nc, replicas), Txns()
    found: dict[str, Any] = {}
    for flight in (1, 64, 256):
        found |= await _round(ledger, txns, servers, min(appends, appends // 4 if flight == 1 else appends), flight)
    return found


async def _started(nc: Client, replicas: int) -> JetStreamLedger:
    async with asyncio.timeout(60):
        while True:  # a cluster needs a moment to place a stream
            with contextlib.suppress(Exception):
                return await JetStreamLedger.start(nc, replicas=replicas, patience=30.0, attempt=10.0)
            await asyncio.sleep(0.1)


async def _round(
    ledger: JetStreamLedger, txns: Txns, servers: Sequence[Server], count: int, flight: int
) -> dict[str, Any]:
    """``count`` txns opened, ``flight`` of them at any time. Processor time in µs a record, latency in µs."""
    records = [txns.first() for _ in range(count)]
    waiting, nanos = iter(records), list[int]()

    async def worker() -> None:
        for record in waiting:
            began = time.perf_counter_ns()
            await ledger.create(record, txns.grant)
            nanos.append(time.perf_counter_ns() - began)

    mine, theirs, began = cpu(), [cpu(server.pid) for server in servers], time.monotonic()
    await asyncio.gather(*(worker() for _ in range(flight)))
    seconds = time.monotonic() - began
    used = sum(cpu(server.pid) for server in servers) - sum(theirs)
    nanos.sort()
    return {
        f"per_second_{flight}": round(count / seconds),
        f"p50_us_{flight}": round(nanos[len(nanos) // 2] / 1000),
        f"server_cpu_us_{flight}": round(used / count * 1e6),
        f"broker_cpu_us_{flight}": round((cpu() - mine) / count * 1e6),
    }


async def subjects(folder: Path, most: int, appends: int, say: Any) -> list[dict[str, Any]]:
    """One row for each number of txns in the stream, up to ``most``; the last two are of restarts."""
    rows: list[dict[str, Any]] = []
    async with one_server(folder / "subjects", "default") as (server, nc):
        ledger, txns, filled = await _started(nc, 1), Txns(), 0
        empty = rss(server.pid)
        for mark in [step for step in STEPS if step < most] + [most]:
            await _fill(nc, txns, mark - filled)
            row: dict[str, Any] = {"txns": mark, "server_mib": round(rss(server.pid)), "empty_mib": round(empty)}
            row |= await _round(ledger, txns, [server], appends, 1)
            row |= await _round(ledger, txns, [server], appends, 64)
            row |= await _next_records(ledger, txns, server, appends)
            row |= await _asked(nc, server)
            filled = mark + 2 * appends
            rows.append({**row, "store_mib": round(size(server.folder))})
            say(json.dumps(rows[-1]))
        await nc.close()
        rows += [await _restarted(server, kill, say) for kill in (False, True)]
    return rows


async def _next_records(ledger: JetStreamLedger, txns: Txns, server: Server, appends: int) -> dict[str, Any]:
    """Hops opened and closed in 64 txns that this replica knows, one append at a time: what nearly every append is. µs."""
    opened = [await ledger.create(txns.first(), txns.grant) for _ in range(64)]
    planned = [(fold, iter(txns.hops(fold, max(appends // 128, 1))[1])) for fold in opened]
    used, nanos = cpu(server.pid), list[int]()
    for _ in range(2 * max(appends // 128, 1)):
        for fold, records in planned:
            record = next(records)
            async with ledger.turn(fold.tenant, fold.txn) as turn:
                began = time.perf_counter_ns()
                await turn.append(record, None if isinstance(record, HopClosed) else txns.grant)
                nanos.append(time.perf_counter_ns() - began)
    nanos.sort()
    return {
        "next_record_p50_us": round(nanos[len(nanos) // 2] / 1000),
        "next_record_server_cpu_us": round((cpu(server.pid) - used) / len(nanos) * 1e6),
    }


async def _fill(nc: Client, txns: Txns, count: int) -> None:
    """``count`` new txns of one record, by the same compare-and-set as the ledger's, many at once."""
    js, headers = JetStream(nc, timeout=60.0), {EXPECT_SUBJECT: "0", EXPECT_STREAM: STREAM}

    async def publish(record: TxnOpened) -> None:
        ack = await js.publish(subject_of((record.tenant, record.txn)), txns.entry(record), headers)
        if ack.error is not None:
            raise RuntimeError(ack.error.description)

    for begun in range(0, count, BATCH):
        await asyncio.gather(*(publish(txns.first()) for _ in range(min(BATCH, count - begun))))


async def _asked(nc: Client, server: Server) -> dict[str, Any]:
    """What it costs to ask for the stream's state, and to read a txn that this replica does not remember: of any age, or new. µs."""
    js = JetStream(nc, timeout=60.0)
    last = (await js.state(STREAM))["last_seq"]
    used, began = cpu(server.pid), time.monotonic()
    for _ in range(50):
        await js.state(STREAM)
    info, info_cpu = (time.monotonic() - began) / 50, (cpu(server.pid) - used) / 50
    told = {"stream_info_us": round(info * 1e6), "stream_info_server_cpu_us": round(info_cpu * 1e6)}
    for name, seqs in (("new", range(max(last - 63, 1), last + 1)), ("old", range(1, last, max(last // 64, 1)))):
        found = [message.subject for seq in seqs if (message := await js.at(STREAM, seq))]
        fresh = await JetStreamLedger.start(nc)  # remembers nothing
        used, began = cpu(server.pid), time.monotonic()
        for subject in found:
            _, tenant, txn = subject.split(".")
            await fresh.newest(tenant, txn)
        told[f"{name}_txn_us"] = round((time.monotonic() - began) / len(found) * 1e6)
        told[f"{name}_txn_server_cpu_us"] = round((cpu(server.pid) - used) / len(found) * 1e6)
    return told


async def _restarted(server: Server, kill: bool, say: Any) -> dict[str, Any]:
    """Ended and started again; ready when the stream answers."""
    await server.end(kill)
    began = time.monotonic()
    await server.start()
    nc = await connected(server)
    js = JetStream(nc, timeout=60.0)
    state = await js.state(STREAM)
    row = {
        "restart_after": "kill -9" if kill else "a stop", "txns": state["num_subjects"],
        "seconds": round(time.monotonic() - began, 1), "server_cpu_s": round(cpu(server.pid), 1),
        "server_mib": round(rss(server.pid)),
    }  # fmt: skip
    await nc.close()
    say(json.dumps(row))
    return row
