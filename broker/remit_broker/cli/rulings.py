"""``observe``, ``enforce``, ``allow`` and ``suggest``: trying policies on what happens, and living with them."""

from __future__ import annotations

from typing import Annotated

import typer

from remit_broker.adapters.errors import ConfigError
from remit_broker.cli.client import BrokerClient
from remit_broker.cli.common import Config, Json, Tenant, command, duration
from remit_broker.cli.policy import history
from remit_broker.cli.printing import line, out, say
from remit_broker.config import load
from remit_schemas.errors import Code, refusal

Policy = Annotated[str | None, typer.Option(help="One policy, by its id.")]
Server = Annotated[str | None, typer.Option(help="All policies, as far as they are about this MCP server's tools.")]
Why = Annotated[str, typer.Option(help="For the record.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(observe)
    app.command()(enforce)
    app.command()(allow)
    app.command()(suggest)


@command
def observe(
    policy: Policy = None,
    server: Server = None,
    why: Why = "",
    tenant: Tenant = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Only record what would be refused, by one policy or for one server: nothing is refused by it any more."""
    _mode("observe", {"policy": policy, "server": server, "why": why}, BrokerClient(load(config), tenant), as_json)


@command
def enforce(
    policy: Policy = None,
    server: Server = None,
    why: Why = "",
    tenant: Tenant = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Refuse again what was only observed."""
    _mode("enforce", {"policy": policy, "server": server, "why": why}, BrokerClient(load(config), tenant), as_json)


def _mode(word: str, wish: dict[str, str | None], client: BrokerClient, as_json: bool) -> None:
    if (wish["policy"] is None) is (wish["server"] is None):
        raise ConfigError("name a policy or a server", f"remit {word} --policy ID, or remit {word} --server NAME")
    told = client.post(f"/api/policy/{word}", wish)
    if as_json:
        say(told)
    else:
        back = f"; to enforce it again: remit enforce --{told['name']}" if word == "observe" else ""
        out.print(line(f"{told['state']}: {told['name']} (record {told['record']}){back}"))


@command
def allow(
    what: Annotated[str, typer.Argument(metavar="ID", help="A refused call, <txn>.<hop>, or a unique beginning.")],
    life: Annotated[str, typer.Option("--for", help="How long: 90s, 10m, 2h; at most 30 days.")] = "1h",
    why: Why = "",
    tenant: Tenant = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Except calls like a refused one from the policies that refused it, for a time: same user, agent, action and resource."""
    from remit_broker.cli.chains import the_hop

    client = BrokerClient(load(config), tenant)
    told = client.post("/api/policy/allow", {"hop": the_hop(client, what), "seconds": duration(life), "why": why})
    if as_json:
        say(told)
        return
    out.print(
        line(
            "allowed for ", (life, "bold"), f": {told['caller']} may {told['action']} {told['resource']} for {told['user']}, "
            f"despite {', '.join(told['rules'])} (record {told['record']})",
        )
    )  # fmt: skip
    out.print(line((f"to end it: remit policy exceptions --withdraw {told['hop']}", "dim")))


@command
def suggest(
    since: Annotated[str, typer.Option(help="Only from what was decided at or after (RFC 3339).")] = "",
    agent: Annotated[str | None, typer.Option(help="Only for this agent.")] = None,
    tenant: Tenant = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Write the least policy that permits what was observed, to stdout; what was refused is not permitted by it."""
    from remit_broker.core.suggest import suggested

    pasts = [
        past for past in history(BrokerClient(load(config), tenant), since) if agent in (None, past.question.caller)
    ]
    text = suggested(pasts)
    if not text:
        raise refusal(
            Code.UNKNOWN_TARGET, "nothing was let through that a policy could be made of", rule="suggest.nothing",
            ask="let agents work for a while, perhaps with remit observe",
        )  # fmt: skip
    if as_json:
        say({"policy": text, "calls": sum(past.count for past in pasts)})
    else:
        typer.echo(text, nl=False)
