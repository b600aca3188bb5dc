"""What ``remit check`` looks at: each part for itself, so that one that is wrong does not hide another."""

from __future__ import annotations

import asyncio
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase

import msgspec

from remit_broker.adapters.cedar import CedarEngine
from remit_broker.adapters.errors import ConfigError
from remit_broker.adapters.issuer_source import IssuerSource
from remit_broker.adapters.keyfiles import KEYS, KeyFiles
from remit_broker.adapters.nats_server import find_binary
from remit_broker.adapters.private_files import private_folder
from remit_broker.cli.client import BrokerClient
from remit_broker.cli.common import Unreachable
from remit_broker.config import Settings
from remit_broker.core.caps import DEFAULT
from remit_broker.core.effective import ineffective
from remit_broker.core.issuers import IssuerConfig
from remit_broker.edges.attach.containment import unavailable
from remit_broker.edges.attach.servers_file import ServersFileError, read_servers
from remit_broker.edges.attach.source import StdioSource
from remit_schemas.errors import Refusal
from remit_schemas.names import DEFAULT_TENANT


class Part(msgspec.Struct, frozen=True):
    """One part: what it is or what is wrong with it, and then what to do."""

    check: str
    ok: bool
    said: str
    ask: str = ""


def checks(settings: Settings) -> Iterator[Part]:
    """Every part of a configuration that has been read. Starts nothing and changes nothing."""
    parts: dict[str, Callable[[Settings], str]] = {
        "configuration": lambda settings: str(settings.file),
        "limits": _limits,
        "policies": _policies,
        "keys": _keys,
        "users": _users,
        "servers": _servers,
        "nats-server": _nats,
        "ports": _ports,
    }
    for name, look in parts.items():
        try:
            yield Part(name, True, look(settings))
        except ConfigError as wrong:
            yield Part(name, False, wrong.message, wrong.ask)
        except ServersFileError as wrong:
            yield Part(name, False, str(wrong), "mend the file, or move it away and use: remit servers add")
        except OSError as wrong:
            yield Part(name, False, f"{wrong.filename}: {wrong.strerror}", "name a file or folder that can be used")


def _limits(settings: Settings) -> str:
    found = ineffective(settings.caps, settings.config.prices)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ConfigError(f"{found[0].key}: {found[0].why}{more}", found[0].ask)
    config = settings.config
    named = {
        **{f'caps.agent."{name}"': name for name in config.caps.get("agent", {})},
        **{f'caps.tool."{name}"': name for name in config.caps.get("tool", {})},
        **{f'rates.{kind}."{name}"': name for kind, table in config.rates.items() for name in table},
        **{f'prices."{name}"': name for name in config.prices},
        **{f'labels."{name}"': name for name in config.labels},
    }
    registered = _registered(settings)
    idle = [key for key, name in named.items() if name != DEFAULT and not _matches(name, registered)]
    said = f"{len(named) + len(config.caps.get('user', {})) + len(config.caps.get('tenant', {}))} settings"
    return f"{said}; warning, nothing that is registered fits: {', '.join(idle)}" if idle else said


def _registered(settings: Settings) -> list[str]:
    """Names and resources that a running broker knows; none where none runs."""
    try:
        agents = [one for name in settings.tenants for one in BrokerClient(settings, name).get("/api/agents")["agents"]]
    except (Unreachable, ConfigError, Refusal):  # not there, or not for us to ask
        return []
    return [told for a in agents for told in (a["name"], *(f"{a['kind']}/{a['name']}/{op}" for op in a["serves"]))]


def _matches(name: str, registered: list[str]) -> bool:
    """Whether ``name`` fits something that is registered, or nothing is that could tell."""
    return not registered or any(fnmatchcase(one, name) for one in registered)


def _policies(settings: Settings) -> str:
    return f"{settings.policies}, revision {CedarEngine.load(settings.policies).revision[:12]}"


def _keys(settings: Settings) -> str:
    if settings.data.exists():
        private_folder(settings.data, create=False)
    if not (settings.data / KEYS).exists():
        return "will be drawn at the first start"
    keys = KeyFiles.open(settings.data)
    return f"{keys.folder / KEYS}, signing with {keys.signing.kid}"


def _users(settings: Settings) -> str:
    """Who proves users. An issuer that does not answer now may answer later: a warning with the reason."""
    config = settings.config
    told = [f"http.auth is {config.http.auth}"]
    if config.http.auth == "open":
        told.append(f"warning, everybody on this machine may do everything as {config.http.open_user}")
    told += [_issuer(issuer) for issuer in config.issuers]
    if config.development.issuer:
        told.append(f"warning, the DEVELOPMENT ISSUER is on, with {len(config.development.users)} users")
    if config.http.auth == "issuer" and not any((*(i.operators for i in config.issuers), config.development.operators)):
        raise ConfigError(
            "http.auth is issuer, and no issuer has operators: nobody could use the API",
            'add to an issuer: operators = { admin = ["role:remit-admin"] }',
        )
    if config.http.auth == "issuer" and len(settings.tenants) > 1 and not config.http.stop_all:
        told.append("warning, nobody can stop all tenants at once: http.stop_all names nobody")
    return "; ".join(told)


def _issuer(issuer: IssuerConfig) -> str:
    source = IssuerSource(issuer, time.monotonic)
    try:
        return f"{issuer.name}: {asyncio.run(source.look())} keys"
    except Refusal:
        return f"warning, {issuer.name} does not answer: {source.trouble}"


def _servers(settings: Settings) -> str:
    found = []
    for tenant in settings.tenants:
        entries = read_servers(settings.servers_file_of(tenant))
        for name, entry in entries.items():
            if isinstance(entry.source, StdioSource):
                _startable(name, entry.source)
            whose = name if tenant == DEFAULT_TENANT else f"{name} of tenant {tenant}"
            how = entry.source.contained if isinstance(entry.source, StdioSource) else "at a URL"
            found.append(f"{whose} ({how})")
    return ", ".join(found) or "none run by the broker"


def _startable(name: str, source: StdioSource) -> None:
    if shutil.which(word := source.command[0]) is None:
        raise ConfigError(f"{name}: there is no program {word}", "install it, or give its whole path")
    if source.room is not None and (why := unavailable()):
        raise ConfigError(
            f"{name} is to be contained, and that cannot be done here: {why}",
            "install bubblewrap, or take contain = true out of servers.toml",
        )


def _nats(settings: Settings) -> str:
    return settings.config.bus.url or str(find_binary())


def _ports(settings: Settings) -> str:
    try:
        client = BrokerClient(settings)
        client.lives()
    except Unreachable:
        http, bus = settings.config.http, settings.config.bus
        _free("http.port", http.host, http.port)
        if not bus.url:
            _free("bus.port", "127.0.0.1", bus.port)
        return "free; no broker runs"
    return f"a broker runs at {client.http}"


def _free(key: str, host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"{key} {port} on {host} cannot be used: {error.strerror}",
                f"stop what listens there, or choose another {key} (0 takes a free one)",
            ) from None
