"""What types cannot say of a configuration."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from remit_broker.adapters.errors import ConfigError
from remit_broker.config.keys import Config
from remit_broker.core.addresses import address, network
from remit_broker.core.backends import wrong_with
from remit_broker.core.issuers import DEVELOPMENT, LOOPBACK, BadIssuer, check_issuers
from remit_broker.core.labels import is_label
from remit_broker.core.notes import parse_vkey
from remit_schemas.names import DEFAULT_TENANT, is_tenant

MAX_TENANTS: Final = 64
"""Each has a NATS account, a connection of every broker process to it, and its share of the server's connections."""


def sensible(file: Path, config: Config) -> None:
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
    if (ui := config.traces.ui) and not _is_url(ui, ("http", "https")):
        raise ConfigError(f"{file}: traces.ui is {ui!r}", "write http://HOST:PORT of Jaeger, or leave it empty")
    if (base := config.oauth.url) and (not _is_url(base, ("http", "https")) or urlsplit(base).path.strip("/")):
        raise ConfigError(f"{file}: oauth.url is {base!r}", "write https://HOST, without a path, or leave it empty")
    if (url := config.approvals.url) and not _is_url(url, ("http", "https")):
        raise ConfigError(f"{file}: approvals.url is {url!r}", "write https://HOST, or leave it empty")
    if (hook := config.approvals.webhook) and not (
        _is_url(hook, ("http", "https")) and _is_host(urlsplit(hook).netloc)
    ):
        # Not the URL itself: its path may be a secret, and messages end up in logs.
        raise ConfigError(
            f"{file}: approvals.webhook is no URL that can be sent to",
            "write https://HOST/PATH with an ASCII host name (xn--… for others), or leave it empty",
        )
    for key, nets in (
        ("approvals.webhook_allow", config.approvals.webhook_allow),
        ("oauth.documents_allow", config.oauth.documents_allow),
        ("log.witness_allow", config.log.witness_allow),
    ):
        for net in nets:
            try:
                network(net)
            except ValueError as error:
                raise ConfigError(f"{file}: {key}: {error}", "write such as 10.1.0.0/16 or 127.0.0.1/32") from None
    if (tsa := config.log.tsa) and not _is_url(tsa, ("http", "https")):
        raise ConfigError(
            f"{file}: log.tsa is {tsa!r}", "write https://HOST/PATH of a time-stamping authority, or leave it empty"
        )
    for url, key in config.log.witnesses.items():
        try:
            parse_vkey(key)
        except ValueError as error:
            raise ConfigError(f"{file}: log.witnesses: {error}", "the key as the witness publishes it") from None
        if not _is_url(url, ("http", "https")):
            raise ConfigError(f"{file}: log.witnesses: {url!r} is no URL", "write https://HOST/PATH of the witness")
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
    for name, backend in config.backends.items():
        if (wrong := wrong_with(name, backend)) is not None:
            raise ConfigError(f"{file}: backends.{name}.{wrong[0]}".rstrip(".") + " is not right", wrong[1])
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
    for name in config.vault.tenants:
        if name not in (DEFAULT_TENANT, *config.tenants):
            raise ConfigError(
                f"{file}: vault.tenants.{name}: there is no such tenant",
                f"another one is made by a table [tenants.{name}]",
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
    names = {issuer.name for issuer in config.issuers} | ({DEVELOPMENT} if development.issuer else set())
    for who in http.stop_all:
        issuer, _, user = who.partition(":")
        if http.auth != "issuer" or issuer not in names or not user:
            raise ConfigError(
                f"{file}: http.stop_all: {who!r} is nobody whom an issuer proves",
                'write "<name of an issuer>:<user>", as records name an operator; it needs http.auth = "issuer"',
            )
    try:
        check_issuers(config.issuers, development)
    except BadIssuer as bad:
        raise ConfigError(f"{file}: {bad.key}: {bad.why}", bad.ask) from None


_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.IGNORECASE)


def _is_host(netloc: str) -> bool:
    """Whether a host (perhaps with a port) is one that can be asked for: an address, or labels of DNS, without a user."""
    if not netloc.isascii() or "@" in netloc:
        return False
    host = urlsplit(f"//{netloc}").hostname or ""
    try:
        address(host)
    except ValueError:
        labels = host.removesuffix(".").split(".")
        return len(host) <= 253 and ":" not in host and all(_LABEL.fullmatch(label) for label in labels)
    return "%" not in host


def _is_url(text: str, schemes: tuple[str, ...]) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in schemes and bool(parts.hostname) and parts.port != 0 and text.isprintable()
    except ValueError:
        return False
