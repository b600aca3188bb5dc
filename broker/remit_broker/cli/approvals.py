"""``remit approvals``: what waits for a person, and what they say to it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from remit_broker.cli.client import BrokerClient
from remit_broker.cli.common import Config, Json, Tenant, command
from remit_broker.cli.printing import line, out, say
from remit_broker.config import load

app = typer.Typer(help="Calls that wait for a person's approval.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ID", help="The approval, or a unique beginning of at least 4 digits.")]
Reason = Annotated[str, typer.Option(help="For the record and, where it is a no, for the caller.")]
_COLOURS = {"waiting": "yellow", "approved": "green", "used": "green", "denied": "red"}


@app.command("list")
@command
def list_(
    state: Annotated[str, typer.Option(help="waiting, approved, denied, used, expired, void or all.")] = "waiting",
    tenant: Tenant = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """List calls that wait to be approved, newest first."""
    found = BrokerClient(load(config), tenant).get("/api/approvals", state=state)
    if as_json:
        say(found)
        return
    for row in found["approvals"]:
        colour = _COLOURS.get(row["state"], "dim")
        out.print(
            line(f"{row['id']}  {row['at']}  ", (row["resource"], "bold"), f" for {row['user']}  ", (row["state"], colour),
                 (f"  until {row['expires']}", "dim"))
        )  # fmt: skip
    if not found["approvals"]:
        out.print("none")
    if found["more"]:
        out.print(line(("and older ones", "dim")))


@app.command()
@command
def show(name: Id, tenant: Tenant = None, config: Config = None, as_json: Json = False) -> None:
    """Show one: who asks, for whom, along which chain, and exactly what would be sent."""
    told = BrokerClient(load(config), tenant).get(f"/api/approvals/{name}")
    if as_json:
        say(told)
        return
    _show(told)


@app.command()
@command
def approve(name: Id, reason: Reason = "", tenant: Tenant = None, config: Config = None, as_json: Json = False) -> None:
    """Approve one call: exactly these arguments, this chain and these policies, once."""
    _decide(name, ("approve", reason), tenant, config, as_json)


@app.command()
@command
def deny(name: Id, reason: Reason = "", tenant: Tenant = None, config: Config = None, as_json: Json = False) -> None:
    """Deny one call; the reason reaches its caller."""
    _decide(name, ("deny", reason), tenant, config, as_json)


def _decide(name: str, said: tuple[str, str], tenant: str | None, config: str | None, as_json: bool) -> None:
    client, (verdict, reason) = BrokerClient(load(config), tenant), said
    told = client.post(f"/api/approvals/{name}", {"verdict": verdict, "reason": reason})
    if as_json:
        say(told)
        return
    if told["state"] == "waiting":
        out.print(line(f"noted; {told['id']} waits for more people"))
    elif verdict == "approve":
        out.print(
            line(
                f"approved {told['resource']} for {told['user']}; the identical call goes through once until {told['expires']}"
            )
        )
    else:
        out.print(line(f"denied {told['resource']} for {told['user']}"))


def _show(told: dict[str, Any]) -> None:
    chain = " → ".join([told["user"], *told["chain"]])
    out.print(
        line((told["resource"], "bold"), f"  {told['action']}  ", (told["state"], _COLOURS.get(told["state"], "dim")))
    )
    out.print(line(f"  for {told['user']}, along {chain}"))
    out.print(line(f"  asked at {told['at']}, until {told['expires']}: {told['reason']}"))
    for need in told["needs"]:
        who = f"{need['count']} with the role {need['role']}" if need["role"] else f"{need['count']} person(s)"
        eyes = ", never the user" if need["four_eyes"] else ""
        out.print(line(f"  {need['rule']} wants {who}{eyes}{': ' + need['text'] if need['text'] else ''}"))
    for finding in told["findings"]:
        out.print(line((f"  found {finding['kind']} at {finding['where'] or '/'}", "yellow")))
    if told["redacted"]:
        out.print(line((f"  redacted {', '.join(told['redacted'])}", "yellow")))
    if told["labels"]:
        out.print(line(f"  labels {', '.join(told['labels'])}"))
    if told["endorses"]:
        out.print(line((f"  who approves it vouches for it: {', '.join(told['endorses'])} is taken away", "yellow")))
    for vote in told["votes"]:
        out.print(line(f"  {vote['who']}: {vote['verdict']}{': ' + vote['reason'] if vote['reason'] else ''}"))
    if told["kept"]:
        said = "as its digest says" if told["match"] else "NOT what its digest says"
        out.print(line(f"  would be sent, {said} ({told['args_digest'][:16]}…):"))
        for row in told["text"].splitlines():
            out.print(line(f"    {row}"))
        if told["hidden"]:
            out.print(line((f"  {told['hidden']} hidden characters are shown as \\u escapes", "yellow")))
    elif told["state"] == "waiting":
        out.print(line(("  the arguments are not kept any more: it can only be denied", "red")))
