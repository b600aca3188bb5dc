"""The configuration: one TOML file, every key checked, every mistake named with its place and what is allowed."""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
import msgspec.inspect

from remit_broker.adapters.errors import ConfigError
from remit_broker.core.addresses import network
from remit_broker.core.caps import BadCap, Caps, parse_caps
from remit_broker.core.extraction import Endorser, TooWide, parse_endorser
from remit_broker.core.issuers import LOOPBACK, BadIssuer, DevelopmentConfig, IssuerConfig, check_issuers
from remit_broker.core.label_sources import BadLabels, LabelSources, parse_sources
from remit_broker.core.labels import is_label
from remit_broker.core.rates import BadRate, Rate, Rates, parse_rates
from remit_schemas.budget import Budget, parse_budget
from remit_schemas.errors import Refusal
from remit_schemas.model_prices import DEAREST, DEFAULT, ModelPrice, parse_model_price
from remit_schemas.names import DEFAULT_TENANT, is_principal, is_tenant

FILE: Final = "remit.toml"
MAX_FILE: Final = 1024 * 1024
"""Largest configuration in bytes."""

MAX_TENANTS: Final = 64
"""Each has a NATS account, a connection of every broker process to it, and its share of the server's connections."""

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
    it is reached, as the header Host says them.
    """

    host: str = "127.0.0.1"
    port: Port = 7480
    auth: Literal["local", "open", "issuer"] = "local"
    open_user: str = "everybody"
    hosts: tuple[str, ...] = ()


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


class TracesConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where spans go by OTLP/HTTP; the standard ``OTEL_EXPORTER_OTLP_*`` variables win. Empty: nowhere."""

    endpoint: str = ""


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


class TenantConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[tenants.NAME]``: that there is this tenant, beside the default one, which is always there."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything ``remit.toml`` may say. Paths are relative to the file's folder."""

    issuer: str = "http://127.0.0.1:7480"
    data: str = "data"
    policies: str = "policies"
    bus: BusConfig = BusConfig()
    http: HttpConfig = HttpConfig()
    limits: LimitsConfig = LimitsConfig()
    results: ResultsConfig = ResultsConfig()
    approvals: ApprovalsConfig = ApprovalsConfig()
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


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration with its file's place resolved."""

    file: Path
    config: Config
    data: Path
    policies: Path
    prices: dict[str, Budget]
    cycles: frozenset[tuple[str, str]]
    caps: Caps = Caps({})
    models: dict[str, ModelPrice] = {}
    rates: Rates = Rates()
    labels: LabelSources = LabelSources()
    endorsers: tuple[Endorser, ...] = ()

    @property
    def others(self) -> tuple[str, ...]:
        """The tenants beside the default one, by name."""
        return tuple(sorted(name for name in self.config.tenants if name != DEFAULT_TENANT))

    @property
    def tenants(self) -> tuple[str, ...]:
        """Every tenant, the default one first."""
        return (DEFAULT_TENANT, *self.others)

    def require(self, tenant: str) -> None:
        """Raises :class:`ConfigError` for a tenant that is not there."""
        if tenant not in self.tenants:
            raise ConfigError(
                f"there is no tenant {tenant[:64]!r}",
                f"there is {', '.join(self.tenants)}; [tenants] of {self.file} names them",
            )

    def servers_file_of(self, tenant: str) -> Path:
        """Where ``remit servers add`` keeps the commands of a tenant's servers that the broker runs itself."""
        self.require(tenant)
        return self.file.parent / ("servers.toml" if tenant == DEFAULT_TENANT else f"servers.{tenant}.toml")

    def credentials_of(self, tenant: str) -> Path:
        """The folder of the credentials of a tenant's agents and servers."""
        self.require(tenant)
        folder = self.data / "credentials"
        return folder if tenant == DEFAULT_TENANT else folder / tenant

    @property
    def servers_file(self) -> Path:
        """That of the default tenant."""
        return self.servers_file_of(DEFAULT_TENANT)

    @property
    def runtime_file(self) -> Path:
        """Where a running broker says how to reach it."""
        return self.data / "run" / "broker.json"

    @property
    def credentials(self) -> Path:
        """That of the default tenant."""
        return self.credentials_of(DEFAULT_TENANT)


