"""``remit servers`` and ``remit attach``: MCP servers on the bus."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from remit_broker.adapters.errors import ConfigError
from remit_broker.cli.accepting import accept
from remit_broker.cli.agents import enrol
from remit_broker.cli.client import BrokerClient, whose
from remit_broker.cli.common import Config, Json, Tenant, Unreachable, command
from remit_broker.cli.containing import Limit, Network, Read, Uncontained, Write, limits_of, room_for
from remit_broker.cli.printing import line, out, say
from remit_broker.cli.scan import scan
from remit_broker.config import Settings, load

if TYPE_CHECKING:
    from remit_broker.edges.attach.containment import Room

app = typer.Typer(help="MCP servers on the bus.", no_args_is_help=True)
app.command("scan")(scan)
app.command("accept")(accept)


def register(root: typer.Typer) -> None:
    """Add ``remit attach``."""
    root.command()(attach)


Words = Annotated[list[str] | None, typer.Argument(metavar="-- CMD…", help="The command that starts the server.")]
Url = Annotated[str | None, typer.Option(help="A streamable HTTP server instead of a command.")]
Env = Annotated[list[str] | None, typer.Option("--env", help="NAME=VALUE for the server; it sees nothing else.")]


def _variables(pairs: list[str] | None) -> dict[str, str]:
    found = {}
    for pair in pairs or ():
        name, sign, value = pair.partition("=")
        if not sign:
            raise ConfigError(f"--env {pair!r} is not NAME=VALUE", "write --env NAME=VALUE")
        found[name] = value
    return found


@app.command("add")
@command
def add(
    name: Annotated[str, typer.Argument(help="[a-z0-9][a-z0-9_-]*")],
    words: Words = None,
    url: Url = None,
    cwd: Annotated[Path | None, typer.Option(help="Working folder of the command.")] = None,
    env: Env = None,
    read: Read = None,
    write: Write = None,
    network: Network = False,
    uncontained: Uncontained = False,
    limit: Limit = None,
    process: Annotated[
        str, typer.Option(help="Who has a process of it: server (all one), user or txn (each its own).")
    ] = "server",
    tenant: Tenant = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Have the broker run (or reach) an MCP server on its own machine: remit servers add git -- mcp-server-git."""
    from remit_broker.edges.attach.servers_file import (
        ServerEntry,
        ServersFileError,
        read_servers,
        sharing_of,
        write_servers,
    )
    from remit_broker.edges.attach.source import SourceError, StdioSource, source

    settings = load(config)
    file = settings.servers_file_of(whose(settings, tenant))
    try:
        folder = cwd.absolute() if cwd else None
        room = None if url else room_for(words or [], folder, read, write, network=network, uncontained=uncontained)
        sharing = sharing_of({"process": process})
        found = source(
            words, url, cwd=folder, env=_variables(env) or None, room=room, limits=limits_of(limit), sharing=sharing
        )
        entry = ServerEntry(name, found)
        entries = read_servers(file)
    except (SourceError, ServersFileError) as bad:
        raise ConfigError(str(bad), "remit servers add --help") from None
    if name in entries:
        raise ConfigError(f"a server {name} is there already", f"remit servers remove {name}")
    contained = found.contained if isinstance(found, StdioSource) else ""
    client = BrokerClient(settings, tenant)
    enrol(settings, name, "mcp", tenant=tenant)
    write_servers(file, {**entries, name: entry})
    client.post("/api/servers/reload")
    if as_json:
        say({"server": name, "source": str(entry.source), "contained": contained})
    else:
        out.print(line(f"added {name}: {entry.source}"))
        if contained:
            out.print(line(f"  {contained}{_may_read(room)}"))
        out.print(line("  → remit servers list shows when its tools are there"))


def _may_read(room: Room | None) -> str:
    """What of the machine a contained server sees, or how it is let see any of it."""
    if room is None:
        return ""
    if room.read:
        return f"; may read {', '.join(map(str, room.read))}"
    return "" if room.write else "; sees no folder of yours: --read DIR and --write DIR name those it needs"


@app.command("list")
@command
def list_(tenant: Tenant = None, config: Config = None, as_json: Json = False) -> None:
    """List MCP servers, how they are, and their tools."""
    found = BrokerClient(load(config), tenant).get("/api/servers")["servers"]
    if as_json:
        say(found)
        return
    for server in found:
        tools = server.get("serves", [])
        out.print(
            line(
                (server["name"], "bold"),
                f"  {server['state']}  {len(tools)} tools{_others(server)}  {server.get('reason', '')}".rstrip(),
                (f"  {server['contained']}" if server.get("contained") else "", "dim"),
                ("  is told the trace" if server.get("trace") else "", "dim"),
            )
        )
        if tools:
            out.print(line("  " + " ".join(tools)))
        if server.get("waiting"):
            held = f" {' '.join(server['waiting'])}  → remit servers accept {server['name']}"
            out.print(line(("  not callable until somebody looked:", "yellow"), held))
        for what in server.get("refused", ()):
            out.print(line(("  cannot be used:", "yellow"), f" {what}"))
        for name, same in server.get("collisions", {}).items():
            out.print(
                line((f"  {name} at /mcp is the name of several, and none is called:", "yellow"), f" {' '.join(same)}")
            )
    if not found:
        out.print("none yet  → remit servers add NAME -- CMD")


def _others(server: dict[str, Any]) -> str:
    count = server.get("processes", 0)
    return f"  {count} process{'es' if count != 1 else ''} of users" if count else ""


@app.command("remove")
@command
def remove(
    name: Annotated[str, typer.Argument()], tenant: Tenant = None, config: Config = None, as_json: Json = False
) -> None:
    """Stop a server and forget it."""
    from remit_broker.edges.attach.servers_file import ServersFileError, read_servers, write_servers

    settings = load(config)
    client, file = BrokerClient(settings, tenant), settings.servers_file_of(whose(settings, tenant))
    try:
        entries = read_servers(file)
    except ServersFileError as bad:
        raise ConfigError(str(bad), "remit servers add --help") from None
    entries.pop(name, None)
    write_servers(file, entries)
    client.post("/api/servers/reload")
    client.delete(f"/api/agents/{name}")
    (settings.credentials_of(whose(settings, tenant)) / f"{name}.json").unlink(missing_ok=True)
    if as_json:
        say({"removed": name})
    else:
        out.print(line(f"removed {name}"))


@command
def attach(
    name: Annotated[str, typer.Argument(help="The server's name on the bus.")],
    words: Words = None,
    url: Url = None,
    cwd: Annotated[Path | None, typer.Option(help="Working folder of the command.")] = None,
    env: Env = None,
    credentials: Annotated[
        Path | None, typer.Option(help="Its credentials file; default: the broker's on this machine.")
    ] = None,
    tenant: Tenant = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Attach an MCP server to the bus from where it runs, until Ctrl-C: remit attach files -- npx some-server DIR."""
    from remit_broker.edges.attach.run import run_attach

    path = credentials or _own(load(config), name, tenant)
    raise typer.Exit(run_attach(name, path, command=words, url=url, cwd=cwd, env=_variables(env) or None))


def _own(settings: Settings, name: str, tenant: str | None) -> Path:
    """The server's credentials on this machine; registers it where the broker runs here and does not know it yet."""
    path = settings.credentials_of(whose(settings, tenant)) / f"{name}.json"
    if not path.exists():
        try:
            enrol(settings, name, "mcp", tenant=tenant)
        except Unreachable as gone:
            raise Unreachable(f"{path} does not exist, and {gone}", gone.ask) from None
    return path
