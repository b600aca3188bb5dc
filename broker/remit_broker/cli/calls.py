"""``grant`` and ``call``: opening a task for a user, and one hop from the shell."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from remit_broker.cli.client import BrokerClient
from remit_broker.cli.common import Config, Json, command, duration, out, say
from remit_broker.config import load
from remit_schemas.budget import parse_budget
from remit_schemas.scope import parse_scope


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(grant)


@command
def grant(
    user: Annotated[str, typer.Option(help="Whose authority it is.")],
    to: Annotated[str, typer.Option(help="The agent that gets it.")],
    scope: Annotated[
        list[str], typer.Option(help='What it covers: mcp/git/*, or mcp/files/read{"path":{"prefix":"docs/"}}')
    ],
    budget: Annotated[str, typer.Option(help="Such as usd=0.5,tokens=10000,calls=20.")] = "usd=0.1,calls=20",
    ttl: Annotated[str, typer.Option(help="Such as 10m; at most 8h.")] = "10m",
    max_depth: Annotated[int, typer.Option(help="How many agents deep it may go.", min=0, max=16)] = 8,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Open a task for a user and print its root grant."""
    body = {
        "user": user,
        "agent": to,
        "scopes": msgspec.to_builtins([parse_scope(text) for text in scope]),
        "budget": msgspec.to_builtins(parse_budget(budget)),
        "ttl": duration(ttl),
        "max_depth": max_depth,
    }
    told = BrokerClient(load(config)).post("/api/grants", body)
    if as_json:
        say(told)
    else:
        out.print(told["grant"])