def find(path: str | None) -> Path:
    """The configuration file: ``path``, else ``./remit.toml``, else the one in the user's configuration folder."""
    if path is not None:
        found = Path(path)
        return (found / FILE if found.is_dir() else found).absolute()
    here = Path(FILE).absolute()
    if here.exists():
        return here
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return home / "remit" / FILE


def load(path: str | None = None) -> Settings:
    """Read and check. Raises :class:`ConfigError` that names the file, the key and what is allowed."""
    file = find(path)
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_FILE + 1)
    except FileNotFoundError:
        where = f"{file}" if path is not None else f"./{FILE}, nor at {file}"
        raise ConfigError(f"there is no configuration at {where}", "make one with: remit init DIR") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > MAX_FILE:
        raise ConfigError(f"{file} has more than {MAX_FILE} bytes", "name the right file")
    try:
        raw = tomllib.loads(data.decode())
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is not UTF-8 text", "name the right file") from None
    except (ValueError, RecursionError) as error:  # beside TOMLDecodeError: numbers too long, tables too deep
        raise ConfigError(
            f"{file} is not TOML: {error}", "mend that line; docs/operations.md shows a whole file"
        ) from None
    return settings(file, raw)


def settings(file: Path, raw: object) -> Settings:
    """The settings of an already parsed file. Raises :class:`ConfigError`."""
    try:
        config = msgspec.convert(raw, Config, strict=True)
    except msgspec.ValidationError as error:
        raise _wrong(file, str(error)) from None
    _sensible(file, config)
    folder = file.parent
    return Settings(
        file=file,
        config=config,
        data=folder / config.data,
        policies=folder / config.policies,
        prices={pattern: _price(file, pattern, text) for pattern, text in config.prices.items()},
        cycles=frozenset(_pair(file, text) for text in config.limits.allow_cycles),
        caps=_caps(file, config.caps),
        models=_models(file, config.models),
        rates=_rates(file, config),
        labels=_labels(file, config),
        endorsers=_endorsers(file, config),
    )


def _sensible(file: Path, config: Config) -> None:
    """What types cannot say. Raises :class:`ConfigError`."""
    _identity(file, config)
    for key in (
        "hop_ttl",
        "orphan_grace",
        "replica_silence",
        "txn_idle",
        "calls_per_second",
        "target_calls_per_second",
        "drain",
    ):
        if not math.isfinite(value := getattr(config.limits, key)):
            raise ConfigError(f"{file}: limits.{key} is {value}", "write a finite number")
    if not config.policy.environment.isprintable():
        raise ConfigError(
            f"{file}: policy.environment is {config.policy.environment!r}", "write a name such as production"
        )
    if (bus := config.bus.url) and not all(_is_url(url, ("nats", "tls", "ws", "wss")) for url in bus.split(",")):
        raise ConfigError(
            f"{file}: bus.url is {bus!r}",
            "write nats://HOST:PORT, several separated by commas, or leave it empty",
        )
    if (traces := config.traces.endpoint) and not _is_url(traces, ("http", "https")):
        raise ConfigError(f"{file}: traces.endpoint is {traces!r}", "write http://HOST:PORT, or leave it empty")
    if (url := config.approvals.url) and not _is_url(url, ("http", "https")):
        raise ConfigError(f"{file}: approvals.url is {url!r}", "write https://HOST, or leave it empty")
    if (hook := config.approvals.webhook) and (not _is_url(hook, ("http", "https")) or "@" in urlsplit(hook).netloc):
        raise ConfigError(f"{file}: approvals.webhook is {hook!r}", "write https://HOST/PATH, or leave it empty")
    for net in config.approvals.webhook_allow:
        try:
            network(net)
        except ValueError as error:
            raise ConfigError(
                f"{file}: approvals.webhook_allow: {error}", "write such as 10.1.0.0/16 or 127.0.0.1/32"
            ) from None
    if config.bus.replicas > 1 and not config.bus.url:
        raise ConfigError(
            f"{file}: bus.replicas is {config.bus.replicas}, but the embedded NATS server is one",
            "set bus.url to a cluster, or bus.replicas = 1",
        )
    for pattern in config.prices:
        if not pattern.startswith(("agent/", "mcp/", "*")):
            raise ConfigError(
                f"{file}: prices.{pattern!r} matches no resource", "write such as mcp/git/* or agent/researcher/*"
            )
    for group, patterns in config.tool_groups.items():
        if not is_label(group):
            raise ConfigError(f"{file}: tool_groups.{group!r} is no name", "use lower-case letters, digits, _ . : / -")
        for pattern in patterns:
            if not pattern.startswith(("mcp/", "*")):
                raise ConfigError(
                    f"{file}: tool_groups.{group!r}: {pattern!r} matches no tool",
                    "write such as mcp/bank/* or mcp/*/delete_*",
                )
    _tenants(file, config)
    for key, text in (("issuer", config.issuer), ("data", config.data), ("policies", config.policies)):
        if not text or not text.isprintable():
            raise ConfigError(
                f"{file}: {key} is {text!r}", "write a text of at least one character, all of them printable"
            )


