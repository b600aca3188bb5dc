"""``remit secrets``: what MCP servers are shown for whom. Set and removed; nothing shows one."""

from __future__ import annotations

import getpass
import sys
from typing import Annotated

import typer

from remit_broker.adapters.errors import ConfigError
from remit_broker.cli.client import BrokerClient
from remit_broker.cli.common import Config, Json, Tenant, command
from remit_broker.cli.printing import line, out, say
from remit_broker.config import load

app = typer.Typer(help="Credentials of users for MCP servers.", no_args_is_help=True)

Server = Annotated[str, typer.Argument(help="An MCP server with a table [backends.NAME] of kind secret or service.")]
User = Annotated[str | None, typer.Option(help="Whose it is; left out, your own.")]
Service = Annotated[bool, typer.Option("--service", help="The server's service account, whoever it is called for.")]


@app.command("set")
@command
def set_(
    server: Server, user: User = None, service: Service = False, tenant: Tenant = None, config: Config = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Set or replace a secret, read from standard input: what stands on a command line, others on the machine can see."""
    value = getpass.getpass(f"secret for {server}: ") if sys.stdin.isatty() else sys.stdin.readline()
    if not value.strip():
        raise ConfigError("there is no secret on standard input", f'printf %s "$TOKEN" | remit secrets set {server}')
    body = {"server": server, "user": user or "", "service": service, "value": value.strip()}
    told = BrokerClient(load(config), tenant).post("/api/secrets", body)
    if as_json:
        say(told)
    else:
        out.print(line(f"set for {told['user'] or 'the service'} at {server}"))


@app.command("connect")
@command
def connect(
    server: Server, user: User = None, tenant: Tenant = None, config: Config = None, as_json: Json = False
) -> None:
    """Print where a user logs in, with a browser, at an MCP server with a table of kind oauth."""
    told = BrokerClient(load(config), tenant).post("/api/secrets/connect", {"server": server, "user": user or ""})
    if as_json:
        say(told)
    else:
        typer.echo(told["url"])


@app.command("list")
@command
def list_(tenant: Tenant = None, config: Config = None, as_json: Json = False) -> None:
    """Which there are, who set them and when."""
    found = BrokerClient(load(config), tenant).get("/api/secrets")["secrets"]
    if as_json:
        say(found)
        return
    for one in found:
        out.print(line(f"{one['server']:<20} {one['user'] or '(service)':<24} {one['at']}  {one['by']}"))
    if not found:
        out.print("none yet  → remit secrets set SERVER --user NAME")


@app.command("remove")
@command
def remove(
    server: Server, user: User = None, service: Service = False, tenant: Tenant = None, config: Config = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Forget a secret: the next call of that server for that user is refused."""
    body = {"server": server, "user": user or "", "service": service}
    told = BrokerClient(load(config), tenant).post("/api/secrets/remove", body)
    if as_json:
        say(told)
    else:
        out.print(line(f"removed for {told['user'] or 'the service'} at {server}"))
