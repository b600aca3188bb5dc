"""What a broker says of itself and of the others: ``/readyz``, ``/metrics``, ``/api/status``, and its heartbeats."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import msgspec
from nats.aio.msg import Msg

from remit_broker import __version__, gauges
from remit_broker.adapters.agreement import Shared
from remit_broker.adapters.cedar import CedarEngine
from remit_broker.adapters.identities import Issuers
from remit_broker.adapters.jetstream_ledger import JetStreamLedger
from remit_broker.adapters.kv_accounts import KvAccounts
from remit_broker.adapters.nats_connect import Connections
from remit_broker.adapters.observer import RecordObserver
from remit_broker.adapters.refusal_stream import RefusalStream
from remit_broker.adapters.revocations import KvRevocations
from remit_broker.adapters.sqlite_index import SqliteIndex
from remit_broker.config import Settings
from remit_broker.core.exposition import merged
from remit_broker.core.revocations import Entry
from remit_broker.core.times import rfc3339
from remit_broker.hop.pipeline import STAGES
from remit_broker.premises import Place
from remit_schemas.errors import Refusal
from remit_schemas.names import DEFAULT_TENANT

METRICS: Final = "remit.metrics"
"""Subject in the broker's own account on which the replicas of a group are asked for their metrics."""
GATHER: Final = 1.0
"""Seconds the others have for that."""

RULING: Final = (
    "issuer", "limits", "policy", "prices", "labels", "endorsers", "content", "tool_groups", "caps", "rates",
    "tenants",
    "issuers", "development",
)  # fmt: skip
"""Tables of the configuration that decide what happens: replicas must agree on them."""