def _tenants(file: Path, config: Config) -> None:
    for name in config.tenants:
        if not is_tenant(name):
            raise ConfigError(
                f"{file}: tenants.{name!r} cannot name a tenant", "use [a-z0-9][a-z0-9_-]*, at most 63 characters"
            )
    if len({DEFAULT_TENANT, *config.tenants}) > MAX_TENANTS:
        raise ConfigError(
            f"{file}: {len(config.tenants)} tenants, at most {MAX_TENANTS} are served by one broker",
            "run a second broker on a bus of its own for the others",
        )
    for name in config.caps.get("tenant", {}):
        if name not in (DEFAULT_TENANT, *config.tenants):
            known = ", ".join(sorted({DEFAULT_TENANT, *config.tenants}))
            raise ConfigError(
                f'{file}: caps.tenant."{name}": there is no such tenant',
                f"tenants there are: {known}; another one is made by a table [tenants.{name}]",
            )


def _identity(file: Path, config: Config) -> None:
    """Who callers and users are. Raises :class:`ConfigError`."""
    http, development = config.http, config.development
    loopback = http.host in LOOPBACK
    # INVARIANT: what trusts everybody on a machine listens to that machine alone (test_what_trusts_the_machine_needs_loopback).
    for key, on in (
        ("http.auth = " + repr(http.auth), http.auth != "issuer"),
        ("development.issuer", development.issuer),
    ):
        if on and not (loopback and not http.hosts):
            raise ConfigError(
                f"{file}: http.host is {http.host!r} and http.hosts {list(http.hosts)}, but {key} is for loopback only",
                "use 127.0.0.1, ::1 or localhost, and no other names",
            )
    if http.auth == "issuer" and not config.issuers and not development.issuer:
        raise ConfigError(
            f"{file}: http.auth is 'issuer', but there is no issuer", "add [[issuers]]; docs/identity.md has examples"
        )
    try:
        check_issuers(config.issuers, development)
    except BadIssuer as bad:
        raise ConfigError(f"{file}: {bad.key}: {bad.why}", bad.ask) from None


def _is_url(text: str, schemes: tuple[str, ...]) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in schemes and bool(parts.hostname) and parts.port != 0 and text.isprintable()
    except ValueError:
        return False


def _wrong(file: Path, message: str) -> ConfigError:
    """msgspec's ``… - at `$.bus.port``` turned round: the key first, then what is wrong, then what is allowed there."""
    what, _, where = message.partition(" - at `$")
    key = _INDEX.sub(".*", where.rstrip("`").lstrip("."))
    found = _type_at(key)
    ask = ""
    if unknown := _UNKNOWN.search(what):
        key, what = f"{key}.{unknown[1]}".lstrip("."), "there is no such key"
        if isinstance(found, msgspec.inspect.StructType):
            ask = "keys there are: " + ", ".join(field.encode_name for field in found.fields)
    elif isinstance(found, msgspec.inspect.LiteralType):
        ask = "allowed are: " + ", ".join(map(repr, found.values))
    what = what.replace("`", "").replace("object", "table")
    return ConfigError(
        f"{file}: {key}: {what}", ask or "remit init writes a file that shows every key with its default"
    )


