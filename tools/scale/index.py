"""The index: its size, what projecting costs, and how long its questions take when it is large."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from remit_broker.adapters.jetstream import Message
from remit_broker.adapters.sqlite_index import SqliteIndex
from remit_broker.core.listing import ChainFilter
from tools.scale.machine import cpu, rss, size
from tools.scale.sample import Txns

HOPS_PER_TXN: Final = 10
GROUP: Final = 500
"""Records of one transaction of the database, as under load."""


async def index(folder: Path, hops: int, say: Any) -> list[dict[str, Any]]:
    """Rows for a tenth of ``hops``, and for all of them."""
    path, txns, seq, done, rows = folder / "index" / "index.db", Txns(), 1, 0, list[dict[str, Any]]()
    found = await SqliteIndex.open(path)
    group: list[Message] = []
    _, written = txns.whole(0)
    projecting, records = 0.0, 0
    try:
        for mark in (hops // 10, hops):
            while done < mark:
                _, written = txns.whole(HOPS_PER_TXN)
                group += txns.messages(written, seq)
                seq, done = seq + len(written), done + HOPS_PER_TXN
                if len(group) >= GROUP or done >= mark:
                    used = cpu()
                    await found.add(group)
                    projecting, records, group = projecting + cpu() - used, records + len(group), []
            rows.append(
                {
                    "hops": done, "records": records, "index_mib": round(size(path.parent)),
                    "projecting_cpu_us_per_record": round(projecting / records * 1e6), "process_mib": round(rss()),
                    **await _questions(found, written[-1].txn, written[-1].hop),
                }
            )  # fmt: skip
            say(json.dumps(rows[-1]))
    finally:
        await found.close()
    return rows


async def _questions(index: SqliteIndex, txn: str, hop: str) -> dict[str, float]:
    """Milliseconds of each question, the best of five."""
    future = "2030-01-01T00:00:00.000Z"
    asked: dict[str, Callable[[], Awaitable[Any]]] = {
        "newest_chains_ms": lambda: index.chains("default", ChainFilter(limit=50)),
        "chains_of_a_user_ms": lambda: index.chains("default", ChainFilter(user="ann@example.org", limit=50)),
        "nobodys_chains_ms": lambda: index.chains("default", ChainFilter(user=secrets.token_hex(4), limit=50)),
        "one_chain_ms": lambda: index.chain("default", txn),
        "a_hop_by_its_beginning_ms": lambda: index.hops_like("default", hop[:8]),
        "overdue_hops_ms": lambda: index.overdue(int(time.time() * 1000), 30_000),
        "expired_txns_ms": lambda: index.expired_txns(int(time.time())),
        "idle_txns_ms": lambda: index.idle_txns(future, 100),
    }
    told = {}
    for name, ask in asked.items():
        best = float("inf")
        for _ in range(5):
            began = time.perf_counter()
            await ask()
            best = min(best, time.perf_counter() - began)
        told[name] = round(best * 1000, 2)
    return told
