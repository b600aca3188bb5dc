"""What a broker has to itself on its machine: the data folder, the HTTP port, and the NATS server unless that is an external one."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from remit_broker.adapters.errors import ConfigError
from remit_broker.adapters.keyfiles import KeyFiles
from remit_broker.adapters.nats_server import Died, EmbeddedServer, Options
from remit_broker.adapters.private_files import private_folder, read_private, write_private
from remit_broker.config import Settings
from remit_broker.credentials import move_bus
from remit_broker.edges.http.app import HttpServer


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a broker process stands: alone, or as one of several that a supervisor started.

    ``bus`` is where the supervisor's NATS server is, ``http`` the file descriptor of the listening socket it holds, ``url`` its
    address, ``pid`` its process. ``edge`` is whether this one has the HTTP edge, the index, the scan and the MCP servers.
    ``group`` names those of one ``remit up``, and ``size`` says how many they are.
    """

    bus: str = ""
    url: str = ""
    http: int | None = None
    pid: int = 0
    edge: bool = True
    group: str = ""
    size: int = 1


def bind_http(settings: Settings) -> HttpServer:
    """The listening socket of the HTTP edge, so that a taken port is known at once. Raises :class:`ConfigError`."""
    http = settings.config.http
    try:
        return HttpServer(http.host, http.port)
    except OSError as error:
        raise ConfigError(
            f"http.port {http.port} on {http.host} cannot be used: {error.strerror}",
            "stop what listens there, or choose another http.port in remit.toml (0 takes a free one)",
        ) from None


async def embed(settings: Settings, keys: KeyFiles, died: Died) -> EmbeddedServer:
    """Start the embedded NATS server, where it was before if that port is free. Raises :class:`ConfigError`."""
    bus, last = settings.config.bus, settings.runtime_file.with_name("bus.port")
    private_folder(last.parent, create=True)
    port = bus.port or _same_port(last)
    server = EmbeddedServer(keys, Options(port=port, sync=bus.sync, tenants=settings.others), died)
    await server.start()
    # Agents that run, and credentials that were handed out, look for the bus where it was.
    write_private(last, str(urlsplit(server.url).port).encode())
    for tenant in settings.tenants:
        move_bus(settings.credentials_of(tenant), server.url)
    return server


def _same_port(file: Path) -> int:
    """The port of the last start where it is free, else 0."""
    try:
        port = int(read_private(file))
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    except (ConfigError, OSError, ValueError, OverflowError):
        return 0
    return port
