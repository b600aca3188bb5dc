"""``users``: those of the development issuer, and tokens for them."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from remit_broker.adapters.errors import ConfigError
from remit_broker.adapters.keyfiles import KeyFiles
from remit_broker.cli.client import BrokerClient
from remit_broker.cli.common import Config, Json, command
from remit_broker.cli.printing import line, out, say
from remit_broker.config import Settings, load
from remit_broker.core.issuers import DEV_PATH

app = typer.Typer(help="Users of the development issuer.", no_args_is_help=True)


@app.command("list")
@command
def list_(config: Config = None, as_json: Json = False) -> None:
    """Who there is in [development.users]."""
    users = _development(load(config)).config.development.users
    if as_json:
        say({"users": [{"user": name, **msgspec.to_builtins(user)} for name, user in users.items()]})
        return
    for name, user in users.items():
        told = [("roles", user.roles), ("groups", user.groups), ("tenant", (user.tenant,))]
        out.print(line((name, "bold"), *(f"  {key} {', '.join(names)}" for key, names in told if names)))


@app.command()
@command
def token(
    name: Annotated[str, typer.Argument(help="A user of [development.users].")],
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Print an access token of the development issuer for a user, good for an hour: for remit grant --token-file -, or an SDK."""
    settings = _development(load(config))
    told = BrokerClient(settings).form(
        f"{DEV_PATH}/token",
        {"grant_type": "password", "username": name, "client_secret": KeyFiles.open(settings.data).local_token},
    )
    if as_json:
        say(told)
    else:
        typer.echo(told["access_token"])


def _development(settings: Settings) -> Settings:
    if not settings.config.development.issuer:
        raise ConfigError(
            "the development issuer is not on",
            "say issuer = true in [development] of remit.toml, then start the broker",
        )
    return settings
