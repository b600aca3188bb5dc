"""``remit vault``: what was sent and answered, for those who may see it; and that it goes, or must stay, for a person."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from remit_broker.cli.chains import the_hop
from remit_broker.cli.client import BrokerClient
from remit_broker.cli.common import Config, Json, Tenant, command
from remit_broker.cli.printing import line, out, say
from remit_broker.config import load
from remit_broker.core.showing import visible_json

app = typer.Typer(help="Arguments and results that are kept encrypted; erasing and holding them.", no_args_is_help=True)

User = Annotated[str, typer.Option(help="Whose, as the records name the user of a task.")]
Reason = Annotated[str, typer.Option(help="Why: it stands in the record for good, so name nobody in it.")]


@app.command("show")
@command
def show(
    hop: Annotated[str, typer.Argument(metavar="HOP", help="A hop, <txn>.<hop>, or a unique beginning.")],
    tenant: Tenant = None, config: Config = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Show what was sent to a hop and what it answered, as far as it is kept. Takes an administrator, and is recorded."""
    client = BrokerClient(load(config), tenant)
    told = client.get(f"/api/vault/{the_hop(client, hop)}")
    if as_json:
        say(told)
        return
    out.print(line(f"{told['txn']}.{told['hop']}, for {told['user']}"))
    for one in told["contents"]:
        mark = ("✓", "green") if one["kept"] else ("·", "dim")
        out.print(line("  ", mark, f" record {one['record']}: {one['field'].removesuffix('_digest')}"))
        if one["kept"]:
            for row in visible_json(one["value"]).splitlines():
                out.print(line(f"      {row}"))
        else:
            out.print(line((f"      {one['why']}", "dim")))


@app.command("list")
@command
def list_(tenant: Tenant = None, config: Config = None, as_json: Json = False) -> None:
    """What is kept for how long, who is held, and who was erased."""
    told = BrokerClient(load(config), tenant).get("/api/vault")
    if as_json:
        say(told)
        return
    keeps = ", ".join(f"{kind} for {seconds:g} s" for kind, seconds in told["keeps"].items() if seconds)
    out.print(line(f"keeps {keeps or 'nothing'}" if told["on"] else "keeps nothing: [vault] on = true in remit.toml"))
    for name in ("holds", "erasing", "erased"):
        for one in told[name]:
            out.print(line(f"{one['state']:<9} {one['user']:<24} {one['at']}  {one['by']}  {one['reason']}"))


@app.command("erase")
@command
def erase(user: User, reason: Reason, tenant: Tenant = None, config: Config = None, as_json: Json = False) -> None:
    """Destroy the key of a user and all that is kept under it; every proof still verifies. Refused while somebody holds it."""
    told = _post("erase", user, reason, tenant, config)
    if as_json:
        say(told)
    elif told["key"]:
        out.print(line(f"erased what was kept of {user}: its key, and {told['messages']} messages"))
    else:
        out.print(line(f"nothing was kept of {user}; recorded all the same"))


@app.command("hold")
@command
def hold(user: User, reason: Reason, tenant: Tenant = None, config: Config = None, as_json: Json = False) -> None:
    """From now on nothing that is kept of a user is erased or forgotten."""
    told = _post("hold", user, reason, tenant, config)
    if as_json:
        say(told)
    else:
        out.print(line(f"held: {user}; to lift it: remit vault release"))


@app.command("release")
@command
def release(user: User, reason: Reason, tenant: Tenant = None, config: Config = None, as_json: Json = False) -> None:
    """Lift a hold: from now on what is kept of the user goes when its time is over."""
    told = _post("release", user, reason, tenant, config)
    if as_json:
        say(told)
    else:
        out.print(line(f"released: {user}"))


def _post(what: str, user: str, reason: str, tenant: str | None, config: str | None) -> Any:
    return BrokerClient(load(config), tenant).post(f"/api/vault/{what}", {"user": user, "reason": reason})
