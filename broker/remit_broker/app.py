"""The wiring, once: which adapter stands behind which port, in which order things start, and how they stop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import os
import secrets
import time
from contextlib import AsyncExitStack
from typing import Any, Final

import msgspec

from remit_broker import __version__, identity
from remit_broker.adapters.admin_stream import ACCESSES, AdminStream
from remit_broker.adapters.agreement import agree, shared
from remit_broker.adapters.cedar import CedarEngine
from remit_broker.adapters.errors import ConfigError, ServiceError
from remit_broker.adapters.index_proofs import signer
from remit_broker.adapters.jetstream import JetStream, Unreachable
from remit_broker.adapters.jetstream_ledger import JetStreamLedger
from remit_broker.adapters.kept_results import ARGUMENTS, KvResults
from remit_broker.adapters.keyfiles import KeyFiles
from remit_broker.adapters.kick import Cutter
from remit_broker.adapters.kv_accounts import KvAccounts
from remit_broker.adapters.nats_bus import NatsBus
from remit_broker.adapters.nats_checks import require_servers
from remit_broker.adapters.nats_connect import Connections, connect_all
from remit_broker.adapters.nats_presence import Connected
from remit_broker.adapters.observer import RecordObserver
from remit_broker.adapters.otlp import OtlpSpans
from remit_broker.adapters.outbound import Outbound
from remit_broker.adapters.pace import Pace
from remit_broker.adapters.policy_archive import PolicyArchive
from remit_broker.adapters.policy_watch import PolicyWatch
from remit_broker.adapters.private_files import private_folder, write_private
from remit_broker.adapters.refusal_stream import RefusalStream
from remit_broker.adapters.registries import Registries
from remit_broker.adapters.registry import KvRegistry
from remit_broker.adapters.revocations import KvRevocations
from remit_broker.adapters.sqlite_index import SqliteIndex
from remit_broker.adapters.tasks import ended
from remit_broker.adapters.tidings import Tidings
from remit_broker.adapters.world import SystemClock
from remit_broker.clients import serve_clients
from remit_broker.commons import Stored, shared_ports
from remit_broker.config import Settings
from remit_broker.core.addresses import network
from remit_broker.core.effective import ineffective
from remit_broker.core.evidence import revisions
from remit_broker.edges.attach.servers_file import ServersFileError
from remit_broker.edges.bus import BusEdge
from remit_broker.edges.callout import Admitted
from remit_broker.edges.http import development
from remit_broker.edges.http.api import Api
from remit_broker.edges.http.app import HttpServer, application
from remit_broker.edges.http.desk import Desk
from remit_broker.edges.http.log import LogDesk
from remit_broker.edges.http.metrics import metrics_route
from remit_broker.edges.http.policy import PolicyDesk
from remit_broker.edges.http.vault import VaultDesk
from remit_broker.edges.inside import Calls
from remit_broker.edges.mcp.streamable import Streamable
from remit_broker.edges.registration import Registration
from remit_broker.enforcement import enforce
from remit_broker.gate import answer_callout
from remit_broker.gauges import Load
from remit_broker.health import Health
from remit_broker.notices import Notices
from remit_broker.ports import Ports
from remit_broker.premises import Place, bind_http, embed
from remit_broker.projection import Projection
from remit_broker.retention import Retention, open_vault
from remit_broker.signin import Signin, backends
from remit_broker.tenants import Tenant, without_tenant
from remit_broker.timestamping import Timestamping
from remit_broker.upkeep import Upkeep
from remit_broker.witnesses import Witnesses
from remit_schemas.names import DEFAULT_TENANT

log = logging.getLogger("remit")

ALONE: Final = Place()
SAID_AGAIN: Final = 60.0
"""Seconds after which what is wrong with a connection is logged again."""


class Broker:
    """One replica: everything from the NATS server (unless there is one) to the HTTP edge. ``async with`` it."""

    def __init__(self, settings: Settings, place: Place = ALONE) -> None:
        self.settings, self.place = settings, place
        self.replica = secrets.token_hex(4)
        self.http = ""
        self.bus = ""
        self.ended: asyncio.Event = asyncio.Event()
        """Set when something the broker cannot live without has ended."""
        self._pace = Pace()
        self._stack = AsyncExitStack()
        self._inside: dict[str, Calls] = {}
        self._clients: Streamable | None = None
        self._bus_said: dict[tuple[str, str], float] = {}

    async def __aenter__(self) -> Broker:
        try:
            await self._start()
        except Unreachable as gone:
            await self._stack.aclose()
            raise ServiceError(
                f"the NATS server at {self.bus} did not answer while the broker started: {gone}",
                "look at its log; start the broker again once the server answers",
            ) from None
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        settings, config, on_exit = self.settings, self.settings.config, self._stack
        private_folder(settings.data, create=True)
        self.keys = KeyFiles.open(settings.data, create=True)
        for found in ineffective(settings.caps, config.prices):
            log.warning("%s", found)
        server = self._bind_http() if self.place.edge else None
        self.observer = self._observe()
        self.bus = self.place.bus or config.bus.url or await self._embed()
        self.nats = await connect_all(self.bus, self.keys, self._bus_error, settings.others)
        on_exit.push_async_callback(_close, self.nats)
        if config.bus.url:
            await require_servers(self.nats, config.bus.replicas)
        common = shared(config.issuer, self.keys)
        await agree(self.nats.core.jetstream(), config.bus.replicas, common)
        self.health = Health(settings, self.place, self.replica, common, self.nats, self.observer)
        self.ledger = await JetStreamLedger.start(
            self.nats.core,
            replicas=config.bus.replicas,
            max_bytes=config.bus.ledger_bytes or -1,
            grouped=not config.bus.url and config.bus.sync == "always",
        )
        if not config.bus.url:
            self.ledger.room.on_disk(settings.data / "jetstream")
        ledger = self.ledger
        self.observer.watch("remit_ledger_races", "Appends before which another replica's came", lambda: ledger.races)
        self.observer.watch("remit_ledger_ambiguous", "Attempts to append without an answer", lambda: ledger.ambiguous)
        self._new_registry = functools.partial(
            KvRegistry, settings.prices, settings.labels, settings.endorsers, config.tool_groups
        )
        self.registries = Registries(self._new_registry(tenant=tenant) for tenant in settings.tenants)
        await self.registries.start(self.nats.core.jetstream(), config.bus.replicas, self.observer.fault)
        on_exit.push_async_callback(self.registries.stop)
        self.revocations = KvRevocations(SystemClock(), self.observer.fault, self.replica)
        on_exit.push_async_callback(self.revocations.stop)
        await self.revocations.start(self.nats.core.jetstream(), config.bus.replicas)
        await self._callout()
        await self._wire()
        await self._speak()
        if server is not None:
            await self._project()
        await self._take_requests()
        if server is not None:
            await self._serve(server)
            self._task(Upkeep(self.index, self.ports_of, self.revocations, config.limits).run())
            self._notify()
            self._witness()
            self._announce()
            for name, count in (await self.health.removed_tenants()).items():
                log.warning("tenant %s is in the configuration no more, but %d of its tasks are open", name, count)
        await self.health.start()

    def _notify(self) -> None:
        """Tell the webhook of requests for approvals, if there is one."""
        asked = self.settings.config.approvals
        if asked.webhook:
            outbound = Outbound(map(network, asked.webhook_allow))
            notices = Notices(asked.webhook, outbound, self.index, self.ports)
            self.observer.watch("remit_webhook_sent", "Requests for approvals that were told", lambda: notices.sent)
            self.observer.watch("remit_webhook_failed", "Attempts to tell one that failed", lambda: notices.failed)
            self._task(notices.run())

    def _witness(self) -> None:
        """Send checkpoints out of the house, if there is anywhere to send them."""
        told = self.settings.config.log
        if told.witnesses or told.file:
            file = self.settings.file.parent / told.file if told.file else None
            outbound = Outbound(map(network, told.witness_allow), named="log.witness_allow")
            witnesses = Witnesses(told.witnesses, file, outbound, self.index, self.observer)
            self.observer.watch("remit_witness_signed", "Checkpoints that a witness signed", lambda: witnesses.signed)
            self.observer.watch("remit_witness_failed", "Checkpoints that none did", lambda: witnesses.failed)
            self._task(witnesses.run())
        if told.tsa:
            outbound = Outbound(map(network, told.witness_allow), named="log.witness_allow")
            stamps = Timestamping(told.tsa, told.tsa_every, outbound, self.index, SystemClock(), self.observer)
            self.observer.watch("remit_timestamps", "Checkpoints that an authority stamped", lambda: stamps.stamped)
            self.observer.watch("remit_timestamps_failed", "Checkpoints that it did not", lambda: stamps.failed)
            self._task(stamps.run())

    def _bind_http(self) -> HttpServer:
        held = self.place.http
        server = bind_http(self.settings) if held is None else HttpServer.adopt(held)
        self.http = server.url
        return server

    async def _speak(self) -> None:
        """From now on the heartbeats say what runs here."""
        health = self.health
        health.ledger, health.refusals, health.revocations = self.ledger, self.refusals, self.revocations
        await self.revocations.speak(health.about)

    def _observe(self) -> RecordObserver:
        endpoint = self.settings.config.traces.endpoint
        if not OtlpSpans.wanted(endpoint):
            return RecordObserver(None)
        spans = OtlpSpans.to(endpoint, self.replica)
        # Among the first to be pushed, so among the last to stop: by then every hop has its close record.
        self._stack.push_async_callback(asyncio.to_thread, spans.stop)
        observer = RecordObserver(spans.emit)
        observer.watch("remit_spans_sent", "Spans that a collector took", lambda: spans.sent)
        observer.watch(
            "remit_spans_lost", "Spans that no collector took; the records have all of it", lambda: spans.lost
        )
        observer.gauge("remit_spans_waiting", "Spans that no collector has yet", lambda: spans.waiting)
        return observer

    async def _embed(self) -> str:
        server = await embed(self.settings, self.keys, self._server_died)
        self._stack.push_async_callback(server.stop)
        return server.url

    async def _server_died(self, status: int) -> None:
        self.observer.fault("nats-server", RuntimeError(f"the NATS server ended with {status}"))
        self.ended.set()

    def _bus_error(self, name: str, error: Exception) -> None:
        # Every attempt to connect again says the same two or three things: once a minute is enough.
        now = time.monotonic()
        if now - self._bus_said.get((name, str(error)), float("-inf")) > SAID_AGAIN:
            self._bus_said = {key: at for key, at in self._bus_said.items() if now - at <= SAID_AGAIN}
            self._bus_said[name, str(error)] = now
            log.warning("%s: %s", name, error)

    async def _callout(self) -> None:
        bus, limits = self.settings.config.bus, self.settings.config.limits
        if bus.callout == "process":
            return
        self.connected = Connected(
            self.nats.sys,
            limits.connections_per_agent,
            SystemClock(),
            clustered=bool(bus.url),
            tenants=self.settings.tenants,
        )
        await self.connected.start(self.observer.fault)
        self._stack.push_async_callback(self.connected.stop)
        admitted = Admitted(self.registries, self.revocations, self.connected)
        callout = await answer_callout(self.nats.auth, self.keys, admitted, bus, self.bus)
        self._stack.push_async_callback(callout.stop)

    async def _wire(self) -> None:
        config, clock = self.settings.config, SystemClock()
        self.refusals = await RefusalStream.start(self.nats.core, replicas=config.bus.replicas)
        self._stack.push_async_callback(self.refusals.stop)
        refusals = self.refusals
        self.observer.watch("remit_refusals_lost", "Refusals that could not be recorded", lambda: refusals.lost)
        self.accounts = KvAccounts(JetStream(self.nats.core), self.settings.caps, clock, self.replica)
        await self.accounts.start(config.bus.replicas, self.observer.fault)
        self.health.accounts = self.accounts
        self._stack.push_async_callback(self.accounts.stop)
        self.results = KvResults(self.keys.results_key, self.observer.fault)
        await self.results.start(
            self.nats.core.jetstream(), config.bus.replicas, config.results.ttl, config.results.bytes
        )
        arguments = KvResults(self.keys.results_key, self.observer.fault, ARGUMENTS)
        await arguments.start(
            self.nats.core.jetstream(), config.bus.replicas, config.approvals.ttl, config.results.bytes
        )
        self.vault = await open_vault(self.settings, self.keys, self.nats.core, self.observer)
        self.secrets, self.backends = await backends(self.settings, self.keys, clock, self.nats.core.jetstream())
        self.issuers = self.health.issuers = issuers = identity.issuers(config, self.place.url or self.http, clock)
        stored = Stored(self.ledger, self.refusals, self.accounts, self.results, arguments)
        common = shared_ports(self.settings, self.keys, clock, stored, self.http) | {
            "policy": self._police(), "observer": self.observer, "identities": issuers, "vault": self.vault,
        }  # fmt: skip
        self.tenants = {name: await self._tenant(name) for name in self.settings.tenants}
        for tenant in self.tenants.values():
            tenant.wire(common, self.settings, clock)
        cutter = Cutter(self.observer.fault)
        self._stack.push_async_callback(cutter.stop)
        enforce(self.revocations, self.tenants, cutter, self.nats.sys, clustered=bool(config.bus.url))

    def _police(self) -> CedarEngine:
        """The policies, kept at what their folder says, and what operators say about them."""
        self.policy = policy = CedarEngine.load(self.settings.policies)
        self.archive = PolicyArchive(self.settings.data)
        policy.kept_by(self.archive.keep)
        watch = PolicyWatch(policy, self.observer.fault)
        self.observer.watch("remit_policy_reloads", "Times that changed policies were taken", lambda: watch.reloads)
        self.observer.gauge(
            "remit_policy_stale", "Whether an edit of the policies is not valid", lambda: int(bool(policy.trouble))
        )
        self.revocations.on_entry(policy.rulings.apply)
        self.health.engine = policy
        self._task(watch.run())
        return policy

    async def _tenant(self, name: str) -> Tenant:
        bus = NatsBus(self.nats.of(name), self.replica, self.nats.core, self._pace.soon, tenant=name)
        await bus.start()
        revocations = self.revocations.of(name)
        admin = await AdminStream.start(self.nats.core, name, self.settings.config.bus.replicas)
        await admin.catch_up([entry for entry in revocations.entries() if entry.tenant == name])
        return Tenant(name, bus, self.registries.of(name), revocations, admin)

    def policy_desk(self, tenant: Tenant) -> PolicyDesk:
        """What operators of a tenant ask about policy, and say about it."""
        kept = (tenant.revocations, tenant.admin, self.index)
        return PolicyDesk(tenant.name, tenant.ports, kept, self.policy.knows, self.caught_up)

    def vault_desk(self, tenant: Tenant) -> VaultDesk:
        """The contents of a tenant's tasks, as far as they are kept."""
        kept = (tenant.admin, self.index, self.caught_up)
        return VaultDesk(tenant.name, tenant.ports, kept, self.vault, self.settings.config.vault.keeps)

    async def log_desk(self, tenant: Tenant) -> LogDesk:
        """What operators read of a tenant's log, and the record of that."""
        accesses = await AdminStream.start(self.nats.core, tenant.name, self.settings.config.bus.replicas, ACCESSES)
        return LogDesk(self.index, self.caught_up, accesses, tenant.ports.clock)

    @property
    def ports(self) -> Ports:
        """Those of the default tenant."""
        return self.tenants[DEFAULT_TENANT].ports

    @property
    def registry(self) -> KvRegistry:
        """That of the default tenant."""
        return self.registries.of(DEFAULT_TENANT)

    def ports_of(self, tenant: str) -> Ports:
        """Those of any tenant, also of one that is in the configuration no more: its tasks come to their end."""
        if (found := self.tenants.get(tenant)) is not None:
            return found.ports
        return without_tenant(self.ports, self._new_registry(tenant=tenant))

    async def _project(self) -> None:
        self._projection = await Projection.open(
            self.settings.data / "index" / "index.db",
            self.nats.core,
            self.ledger,
            self.refusals,
            clustered=self.settings.config.bus.replicas > 1,
        )
        self._stack.push_async_callback(self.index.close)
        self.health.index, self.health.ends = self.index, self._projection.ends
        self._task(self._projection.follow(self.nats.core, self.observer))
        sign = signer(self.settings.config.issuer, self.keys.sealing)
        self._task(self._projection.seal(sign, self.observer))

    @property
    def index(self) -> SqliteIndex:
        """The index of the one process of a group that has one."""
        return self._projection.index

    async def caught_up(self) -> None:
        """Wait until what was written before is in the index. Refuses LEDGER_UNAVAILABLE."""
        await self._projection.caught_up()

    async def evidence(self, tenant: str, txn: str) -> dict[str, Any]:
        """The evidence of one txn. Refuses UNKNOWN_TARGET."""
        found = await self._projection.evidence(tenant, txn, self.keys.jwks())
        return {**found, "policies": self.archive.texts(revisions(found), tenant)}

    async def _take_requests(self) -> None:
        told = {**self.published(), "models": msgspec.to_builtins(self.settings.models)}
        edges, shows = [], self.backends
        tidings = Tidings(self.nats.core, self._resources_changed)
        await tidings.start()
        for name, tenant in self.tenants.items():
            registration = Registration(tenant.registry, tenant.ports.detectors)
            edge = BusEdge(self.nats.of(name), name, tenant.ports, registration.attach, told, self._pace.soon, shows)
            edge.tidings = functools.partial(tidings.say, name)
            edge.traced = frozenset(self.settings.config.mcp.trace)
            await tenant.take_requests(edge)
            edges.append(edge)
            self._inside[name] = Calls(name, tenant.ports.clock, tenant.bus, edge.take)
        limits, pace, drain = self.settings.config.limits, self._pace, self.settings.config.limits.drain
        self.health.load = lambda: Load(sum(edge.in_hand for edge in edges), pace.waiting, limits.concurrency)
        self._stack.push_async_callback(lambda: asyncio.gather(*(edge.stop(drain) for edge in edges)))

    def _resources_changed(self, tenant: str, server: str, uris: tuple[str, ...]) -> None:
        if self._clients is not None:
            self._clients.updated(tenant, server, uris)

    def published(self) -> dict[str, Any]:
        """What an agent needs: the issuer and the public keys to verify grants with, and how long a connection lives."""
        config = self.settings.config
        return {"issuer": config.issuer, "jwks": self.keys.jwks(), "connection_seconds": config.bus.connection_ttl}

    async def _serve(self, server: HttpServer) -> None:
        try:
            for tenant in self.tenants.values():
                self._stack.push_async_callback(await tenant.run_servers(self.settings))
        except ServersFileError as bad:
            raise ConfigError(str(bad), "mend the file, or move it away and use: remit servers add") from None
        extras = {
            "published": self.published(),
            "evidence": self.evidence,
            "checkpoints": self._projection.checkpoints,
            "caught_up": self.caught_up,
            "status": self.health.status,
            "budgets": self.accounts.report,
            "fault": self.observer.fault,
        }
        self.desks = desks = [
            Desk(
                one.name,
                one.ports,
                one.registry,
                one.kill(self.index),
                one,
                self.policy_desk(one),
                await self.log_desk(one),
                self.secrets,
                self.backends,
                self.vault_desk(one),
                one.admin,
                frozenset(self.settings.config.mcp.trace),
            )
            for one in self.tenants.values()
        ]
        operator = identity.operator(self.settings.config, self.keys, self.ports.identities)
        if self.vault is not None:
            self._task(Retention([desk.vault for desk in desks], self.observer).run())
        api = Api(desks, self.index, operator, extras)
        signin = Signin(self.settings, self.keys, self.issuers, self.http, (self.secrets, self.backends))
        self.oauth = oauth = await signin.open(self.nats.core.jetstream(), desks, operator)
        routes = api.routes() + oauth.routes(self.observer.fault)
        if provider := identity.dev_issuer(self.settings.config, self.keys, self.http, SystemClock()):
            routes += development.routes(provider, self.observer.fault)
        self._clients = clients = serve_clients(
            self.settings,
            desks,
            self.registries,
            self._inside,
            (oauth.users(operator), oauth.challenge),
            self.observer.fault,
        )
        routes += clients.routes()
        config, health = self.settings.config, self.health
        marks = identity.marked(config, self.http)
        health.servers = lambda: [one["state"] for tenant in self.tenants.values() for one in tenant.servers()]
        readers = identity.scrapers(config, self.keys, operator)
        routes.append(metrics_route(health.metrics, readers, self.observer.fault))
        await server.start(application(routes, self.keys.jwks, health.problems, health.group, config.http.hosts, marks))
        self._stack.push_async_callback(server.stop)
        self._stack.push_async_callback(clients.stop)

    def _task(self, work: Any) -> None:
        task = asyncio.create_task(work)

        self._stack.push_async_callback(ended, task)

    def _announce(self) -> None:
        """Tell the command line on this machine where the broker is; the token it needs is in a file of its own."""
        private_folder(self.settings.runtime_file.parent, create=True)
        about = {"http": self.http, "nats": self.bus, "pid": self.place.pid or os.getpid(), "version": __version__}
        write_private(self.settings.runtime_file, json.dumps(about).encode())
        # The public keys as a file too, the same as at /.well-known/jwks.json: for evidence that is verified on this machine.
        write_private(self.settings.data / "jwks.json", json.dumps(self.keys.jwks(), indent=1).encode())
        self._stack.callback(self.settings.runtime_file.unlink, missing_ok=True)

    @property
    def ready(self) -> dict[str, Any]:
        """The first line of ``remit up --json``."""
        alone = {"ready": True, "http": self.http, "nats": self.bus, "pid": os.getpid()}
        alone |= identity.marked(self.settings.config, self.http)
        return {**alone, "replica": self.replica} if self.place.group else alone


async def _close(connections: Connections) -> None:
    for connection in connections:
        with contextlib.suppress(Exception):
            await connection.close()
