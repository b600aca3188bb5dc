"""``budgets``: what users, agents, tools and tenants may use up in a window, and how far they are."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from remit_broker.cli.client import BrokerClient
from remit_broker.cli.common import Config, Json, Tenant, command
from remit_broker.cli.printing import line, out, say
from remit_broker.cli.show import dollars
from remit_broker.config import load


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(budgets)


@command
def budgets(
    kind: Annotated[str | None, typer.Option(help="Only of users, agents, tools or tenants: user, agent …")] = None,
    name: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="Only of names such as ann or mcp/mail/*.")
    ] = None,
    tenant: Tenant = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show every account that has a cap: cap, spent, held by running calls, leased to replicas, left, and until when."""
    told = BrokerClient(load(config), tenant).get("/api/budgets", kind=kind, name=name)
    if as_json:
        say(told)
        return
    for row in told["budgets"]:
        amounts = "  ".join(f"{name} {_amounts(row[name])}" for name in ("spent", "held", "leased", "left"))
        head = line(f"{row['kind']} ", (row["name"], "bold"), f"  {row['window']} until {row['ends']}  ")
        out.print(head, line(f"cap {_amounts(row['cap'])}  {amounts}"))
    if not told["budgets"] and (kind or name):
        out.print("none of these; remit budgets shows all")
    elif not told["budgets"]:
        out.print("none; caps are set in [caps] of remit.toml")


def _amounts(units: dict[str, Any]) -> str:
    return "+".join(dollars(n) if unit == "usd_micros" else f"{n} {unit}" for unit, n in units.items())
