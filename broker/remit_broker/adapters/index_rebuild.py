"""The index made again from the streams, where no broker runs on the data folder: the roots of its trees must come out the same."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final

import msgspec
from nats.aio.client import Client

from remit_broker.adapters import jetstream_ledger, refusal_stream
from remit_broker.adapters.audit import INDEX, serving
from remit_broker.adapters.errors import ConfigError
from remit_broker.adapters.jetstream import NO_STREAM, ApiError, JetStream
from remit_broker.adapters.keyfiles import KeyFiles
from remit_broker.adapters.nats_connect import connect
from remit_broker.adapters.sqlite_index import SqliteIndex
from remit_broker.adapters.stream_tail import Regressed

SECONDS: Final = 600.0
"""How long no progress is waited for."""


class Rebuilt(msgspec.Struct, frozen=True, kw_only=True):
    """What was made. ``differs`` names what is not as it was; empty where the trees are the same."""

    records: int
    refusals: int
    ledger_root: str
    refusals_root: str
    differs: tuple[str, ...] = ()


async def rebuild(data: Path, url: str, *, sync: Any = "always") -> Rebuilt:
    """Empty the index of the data folder and make it again. Raises :class:`ConfigError` or :class:`ServiceError`.

    Interrupted, it is finished by the next broker that starts, or by doing it again.
    """
    keys = KeyFiles.open(data)
    async with serving(keys, url, sync) as at:
        nc = await connect(at, keys, "core")
        index = await SqliteIndex.open(data / INDEX)
        try:
            return await _rebuilt(index, nc)
        finally:
            await index.close()
            await nc.close()


async def _rebuilt(index: SqliteIndex, nc: Client) -> Rebuilt:
    trees = (jetstream_ledger.STREAM, refusal_stream.STREAM)
    states = [await _state(nc, tree) for tree in trees]
    try:
        await index.check(nc)
    except Regressed as lost:
        raise ConfigError(
            str(lost), "restore the data folder from a backup; remit audit verify says what is missing"
        ) from None
    before = [await index.proofs.tree(tree) for tree in trees]
    await index.rebuild(states[1].get("first_seq", 1))
    following = asyncio.create_task(index.run(nc))
    try:
        await index.wait_for(states[0].get("last_seq", 0), SECONDS)
        await index.wait_for_refusals(states[1].get("last_seq", 0), SECONDS)
    except TimeoutError as late:
        raise ConfigError(
            f"the index cannot be made again: {index.halted or late}", "remit audit verify says where"
        ) from None
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    after = [await index.proofs.tree(tree, was.size) for tree, was in zip(trees, before, strict=True)]
    now = [await index.proofs.tree(tree) for tree in trees]
    differs = [
        f"the first {was.size} leaves of {tree} have another root than before"
        for tree, was, found in zip(trees, before, after, strict=True)
        if was.root != found.root
    ]
    for tree in trees:
        differs += await index.proofs.differing(tree)
    return Rebuilt(
        records=now[0].size,
        refusals=now[1].size,
        ledger_root=now[0].root.hex(),
        refusals_root=now[1].root.hex(),
        differs=tuple(differs),
    )


async def _state(nc: Client, stream: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = await JetStream(nc).state(stream)
    except ApiError as error:
        if error.code != NO_STREAM:
            raise
        return {}
    return found