_INDEX: Final = re.compile(r"\[(?:\.\.\.|\d+)\]")
_UNKNOWN: Final = re.compile("unknown field `(.*)`", re.DOTALL)


def _type_at(key: str) -> msgspec.inspect.Type | None:
    found: msgspec.inspect.Type = msgspec.inspect.type_info(Config)
    for name in filter(None, key.split(".")):
        if not isinstance(found, msgspec.inspect.StructType):
            return None
        # Inside a list or a table of names the way is not the types' own any more.
        fields = {field.encode_name: field.type for field in found.fields}
        if name not in fields:
            return None
        found = fields[name]
    return found


def _price(file: Path, pattern: str, text: str) -> Budget:
    try:
        return parse_budget(text)
    except Refusal as bad:
        raise ConfigError(f"{file}: prices.{pattern!r}: {bad.body.message}", bad.body.ask) from None


def _models(file: Path, raw: Mapping[str, str]) -> dict[str, ModelPrice]:
    prices: dict[str, ModelPrice] = {}
    # The default first: a price that does not say what a call costs takes it from there.
    for name in sorted(raw, key=lambda name: name != DEFAULT):
        try:
            prices[name] = parse_model_price(raw[name], prices.get(DEFAULT, DEAREST))
        except Refusal as bad:
            raise ConfigError(f"{file}: models.{name!r}: {bad.body.message}", bad.body.ask) from None
    return {DEFAULT: DEAREST, **prices}


def _caps(file: Path, raw: Mapping[str, Mapping[str, Mapping[str, str]]]) -> Caps:
    try:
        return parse_caps(raw)
    except BadCap as bad:
        raise ConfigError(f"{file}: {bad.key}: {bad.why}", bad.ask) from None


def _rates(file: Path, config: Config) -> Rates:
    try:
        return parse_rates(config.rates, *default_rates(config.limits))
    except BadRate as bad:
        raise ConfigError(f"{file}: {bad.key}: {bad.why}", bad.ask) from None


def _labels(file: Path, config: Config) -> LabelSources:
    try:
        return parse_sources(config.labels, config.content.labels)
    except BadLabels as bad:
        raise ConfigError(f"{file}: {bad.key}: {bad.why}", bad.ask) from None


def _endorsers(file: Path, config: Config) -> tuple[Endorser, ...]:
    found: dict[str, Endorser] = {}
    for number, raw in enumerate(config.endorsers):
        try:
            endorser = parse_endorser(raw)
        except TooWide as bad:
            raise ConfigError(f"{file}: endorsers[{number}]: {bad}", "docs/labels.md shows what is narrow") from None
        if found.setdefault(endorser.target, endorser) is not endorser:
            raise ConfigError(f"{file}: endorsers[{number}]: {endorser.target} has one already", "join the two")
    return tuple(found.values())


def default_rates(limits: LimitsConfig) -> tuple[Rate, Rate | None]:
    """The rate of a caller and of a callee that no override names; None: unlimited."""
    target = limits.target_calls_per_second
    return Rate(limits.calls_per_second, limits.burst), Rate(target, math.ceil(target)) if target else None


def _pair(file: Path, text: str) -> tuple[str, str]:
    try:
        return cycle(text)
    except ConfigError as bad:
        raise ConfigError(f"{file}: limits.allow_cycles: {bad.message}", bad.ask) from None


def cycle(text: str) -> tuple[str, str]:
    """The (caller, callee) of ``caller>callee``, a pair that may close a loop. Raises :class:`ConfigError`."""
    caller, callee = (part.strip() for part in (*text.split(">", 1), "")[:2])
    if not (is_principal(caller) and is_principal(callee)):
        raise ConfigError(f"{text!r} is no pair of agents", 'write "caller>callee"')
    return caller, callee