class Health:
    """Of one replica. Fields that only the one with the HTTP edge has are None elsewhere."""

    def __init__(
        self,
        settings: Settings,
        place: Place,
        replica: str,
        shared: Shared,
        nats: Connections,
        observer: RecordObserver,
    ) -> None:
        self._settings, self._place, self._replica, self._shared = settings, place, replica, shared
        self._nats, self._observer = nats, observer
        self._started = time.time()
        self.ledger: JetStreamLedger | None = None
        self.refusals: RefusalStream | None = None
        self.revocations: KvRevocations | None = None
        self.index: SqliteIndex | None = None
        self.ends: Callable[[], Awaitable[tuple[int, int]]] = _nowhere
        """Where the ledger and the refusals end."""
        self.accounts: KvAccounts | None = None
        self.engine: CedarEngine | None = None
        self.issuers: Issuers | None = None
        self.load: Callable[[], gauges.Load] = lambda: gauges.Load(0, 0, 0)
        self.servers: Callable[[], Iterable[str]] = tuple
        """The states of the MCP servers that are run here."""

    @property
    def policy(self) -> str:
        """The revision of the policies in force."""
        return self.engine.revision if self.engine else ""

    async def start(self) -> None:
        """Answer the others of this group."""
        if self._place.size > 1:
            await self._nats.core.subscribe(f"{METRICS}.{self._place.group}", cb=self._on_metrics)

    def about(self) -> dict[str, Any]:
        """What the heartbeats say: what should be the same everywhere, and where this replica is."""
        config = msgspec.to_builtins(self._settings.config)
        ruling = {key: config[key] for key in RULING}
        return {
            "group": self._place.group,
            "edge": self._place.edge,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": round(self._started, 3),
            "version": __version__,
            "keys": hashlib.sha256(msgspec.json.encode(self._shared)).hexdigest()[:12],
            "policy": self.policy[:12],
            "policy_trouble": self.engine.trouble[:300] if self.engine else "",
            "config": hashlib.sha256(json.dumps(ruling, sort_keys=True).encode()).hexdigest()[:12],
        }

    def replicas(self) -> list[dict[str, Any]]:
        """Every replica that was heard lately, this one too: ``replica``, ``silent`` (seconds), ``me`` and what it says of itself."""
        if self.revocations is None:
            return []
        peers = self.revocations.presence.peers(time.monotonic(), self._settings.config.limits.replica_silence)
        return [
            {
                "replica": peer.replica,
                "silent": round(peer.silent, 3),
                "me": peer.replica == self._replica,
                **peer.about,
            }
            for peer in peers
        ]

    async def orphans(self, limit: int = 100) -> list[dict[str, str]]:
        """Open hops whose replica is silent or whose deadline is over: they wait for the scan."""
        if self.index is None or self.revocations is None:
            return []
        limits, now, mono = self._settings.config.limits, time.time(), time.monotonic()
        presence = self.revocations.presence
        silent = [
            (hop.txn, hop.hop)
            for hop in await self.index.running_hops(rfc3339(now - limits.replica_silence))
            if presence.silence(hop.by, mono) > limits.replica_silence
        ]
        late = [(hop.txn, hop.hop) for hop in await self.index.overdue(int(now * 1000), 1000)]
        return [{"txn": txn, "hop": hop} for txn, hop in sorted({*silent, *late})[:limit]]

    def group(self) -> dict[str, int]:
        """How many processes this ``remit up`` has, and how many of them were heard within two seconds."""
        mine = [one for one in self.replicas() if one.get("group") == self._place.group and one["silent"] < 2]
        return {"expected": self._place.size, "alive": len(mine)}

    def troubles(self) -> dict[str, tuple[str, str | None]]:
        """By part: what may be told to anybody, and the cause for operators (None where all is well)."""
        lost = self.refusals.lost if self.refusals and self.refusals.failing else 0
        fresh = self.revocations is not None and self.revocations.fresh
        found: dict[str, tuple[str, str | None]] = {
            "ledger": (
                "an acknowledged record is missing or another one", self.ledger.trouble if self.ledger else None
            ),
            "room": ("the ledger is nearly full: nothing new is opened", self.ledger.room.full if self.ledger else None),
            "revocations": ("no heartbeat was heard for two seconds", None if fresh else "the watch is silent"),
            "refusals": ("some could not be recorded", f"{lost} calls" if lost else None),
        }  # fmt: skip
        if self.accounts is not None:
            found["caps"] = ("clocks, or the caps of several brokers, do not agree", self.accounts.trouble)
        if self.index is not None:
            found["index"] = ("it does not follow the ledger", self.index.halted or self.index.trouble)
        return found

    def problems(self) -> dict[str, str]:
        """What is wrong, by part, without its private causes: anybody on this machine may ask. ``/api/status`` says why."""
        wrong = {part: told for part, (told, cause) in self.troubles().items() if cause}
        for name, connection in self._nats.named().items():
            if not connection.is_connected:
                wrong[f"bus.{name.partition('.')[0]}"] = "not connected"  # tenants are not named to everybody
        return wrong

    async def status(self, tenant: str | None = None) -> dict[str, Any]:
        """What runs, read from what runs: the NATS server says how it syncs, the stream how often it is replicated.

        With ``tenant``, what somebody may know to whom only that one's matters are told.
        """
        if tenant is not None:
            return await self._of_tenant(tenant)
        answer = await self._nats.sys.request("$SYS.REQ.SERVER.PING.JSZ", b'{"config":true}', timeout=2)
        config = json.loads(answer.data)["data"].get("config", {})
        always = bool(config.get("sync_always"))
        stream = await self._nats.core.jetstream().stream_info("LEDGER")
        revocations = self.revocations
        return {
            "version": __version__,
            "replica": self._replica,
            "sync": "always" if always else f"every {config.get('sync_interval', 0) / 1e9:g} s",
            "ledger_replicas": stream.config.num_replicas,
            "ledger_storage": stream.config.storage,
            "stages": [stage.__name__.rstrip("_") for stage in STAGES],
            "policy": self.policy,
            "policy_trouble": self.engine.trouble if self.engine else "",
            "rulings": self.engine is not None and not self.engine.rulings.silent,
            "troubles": {part: cause for part, (_, cause) in self.troubles().items() if cause},
            "users": {
                "auth": self._settings.config.http.auth,
                "issuers": [source.issuer.name for source in self.issuers.sources] if self.issuers else [],
                "silent": self.issuers.troubles() if self.issuers else {},
                "development": self._settings.config.development.issuer,
            },
            "paused": msgspec.to_builtins(revocations.paused) if revocations else None,
            "revoked": [_named(one) for one in revocations.entries() if one.state == "revoked"] if revocations else [],
            "replicas": self.replicas(),
            "orphans": await self.orphans(),
            "tenants": list(self._settings.tenants),
            "removed_tenants": await self.removed_tenants(),
            "group": self.group(),
            "index": {"position": self.index.position, "ledger": (await self.ends())[0]} if self.index else None,
        }

    async def _of_tenant(self, tenant: str) -> dict[str, Any]:
        """INVARIANT: no name and no count of another tenant (test_an_operator_of_one_tenant_reaches_no_other)."""
        revocations = self.revocations
        mine = revocations.of(tenant).entries() if revocations else []
        return {
            "version": __version__,
            "policy": self.policy,
            "paused": revocations is not None and revocations.paused is not None,
            "revoked": [str(one) for one in mine if one.state == "revoked" and one.kind != "all"],
        }

    async def removed_tenants(self) -> dict[str, int]:
        """Tenants that the configuration names no more, and how many tasks of each are open still."""
        if self.index is None:
            return {}
        there = await self.index.open_tenants()
        return {tenant: count for tenant, count in there.items() if tenant not in self._settings.tenants}

    async def metrics(self) -> bytes:
        """This replica's metrics; of a group, those of all that answer, told apart by the label ``replica``."""
        own = await self._own()
        if self._place.size == 1:
            return own
        texts = {self._replica: own.decode()}
        ear = await self._nats.core.subscribe(inbox := self._nats.core.new_inbox())
        try:
            await self._nats.core.publish(f"{METRICS}.{self._place.group}", b"", reply=inbox)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GATHER):
                    while len(texts) < self._place.size:
                        told = await ear.next_msg(GATHER)
                        texts[(told.headers or {}).get("Replica", "")] = told.data.decode()
        finally:
            await ear.unsubscribe()
        texts.pop("", None)
        return merged(texts).encode()

    async def _own(self) -> bytes:
        """What this process counted, and what is so now. What only one of a group can know, that one says."""
        now = [gauges.build(), *gauges.parts(self.troubles(), self.problems()), *gauges.load(self.load())]
        if self.index is not None:
            ends, there = await self.ends(), self.index.positions()
            behind = {"ledger": ends[0] - there[0], "refusals": ends[1] - there[1]}
            text = "Records that are in a stream and not in the index yet"
            now.append(gauges.of("remit_index_lag_records", text, "stream", {k: max(0, v) for k, v in behind.items()}))
            is_open = await self.index.open_now(int(time.time()))
            now.append(gauges.of("remit_open", "What has not ended; broken tasks hold no water", "what", is_open))
            now.append(gauges.of("remit_replicas", "Processes of this remit up", "state", self.group()))
            now.append(gauges.counted("remit_servers", "MCP servers that are run here", "state", self.servers()))
            if self.accounts is not None:
                with contextlib.suppress(Refusal):
                    rows = [row for tenant in self._settings.tenants for row in await self.accounts.report(tenant)]
                    now += gauges.used(rows)
        return self._observer.metrics() + gauges.text(now)

    async def _on_metrics(self, message: Msg) -> None:
        await self._nats.core.publish(message.reply, await self._own(), headers={"Replica": self._replica})


async def _nowhere() -> tuple[int, int]:
    return 0, 0


def _named(entry: Entry) -> str:
    return str(entry) if entry.tenant == DEFAULT_TENANT else f"{entry} of tenant {entry.tenant}"
