"""``remit agents``: who may connect to the bus."""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from remit_broker.adapters.errors import ConfigError
from remit_broker.cli.client import BrokerClient, whose
from remit_broker.cli.common import Config, Json, Tenant, command
from remit_broker.cli.printing import line, out, say
from remit_broker.config import Settings, load
from remit_broker.core.assertion import LIFE, client_assertion, client_id
from remit_schemas.names import Kind, is_principal

app = typer.Typer(help="Agents that may connect to the bus.", no_args_is_help=True)


@app.command("add")
@command
def add(
    name: Annotated[str, typer.Argument(help="[a-z0-9][a-z0-9_-]*")],
    tier: Annotated[str, typer.Option(help="What policies may ask for, such as standard or untrusted.")] = "standard",
    kind: Annotated[
        Literal["agent", "mcp"], typer.Option(help="mcp: an MCP server attached from where it runs.")
    ] = "agent",
    tenant: Tenant = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Register an agent: draws its nkey, writes its credentials file, and lets it connect."""
    told = enrol(load(config), name, kind, tier, tenant)
    if as_json:
        say(told)
    else:
        out.print(line(f"registered {name}; its credentials are in {told['credentials']}"))


def enrol(
    settings: Settings, name: str, kind: Kind, tier: str = "standard", tenant: str | None = None
) -> dict[str, str]:
    """Register a principal with the running broker. The seed is drawn here, written 0600, and sent nowhere."""
    from remit_broker.credentials import credentials_file

    if not is_principal(name):
        raise ConfigError(f"{name!r} cannot name an agent", "use [a-z0-9][a-z0-9_-]*, not remit, new or broker")
    client = BrokerClient(settings, tenant)
    if name in {agent["name"] for agent in client.get("/api/agents")["agents"]}:
        raise ConfigError(f"{name} is registered already", f"remit agents remove {name}")
    status = client.get("/api/status")
    whose, known = status["tenant"], {"bus": client.bus, **status["published"]}
    path, public = credentials_file(settings.credentials_of(whose), name, kind, known, whose)
    client.post("/api/agents", {"name": name, "nkey": public, "kind": kind, "tier": tier})
    return {"agent": name, "credentials": str(path), "bus": client.bus} | ({"tenant": whose} if tenant else {})


@app.command("list")
@command
def list_(tenant: Tenant = None, config: Config = None, as_json: Json = False) -> None:
    """List everybody who may connect, and what they serve."""
    found = BrokerClient(load(config), tenant).get("/api/agents")["agents"]
    if as_json:
        say(found)
        return
    for agent in found:
        serves = ", ".join(agent["serves"][:8]) + (" …" if len(agent["serves"]) > 8 else "")
        out.print(line(f"{agent['name']:<20} {agent['kind']:<6} {agent['tier']:<12} {serves or '-'}"))
    if not found:
        out.print("nobody yet  → remit agents add NAME")


@app.command("remove")
@command
def remove(
    name: Annotated[str, typer.Argument(help="Who may not connect any more.")],
    tenant: Tenant = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Forget an agent or server: its next call is refused, and it cannot connect again."""
    settings = load(config)
    told = BrokerClient(settings, tenant).delete(f"/api/agents/{name}")
    (settings.credentials_of(whose(settings, tenant)) / f"{name}.json").unlink(missing_ok=True)
    if as_json:
        say(told)
    else:
        out.print(line(f"removed {name}; it cannot connect any more"))


@app.command("assertion")
@command
def assertion(
    name: Annotated[str, typer.Argument(help="An agent whose credentials are on this machine.")],
    credentials: Annotated[Path | None, typer.Option(help="Its credentials file, where that is elsewhere.")] = None,
    tenant: Tenant = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Print what proves an agent to /oauth: a client_assertion, good once and for a minute."""
    from remit_broker.adapters.private_files import read_private

    settings = load(config)
    of = whose(settings, tenant)
    path = credentials or settings.credentials_of(of) / f"{name}.json"
    if not path.is_file():
        raise ConfigError(f"there are no credentials of {name} at {path}", "name its file with --credentials")
    try:
        seed = json.loads(read_private(path, 128 * 1024))["nkey_seed"]
        audience = settings.config.oauth.url.rstrip("/") or BrokerClient(settings, tenant).http
        proof = client_assertion(seed, client_id(name, of), audience, int(time.time()), secrets.token_urlsafe(16))
    except (KeyError, TypeError, ValueError):  # a key that is none is a ValueError too, without its text
        raise ConfigError(f"{path} is no credentials file", "remit agents add writes one") from None
    if as_json:
        say({"agent": name, "client_assertion": proof, "expires_in": LIFE})
    else:
        print(proof)
