"""MCP servers on the bus: a worker runs or reaches one unmodified MCP server and serves its tools as ``mcp/<name>/<tool>``.

``session`` is the MCP side, ``wire`` and ``serve`` the bus side, ``worker`` joins them, ``supervisor`` runs workers for the
servers on the broker's own machine.
"""

from remit_broker.edges.attach.credentials import Credentials, CredentialsError, read_credentials
from remit_broker.edges.attach.run import run_attach
from remit_broker.edges.attach.servers_file import ServerEntry, ServersFileError, read_servers, write_servers
from remit_broker.edges.attach.session import ServerError, Timing
from remit_broker.edges.attach.source import HttpSource, Source, SourceError, StdioSource, source
from remit_broker.edges.attach.supervisor import ServerState, ServerSupervisor
from remit_broker.edges.attach.wire import BusError
from remit_broker.edges.attach.worker import AttachWorker, Report

__all__ = [
    "AttachWorker",
    "BusError",
    "Credentials",
    "CredentialsError",
    "HttpSource",
    "Report",
    "ServerEntry",
    "ServerError",
    "ServerState",
    "ServerSupervisor",
    "ServersFileError",
    "Source",
    "SourceError",
    "StdioSource",
    "Timing",
    "read_credentials",
    "read_servers",
    "run_attach",
    "source",
    "write_servers",
]
