"""What ``remit.toml`` may say: every key with its type, its bounds and its default."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from remit_broker.core.backends import BackendConfig
from remit_broker.core.issuers import DevelopmentConfig, IssuerConfig

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]


class BusConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``url`` names an external NATS server, or those of a cluster, separated by commas; empty, an embedded one listens on
    ``port`` (0: a free one).

    ``callout`` is who says which agents may connect: this broker, or processes of `remit callout`. ``connection_ttl`` is the life
    of a connection's permissions in seconds. ``ledger_bytes`` caps the ledger (0: by the disk alone); from nine tenths of it on
    nothing new is opened.
    """

    url: str = ""
    port: Port = 0
    sync: Literal["always", "default"] = "always"
    replicas: Literal[1, 3, 5] = 1
    callout: Literal["broker", "process"] = "broker"
    connection_ttl: Annotated[float, msgspec.Meta(ge=5, le=7 * 86400)] = 86400.0
    ledger_bytes: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0


class HttpConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The HTTP edge. ``auth`` is how a caller is known: ``local`` (the OS user, by a 0600 token file) and ``open`` (everybody on
    this machine is ``open_user``) need loopback, ``issuer`` is a user's token. ``hosts`` are names beside loopback under which
    it is reached, as the header Host says them. ``stop_all`` are the operators, ``<issuer>:<user>``, who may stop all tenants at once.
    """

    host: str = "127.0.0.1"
    port: Port = 7480
    auth: Literal["local", "open", "issuer"] = "local"
    open_user: str = "everybody"
    hosts: tuple[str, ...] = ()
    stop_all: tuple[str, ...] = ()


class LimitsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Caps of a hop. Times are seconds. ``allow_cycles`` lists ``"caller>callee"`` pairs that may close a loop."""

    hop_ttl: Annotated[float, msgspec.Meta(gt=0, le=28_800)] = 3600.0
    orphan_grace: Annotated[float, msgspec.Meta(ge=0)] = 30.0
    txn_idle: Annotated[float, msgspec.Meta(ge=1)] = 900.0
    replica_silence: Annotated[float, msgspec.Meta(ge=3)] = 30.0
    calls_per_second: Annotated[float, msgspec.Meta(ge=0.001)] = 200.0
    target_calls_per_second: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    burst: Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)] = 400
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 2048
    result_bytes: Annotated[int, msgspec.Meta(ge=1 << 20, le=32 << 20)] = 16 << 20
    connections_per_agent: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 256
    drain: Seconds = 5.0
    allow_cycles: tuple[str, ...] = ()


class ResultsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Results that callers asked to be kept: for ``ttl`` seconds, all together at most ``bytes``."""

    ttl: Annotated[float, msgspec.Meta(ge=10, le=86400)] = 900.0
    bytes: Annotated[int, msgspec.Meta(ge=64 << 20, le=2**50)] = 1 << 30


class ApprovalsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Approvals by people: a request waits for ``ttl`` seconds, an approval can be used for ``use`` seconds.

    With ``four_eyes`` nobody approves a call that is made on their own behalf, whatever policy says. ``url`` is where approvers
    find the broker, if not at ``http``. ``webhook`` is told of each request; ``webhook_allow`` are networks that are not public and
    may be sent to all the same, such as ``10.1.0.0/16``.
    """

    ttl: Annotated[float, msgspec.Meta(ge=1, le=28_800)] = 3600.0
    use: Annotated[float, msgspec.Meta(ge=1, le=28_800)] = 900.0
    four_eyes: bool = False
    url: str = ""
    webhook: str = ""
    webhook_allow: tuple[str, ...] = ()


class OAuthConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """OAuth on the HTTP edge. ``url`` is where clients find this broker, if not at ``http``. With ``client_auth`` ``required`` a
    token is exchanged only for an agent that proves itself with its nkey; with ``optional`` for whoever has it in hand.

    Programs that people log in with register themselves where ``registration`` is ``open``, may be sent back to this machine and to
    ``redirects``, and may be documents at ``client_documents`` (patterns of URLs). ``access_ttl`` and ``login_ttl`` are the lives of a
    token and of a login in seconds. ``documents_allow`` are networks that are not public and may be fetched from all the same.
    """

    url: str = ""
    client_auth: Literal["optional", "required"] = "optional"
    registration: Literal["open", "closed"] = "open"
    redirects: tuple[str, ...] = ()
    client_documents: tuple[str, ...] = ()
    documents_allow: tuple[str, ...] = ()
    access_ttl: Annotated[int, msgspec.Meta(ge=60, le=86_400)] = 3600
    login_ttl: Annotated[int, msgspec.Meta(ge=60, le=30 * 86_400)] = 43_200


class SecretsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What users' secrets for MCP servers are sealed with: ``key_file``, 32 bytes of base64url; empty: a key drawn from another."""

    key_file: str = ""


class LogConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where checkpoints of the log go: to ``witnesses`` (the verifier key of each, by its URL), and appended to ``file``.

    ``witness_allow`` are networks that are not public and may be sent to all the same. ``tsa`` is the URL of an authority that stamps
    them with the time (RFC 3161), at most every ``tsa_every`` seconds.
    """

    witnesses: dict[str, str] = {}
    witness_allow: tuple[str, ...] = ()
    file: str = ""
    tsa: str = ""
    tsa_every: Annotated[float, msgspec.Meta(ge=10, le=7 * 86400)] = 3600.0


class KeepsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[vault.tenants.NAME]``: for how many seconds that tenant's ``arguments`` and ``results`` are kept; 0: not at all."""

    arguments: Annotated[float, msgspec.Meta(ge=0, le=20 * 366 * 86400)] = 30 * 86400.0
    results: Annotated[float, msgspec.Meta(ge=0, le=20 * 366 * 86400)] = 30 * 86400.0


class VaultConfig(KeepsConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Arguments and results, kept encrypted for the user of each task where this is ``on``: for so many seconds, all together at most
    ``bytes``; ``tenants`` has other times. ``keys`` is the folder of the users' keys (empty: one in the data folder), which are
    sealed with ``key_file``, 32 bytes of base64url (empty: a key drawn from another).
    """

    on: bool = False
    tenants: dict[str, KeepsConfig] = {}
    bytes: Annotated[int, msgspec.Meta(ge=64 << 20, le=2**50)] = 4 << 30
    keys: str = ""
    key_file: str = ""

    def keeps(self, tenant: str, kind: Literal["arguments", "results"]) -> float:
        """Seconds; 0: not at all."""
        of: KeepsConfig = self.tenants.get(tenant, self)
        return of.arguments if kind == "arguments" else of.results


class TracesConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where spans go by OTLP/HTTP; the standard ``OTEL_EXPORTER_OTLP_*`` variables win. Empty: nowhere.

    ``ui`` is where people look at them: the address of Jaeger.
    """

    endpoint: str = ""
    ui: str = ""


class PolicyConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What policies see as ``context.environment``: the name of this installation, such as ``production``."""

    environment: str = ""


class ContentConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Entities that Presidio looks for beside the detectors, and the language it is told; empty: it is not used.

    ``labels`` are those of data in which something of a class or kind was found, and not replaced.
    """

    presidio: tuple[str, ...] = ()
    presidio_language: str = "en"
    labels: dict[str, tuple[str, ...]] = {}


class McpConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Clients of MCP. ``agent`` is the name under which they call where they bring no grant; ``scopes`` and ``budget`` are what
    each of their sessions is given; ``call_ttl`` is the longest that one call may take, in seconds, and ``idle`` the time after
    which a session goes on in another task. ``view`` is what they see at ``/mcp``: all ``tools``, or three that ``search`` them.
    ``sub_agents`` are names that they may say their sub-agents have. ``trace`` are the servers that are told the trace of a call.
    """

    agent: str = "mcp-client"
    scopes: tuple[str, ...] = ("mcp/**",)
    budget: str = "usd=10,tokens=1000000,calls=2000"
    call_ttl: Annotated[float, msgspec.Meta(gt=0, le=28_800)] = 600.0
    idle: Annotated[float, msgspec.Meta(ge=1, le=28_800)] = 900.0
    view: Literal["tools", "search"] = "tools"
    sub_agents: tuple[str, ...] = ()
    trace: tuple[str, ...] = ()


class TenantConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[tenants.NAME]``: that there is this tenant, beside the default one, which is always there."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything ``remit.toml`` may say. Paths are relative to the file's folder."""

    issuer: str = "http://127.0.0.1:7480"
    data: str = "data"
    policies: str = "policies"
    bus: BusConfig = BusConfig()
    http: HttpConfig = HttpConfig()
    mcp: McpConfig = McpConfig()
    limits: LimitsConfig = LimitsConfig()
    results: ResultsConfig = ResultsConfig()
    approvals: ApprovalsConfig = ApprovalsConfig()
    oauth: OAuthConfig = OAuthConfig()
    secrets: SecretsConfig = SecretsConfig()
    backends: dict[str, BackendConfig] = {}
    log: LogConfig = LogConfig()
    vault: VaultConfig = VaultConfig()
    traces: TracesConfig = TracesConfig()
    content: ContentConfig = ContentConfig()
    issuers: tuple[IssuerConfig, ...] = ()
    development: DevelopmentConfig = DevelopmentConfig()
    policy: PolicyConfig = PolicyConfig()
    prices: dict[str, str] = {}
    models: dict[str, str] = {}
    labels: dict[str, tuple[str, ...]] = {}
    endorsers: tuple[dict[str, Any], ...] = ()
    tool_groups: dict[str, tuple[str, ...]] = {}
    caps: dict[str, dict[str, dict[str, str]]] = {}
    rates: dict[str, dict[str, str]] = {}
    tenants: dict[str, TenantConfig] = {}
