"""``remit servers scan``: what is wrong with an MCP server, before it is let in. No broker is needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from remit_broker.adapters.errors import ConfigError
from remit_broker.cli.common import REFUSED, Json, command, read_text, run_loop
from remit_broker.cli.containing import Network, Read, Uncontained, room_for
from remit_broker.cli.printing import err, line, out, say

if TYPE_CHECKING:
    from remit_broker.core.addresses import Network as Net
    from remit_broker.core.scan.finding import Finding, Report
    from remit_broker.edges.attach.source import Source

_COLOURS: Final = {"critical": "bold red", "high": "red", "medium": "yellow", "low": "cyan", "info": "dim"}
MOST: Final = 5
"""Places of one finding that are shown on a terminal."""
Level = Literal["info", "low", "medium", "high", "critical"]


@command
def scan(
    words: Annotated[list[str] | None, typer.Argument(metavar="URL | -- CMD…", help="What to look at.")] = None,
    fail_on: Annotated[Level, typer.Option(help="The exit code is 1 where something this bad is found.")] = "high",
    html: Annotated[Path | None, typer.Option(help="Write the report as a page of its own.", metavar="FILE")] = None,
    token_file: Annotated[str, typer.Option(help="A bearer token for a URL; - reads stdin.", metavar="FILE")] = "",
    ca: Annotated[Path | None, typer.Option(help="A file of certificates to trust for a URL.", metavar="FILE")] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(help="A network that is asked for metadata that the server names, although it is not public."),
    ] = None,
    cwd: Annotated[Path | None, typer.Option(help="Working folder of the command.")] = None,
    env: Annotated[
        list[str] | None, typer.Option("--env", help="NAME=VALUE for the command; it sees nothing else.")
    ] = None,
    read: Read = None,
    network: Network = False,
    uncontained: Uncontained = False,
    seconds: Annotated[float, typer.Option(help="How long it may take.", min=1, max=600)] = 60.0,
    as_json: Json = False,
) -> None:
    """Look for gaps in an MCP server before it is registered: remit servers scan -- mcp-server-git."""
    from remit_broker.edges.attach.source import HttpSource, SourceError, source

    given = words or []
    url = given[0] if len(given) == 1 and given[0].startswith(("http://", "https://")) else None
    variables = dict(_pair(pair) for pair in env or ())
    try:
        folder = cwd.absolute() if cwd else None
        room = None
        if url is None and given:
            room = room_for(given, folder, read, None, network=network, uncontained=uncontained)
        target = source(None if url else given, url, cwd=folder, env=variables or None, room=room)
    except SourceError as bad:
        raise ConfigError(str(bad), "remit servers scan URL, or: remit servers scan -- CMD…") from None
    if not isinstance(target, HttpSource) and (token_file or ca or allow):
        raise ConfigError("--token-file, --ca and --allow are for a URL", "leave them out")
    token = read_text(token_file).strip() if token_file else None
    if token is not None and not (token.isascii() and token.isprintable() and token and " " not in token):
        raise ConfigError(f"{token_file} holds no token", "write the access token into it, nothing else")
    try:
        report = run_loop(_look(target, token, str(ca) if ca else None, _networks(allow), seconds))
    except SourceError as bad:
        raise ConfigError(str(bad), "give its whole path, or install it") from None
    if html is not None:
        from remit_broker.core.scan.html import page

        html.write_text(page(report), encoding="utf-8")
    if as_json:
        say(report.told())
    else:
        _show(report)
    if report.reaches(fail_on):
        if not as_json:
            err.print(line(f"found something of severity {fail_on} or above"))
        raise typer.Exit(REFUSED)


def _networks(texts: list[str] | None) -> list[Net]:
    from remit_broker.core.addresses import network

    try:
        return [network(text) for text in texts or ()]
    except ValueError:
        raise ConfigError(f"--allow {texts} is no network", "write such as --allow 10.0.0.0/8") from None


async def _look(target: Source, token: str | None, ca: str | None, allowed: list[Net], seconds: float) -> Report:
    import time

    from remit_broker.adapters.content.signs import signs
    from remit_broker.adapters.detectors import ContentDetectors
    from remit_broker.adapters.json_schema import JsonSchemas
    from remit_broker.adapters.outbound import Outbound
    from remit_broker.core.times import rfc3339
    from remit_broker.edges.scan.run import Tools, scan

    tools = Tools(signs(ContentDetectors()), JsonSchemas().check)
    foreign = Outbound(allowed, named="--allow").get
    return await scan(target, tools, lambda: rfc3339(time.time()), token=token, ca=ca, foreign=foreign, seconds=seconds)


def _pair(pair: str) -> tuple[str, str]:
    name, sign, value = pair.partition("=")
    if not sign:
        raise ConfigError(f"--env {pair!r} is not NAME=VALUE", "write --env NAME=VALUE")
    return name, value


def _show(report: Report) -> None:
    name = " ".join(report.server.get(key, "") for key in ("name", "version")).strip() or "nobody"
    out.print(line((report.target, "bold")))
    protocol = report.server.get("protocol", "-")
    out.print(
        line(
            f"  {name}, MCP {protocol}: {len(report.tools)} tools, {report.resources} resources, {report.prompts} prompts"
        )
    )
    if report.contained:
        out.print(line(f"  ran {report.contained}"))
    for (severity, rule, message), group in _grouped(report).items():
        out.print(line((f"{severity:<9}", _COLOURS[severity]), (message, "bold"), (f"  {rule}", "dim")))
        for one in group[:MOST]:
            out.print(line(f"          {one.where}", (f"  {one.evidence}" if one.evidence else "", "dim")))
        if len(group) > MOST:
            out.print(line(f"          and {len(group) - MOST} more: --json and --html have all of them"))
        if group[0].ask:
            out.print(line(f"          → {group[0].ask}"))
    if report.left_out:
        out.print(line(f"and {report.left_out} more"))
    told = ", ".join(f"{number} {level}" for level, number in report.counts().items() if number)
    out.print(line(told or "nothing was found"))


def _grouped(report: Report) -> dict[tuple[Level, str, str], list[Finding]]:
    """Findings with one thing to say of several places together, in order."""
    found: dict[tuple[Level, str, str], list[Finding]] = {}
    for one in report.findings:
        found.setdefault((one.severity, one.rule, one.message), []).append(one)
    return found
