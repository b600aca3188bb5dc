"""``grant`` and ``call``: opening a task for a user, and one hop from the shell."""

from __future__ import annotations

import getpass
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from remit_broker.adapters.errors import ConfigError
from remit_broker.cli.client import BrokerClient, whose
from remit_broker.cli.common import (
    REFUSED,
    Config,
    Json,
    Tenant,
    command,
    duration,
    read_json,
    read_text,
    run_loop,
    typed,
)
from remit_broker.cli.printing import err, line, out, say, visible
from remit_broker.config import Settings, load
from remit_schemas.budget import parse_budget
from remit_schemas.errors import Code, Refusal
from remit_schemas.names import parse_resource
from remit_schemas.scope import parse_scope


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(grant)
    app.command()(call)


@command
def grant(
    to: Annotated[str, typer.Option(help="The agent that gets it.")],
    scope: Annotated[
        list[str], typer.Option(help='What it covers: mcp/git/*, or mcp/files/read{"path":{"prefix":"docs/"}}')
    ],
    user: Annotated[str | None, typer.Option(help="Whose authority it is, by your word as an operator.")] = None,
    token_file: Annotated[
        str, typer.Option(help="The user's own token, which says who it is; - reads stdin.", metavar="FILE")
    ] = "",
    role: Annotated[list[str] | None, typer.Option(help="A role of --user, for policy to see.")] = None,
    group: Annotated[list[str] | None, typer.Option(help="A group of --user, for policy to see.")] = None,
    budget: Annotated[str, typer.Option(help="Such as usd=0.5,tokens=10000,calls=20.")] = "usd=0.1,calls=20",
    ttl: Annotated[str, typer.Option(help="How long it lives, such as 10m; at most 8h.")] = "10m",
    max_depth: Annotated[int, typer.Option(help="How many agents deep it may go.", min=0, max=16)] = 8,
    labels: Annotated[
        str, typer.Option(help="Which labels of data may reach it, such as internal,web; '' for unlabelled data alone.")
    ] = "*",
    tenant: Tenant = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Open a task for a user and print its root grant: with the user's token, or by the word of an operator."""
    if token_file and (user is not None or role or group):
        raise ConfigError("the token says who the user is", "leave out --user, --role and --group")
    settings = load(config)
    if user is None and not token_file and settings.config.http.auth != "issuer":
        raise ConfigError(
            "nobody says whose authority it is", "name the user with --user, or give a token with --token-file"
        )
    body = {
        "user": user or "",
        "token": read_text(token_file).strip() if token_file else "",
        "roles": role or [],
        "groups": group or [],
        "agent": to,
        "scopes": msgspec.to_builtins([typed("--scope", text, parse_scope) for text in scope]),
        "budget": msgspec.to_builtins(typed("--budget", budget, parse_budget)),
        "ttl": duration(ttl),
        "max_depth": max_depth,
        "labels": [name for part in labels.split(",") if (name := part.strip())],
    }
    told = BrokerClient(settings, tenant).post("/api/grants", body)
    if as_json:
        say(told)
    else:
        out.print(told["grant"])


@command
def call(
    resource: Annotated[str, typer.Argument(help="agent/<agent>/<skill> or mcp/<server>/<tool>")],
    arguments: Annotated[str, typer.Argument(metavar="[JSON]", help="An object; - reads stdin, @FILE a file.")] = "{}",
    caller: Annotated[str, typer.Option("--as", help="The agent whose credentials make the call.")] = "",
    grant_file: Annotated[
        Path | None, typer.Option(help="The grant to call with; without one a task is opened for you.")
    ] = None,
    budget: Annotated[str | None, typer.Option(help="What the call may cost, such as usd=0.01,calls=1.")] = None,
    ttl: Annotated[str | None, typer.Option(help="How long it may take, such as 30s.")] = None,
    wait: Annotated[str | None, typer.Option(help="How long to wait for a person's approval, such as 10m.")] = None,
    tenant: Tenant = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Make one governed call from the shell, as an agent of this machine."""
    settings = load(config)
    typed("RESOURCE", resource, parse_resource)
    if budget is not None:
        typed("--budget", budget, parse_budget)
    args = read_json(arguments, "JSON")
    path = settings.credentials_of(whose(settings, tenant)) / f"{caller}.json"
    if not caller or not path.exists():
        who = f"there are no credentials for {caller} in {path.parent}" if caller else "no agent makes this call"
        raise ConfigError(
            who, f"register one and name it: remit agents add {caller or 'NAME'}, then --as {caller or 'NAME'}"
        )
    patience, wanted = duration(wait) if wait else 0, (resource, caller)
    with _grant(settings, tenant, wanted, grant_file, patience) as token:
        wishes: dict[str, Any] = {"budget": budget, "ttl": float(duration(ttl)) if ttl else None}
        wishes["wait"] = float(patience)
        told = run_loop(_one(path, token, resource, args, wishes, lambda said: err.print(line((said, "dim")))))
    if as_json:
        say(told)
    else:
        typer.echo(visible(_readable(told["result"]), keep="\n\t"))
    if told.get("failed"):
        err.print("the tool ran and reports a failure of its own")
        raise typer.Exit(REFUSED)


def _readable(result: Any) -> str:
    """The text of an MCP tool's result; of anything else, the JSON."""
    from remit import text

    if isinstance(result, dict) and isinstance(result.get("content"), list):
        return text(result)
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, indent=2)


@contextmanager
def _grant(
    settings: Settings, tenant: str | None, wanted: tuple[str, str], file: Path | None, patience: int
) -> Iterator[str]:
    """The grant in ``file``, or that of a task opened for the user of this machine and closed afterwards.

    ``wanted`` is what is called, and by whom.
    """
    if file is not None:
        yield read_text(file).strip()
        return
    client, (resource, caller) = BrokerClient(settings, tenant), wanted
    wish = {
        # By an issuer's token it is whom the token names.
        "user": "" if settings.config.http.auth == "issuer" else getpass.getuser(),
        "agent": caller,
        "scopes": [{"type": "remit", "resource": resource}],
        "budget": msgspec.to_builtins(parse_budget("usd=0.1,tokens=100000,calls=20")),
        "ttl": 120 + patience,
    }
    told = client.post("/api/grants", wish)
    try:
        yield told["grant"]
    except Refusal as no:
        if no.body.code is not Code.APPROVAL_REQUIRED or no.body.rule.startswith("client."):
            raise
        # The task ends with this command, and what was asked in it is void then.
        ask = "call again with --wait 10m, and have it approved meanwhile: remit approvals list"
        body = msgspec.structs.replace(no.body, ask=ask, approval=None, approval_url=None)
        raise Refusal(body, no.cause) from None
    finally:
        client.post(f"/api/chains/{told['txn']}/close")


async def _one(
    path: Path, grant: str, resource: str, args: dict[str, Any], wishes: dict[str, Any], hear: Callable[[str], None]
) -> dict[str, Any]:
    from remit import Agent, Progress, Refused, ToolFailed

    logging.getLogger("remit").addHandler(logging.NullHandler())  # what it would say is in the answer
    try:
        async with Agent(path.stem, credentials=path).task(grant) as task:
            run = await _started(task, resource, args, wishes, hear)
            async for event in run:
                hear(str(event.message if isinstance(event, Progress) else event.data))
            told = {"txn": task.txn, "hop": run.id}
            try:
                return {**told, "result": await run.result()}
            except ToolFailed as failed:
                return {**told, "result": failed.value, "failed": True}
    except Refused as no:
        raise Refusal(no.body) from None


async def _started(
    task: Any, resource: str, args: dict[str, Any], wishes: dict[str, Any], hear: Callable[[str], None]
) -> Any:
    """The call as it runs; where a person has to approve it first, and somebody waits for that, once they have."""
    from remit import Refused

    patience, approval = wishes.pop("wait"), None
    while True:
        try:
            return await task.start(resource, args=args, approval=approval, **wishes)
        except Refused as no:
            if no.approval is None or not patience:
                raise
            hear(f"{no.body.message}; waiting, until somebody says: remit approvals approve {no.approval}")
            approval = await task.approved(no, patience)
