"""The ledger as anybody with a NATS client sees it: plain nats-py, nothing of the broker."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import nats
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from tests.chaos.journal import Journal

Json = dict[str, Any]


class Stored(NamedTuple):
    """A message of a stream: its sequence, when the server took it (Unix seconds), its JSON, and its subject."""

    seq: int
    stored: float
    body: Json
    subject: str


async def _quiet(_: Exception) -> None:
    """Servers die; that is what this is about."""


@asynccontextmanager
async def connected(urls: str, seed: str) -> AsyncIterator[Client]:
    """A connection as the broker's own user of the account CORE."""
    nc = await nats.connect(
        urls.split(","), nkeys_seed_str=seed, inbox_prefix="_INBOX_chaos", error_cb=_quiet, allow_reconnect=False,
        connect_timeout=2,
    )  # fmt: skip
    try:
        yield nc
    finally:
        with contextlib.suppress(Exception):
            await nc.close()


async def after(nc: Client, stream: str, seq: int) -> AsyncIterator[list[Stored]]:
    """Batches of what stands in a stream after ``seq``, until there is no more for now."""
    js = nc.jetstream(timeout=2)
    while True:
        config = ConsumerConfig(
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=seq + 1, ack_policy=AckPolicy.NONE,
            inactive_threshold=10, num_replicas=1, mem_storage=True,
        )  # fmt: skip
        state = (await js.stream_info(stream)).state
        if state.last_seq <= seq:
            return
        puller = await js.pull_subscribe("", stream=stream, config=config)
        try:
            while seq < state.last_seq:
                found = await puller.fetch(256, timeout=2)
                batch = [_stored(message) for message in found]
                seq = batch[-1].seq
                yield batch
        finally:
            with contextlib.suppress(Exception):
                await puller.unsubscribe()


def _stored(message: Msg) -> Stored:
    parts = message.reply.split(".")
    # $JS.ACK.[domain.account.]stream.consumer.delivered.stream_seq.consumer_seq.time.pending[.token]
    at = 5 if len(parts) == 9 else 7
    return Stored(int(parts[at]), int(parts[at + 2]) / 1e9, json.loads(message.data), message.subject)


async def everything(urls: str, seed: str, stream: str, seconds: float = 60) -> list[Stored]:
    """A whole stream, asked for again while the servers still find each other."""
    until = asyncio.get_running_loop().time() + seconds
    while True:
        try:
            async with connected(urls, seed) as nc:
                return [message async for batch in after(nc, stream, 0) for message in batch]
        except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError):
            if asyncio.get_running_loop().time() > until:
                raise
        await asyncio.sleep(0.5)


async def follow(urls: str, seed: str, journal: Journal) -> None:
    """Write down every record of the ledger as soon as a reader sees it, until cancelled."""
    seq = 0
    while True:
        with contextlib.suppress(Exception):
            async with connected(urls, seed) as nc:
                while True:
                    async for batch in after(nc, "LEDGER", seq):
                        for message in batch:
                            journal.write("seen", seq=message.seq, hash=message.body["record"]["hash"])
                        seq = batch[-1].seq
                    await asyncio.sleep(0.3)
        await asyncio.sleep(0.3)
