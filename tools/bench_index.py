"""What the index takes: records a second, questions at a million records, proofs, and the check of a log and of evidence.

``python -m tools.bench_index [--records N]`` makes N records of tasks of five hops, projects them in batches as a broker does (FULL
sync, trees and checkpoints included) into a file of its own, and asks. Times of questions are the best of several, in processor time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import sqlite3
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from remit_broker.adapters.index_proofs import signer
from remit_broker.adapters.jetstream import Message
from remit_broker.adapters.sqlite_index import SqliteIndex
from remit_broker.core.audit import Audit
from remit_broker.core.evidence import export, verify_evidence
from remit_broker.core.listing import ChainFilter, LogFilter
from remit_schemas.budget import Budget
from remit_schemas.keys import KeySet, SigningKey
from tests.support.story import Story, hop_id, opened

BATCH = 512
KEY = SigningKey.from_seed(b"\x03" * 32, "checkpoint")
HOPS = 5


def stories(count: int) -> Iterator[bytes]:
    """Messages of tasks that run sixteen at a time, so that records of several stand between each other."""
    tools = ("mcp/files/read_file", "mcp/git/git_log", "agent/researcher/brief", "agent/critic/review", "mcp/mail/send")
    made = 0
    for group in itertools.count():
        running = []
        for number in range(16):
            txn = f"{group * 16 + number + 1:032x}"
            at = f"2026-11-{1 + group % 28:02d}T{group // 28 % 24:02d}:{number:02d}:11.000Z"
            story = Story(opened(txn, user=f"user{(group + number) % 97}", agent=f"agent{number % 7}", at=at))
            for hop in range(HOPS):
                labels = ("pii",) if (group + number) % 20 == 0 else ()
                story.open(
                    hop_id(hop + 1), budget=Budget(100, 10, 2), resource=tools[(group + hop) % 5], at=at, labels=labels
                )
                spent = Budget(10, 0, 0)
                if (group + hop) % 50 == 0:
                    story.close(
                        hop_id(hop + 1), spent, "error", code="TARGET_UNAVAILABLE", reason="it answered nothing", at=at
                    )
                else:
                    story.close(hop_id(hop + 1), spent, at=at)
            story.end()
            running.append(story.records)
        for together in zip(*running, strict=True):
            for record in together:
                yield msgspec.json.encode({"record": record, "grant": None})
                made += 1
                if made == count:
                    return


def messages(count: int) -> Iterator[Message]:
    """Them, as they stand in the stream."""
    for seq, data in enumerate(stories(count), start=1):
        txn = json.loads(data)["record"]["txn"]
        yield Message(seq, f"ledger.default.{txn}", data)


async def best(work: Callable[[], Awaitable[Any]], times: int = 9) -> float:
    """Milliseconds of processor time of the fastest: what else the machine does is not counted."""
    taken = []
    for _ in range(times):
        before = time.process_time()
        await work()
        taken.append(time.process_time() - before)
    return round(min(taken) * 1000, 3)


async def measure(count: int, folder: Path) -> dict[str, Any]:
    """Everything."""
    index = await SqliteIndex.open(folder / "index.db")
    index.signed_with(signer("https://remit.example", KEY))
    source, wall, cpu = messages(count), 0.0, 0.0
    while batch := list(itertools.islice(source, BATCH)):
        before, used = time.perf_counter(), time.process_time()
        await index.add(batch)
        wall, cpu = wall + time.perf_counter() - before, cpu + time.process_time() - used
    txn = f"{count // 3 // (2 + 2 * HOPS):032x}"
    chain = await index.chain("default", txn)
    proofs = await index.proofs.of(chain, [])
    assert proofs is not None and chain[-1]["record"]["kind"] == "txn.closed"
    evidence = export(chain, [], KeySet([KEY.public]).to_jwks(), proofs)
    filters = {
        "newest": ChainFilter(), "user": ChainFilter(user="user5"), "agent": ChainFilter(agent="critic"),
        "server": ChainFilter(server="mail"), "tool": ChainFilter(tool="mcp/mail/send"),
        "beginning of a tool": ChainFilter(tool="mcp/m"),
        "decision": ChainFilter(decision="allow"), "rule": ChainFilter(rule="default"), "code": ChainFilter(code="TARGET_UNAVAILABLE"),
        "label": ChainFilter(label="pii"), "words of a reason": ChainFilter(reason="answered nothing"),
        "cost at least": ChainFilter(min_usd_micros=50), "cost at most": ChainFilter(max_usd_micros=50),
        "time": ChainFilter(since="2026-11-20T00:00:00.000Z", until="2026-11-21T00:00:00.000Z"),
        "user and tool": ChainFilter(user="user5", tool="mcp/mail/send"), "nobody": ChainFilter(user="nobody"),
        "two that hardly meet": ChainFilter(label="pii", code="TARGET_UNAVAILABLE"),
    }  # fmt: skip
    told: dict[str, Any] = {
        "records": count,
        "index_records_per_second": round(count / wall),
        "index_us_of_processor_per_record": round(cpu / count * 1e6, 1),
        "index_mib": round((folder / "index.db").stat().st_size / 2**20),
        "chain_ms": await best(lambda: index.chain("default", txn)),
        "proof_ms": await best(lambda: index.proofs.of(chain, [])),
        "page_ms": {name: await best(lambda it=it: index.chains("default", it)) for name, it in filters.items()},  # type: ignore[misc]
        "last_page_ms": await best(
            lambda: index.chains("default", ChainFilter(tool="mcp/mail/", until="2026-11-01T01:00:00.000Z"))
        ),
        "decisions_page_ms": await best(lambda: index.decisions("default", count // 2, "opened", 500)),
        "log_page_ms": await best(lambda: index.log("default", LogFilter(after=f"{count // 2}.0", limit=500))),
        "log_page_of_a_small_tenant_ms": await best(lambda: index.log("acme", LogFilter(limit=500))),
        "evidence_bytes": len(json.dumps(evidence)),
        "proof_hashes": len(proofs.proof.hashes),
    }
    await index.close()
    told["migration_0007_s_of_processor"] = await migrated(folder / "index.db")
    return told | checks(min(count, 100_000), evidence)


OF_SIX = """
DROP TABLE mark; DROP TABLE stamp; DROP INDEX record_by_tenant; DROP INDEX refusal_by_tenant;
CREATE INDEX hop_by_resource ON hop (tenant, resource); CREATE INDEX hop_by_callee ON hop (tenant, callee);
CREATE INDEX hop_by_caller ON hop (tenant, caller); CREATE INDEX hop_by_code ON hop (tenant, code);
CREATE INDEX txn_by_user ON txn (tenant, user); PRAGMA user_version = 6;
"""
"""Makes of a file of today one of before the marks; what the indexes that are dropped look like does not matter."""


async def migrated(path: Path) -> float:
    """Seconds that opening a file of before takes: all its marks are made."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(OF_SIX)
    before = time.process_time()
    index = await SqliteIndex.open(path)
    taken = time.process_time() - before
    await index.close()
    return round(taken, 2)


def checks(count: int, evidence: dict[str, Any]) -> dict[str, Any]:
    """What the audit of a log takes, and the proof in one file of evidence (its grants are not there)."""
    taken = 0.0
    found = Audit(KeySet([KEY.public]))
    source = messages(count)
    while batch := list(itertools.islice(source, 1000)):
        before = time.process_time()
        for message in batch:
            found.entry(message.seq, message.subject, message.data)
        taken += time.process_time() - before
    before = time.process_time()
    verify_evidence(evidence, KeySet([KEY.public]))
    return {
        "audit_s_of_processor_per_100k": round(taken / count * 100_000, 2),
        "verify_evidence_ms_of_processor": round((time.process_time() - before) * 1000, 2),
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(measure(given.records, Path(folder))), indent=1))


if __name__ == "__main__":
    main()
