"""``policy check``, ``test``, ``simulate``, ``replay`` and ``exceptions``: policies as code, before and after they are in force."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from remit_broker.adapters.errors import ConfigError
from remit_broker.cli.client import BrokerClient
from remit_broker.cli.common import REFUSED, Config, Json, Tenant, command, read_json
from remit_broker.cli.printing import line, out, say
from remit_broker.config import load

app = typer.Typer(help="Check, test and try policies.", no_args_is_help=True)

Folder = Annotated[
    Path | None, typer.Argument(metavar="DIR", help="A policy folder; without it, that of the configuration.")
]


@app.command()
@command
def check(folder: Folder = None, config: Config = None, as_json: Json = False) -> None:
    """Say what is wrong with policies: not valid, never deciding, without an id or reason, wider than they look."""
    from remit_broker.adapters.policy_check import checked

    found = checked(_folder(folder, config))
    if as_json:
        say(found)
    else:
        for one in found["findings"]:
            colour = "red" if one["level"] == "error" else "yellow"
            out.print(line((f"{one['level']} ", colour), f"{one['where']}{': ' if one['where'] else ''}{one['what']}"))
            out.print(line((f"  → {one['ask']}", "dim")))
        if found["ok"]:
            out.print(line(("✓ ", "green"), f"{found['policies']} policies, revision {found['revision'][:12]}"))
    if not found["ok"]:
        raise typer.Exit(REFUSED)


@app.command()
@command
def test(folder: Folder = None, config: Config = None, as_json: Json = False) -> None:
    """Run the cases in tests/*.toml beside the policies. Exit code 1 where one fails."""
    from remit_broker.adapters.cedar import CedarEngine
    from remit_broker.adapters.policy_cases import read_cases
    from remit_broker.core.what_if import failures

    at = _folder(folder, config)
    engine = CedarEngine.load(at)
    cases = read_cases(at)
    if not cases:
        raise ConfigError(
            f"there are no cases in {at / 'tests'}", "remit init writes some; docs/policy.md shows what one says"
        )
    results: list[dict[str, Any]] = []
    for where, case in cases:
        why = failures(case, engine.decide(case.question()))
        results.append({"name": case.name, "where": where, "ok": not why, "why": why})
    failed = [one for one in results if not one["ok"]]
    if as_json:
        say({"ok": not failed, "revision": engine.revision, "cases": results})
    else:
        for one in failed:
            out.print(line(("✗ ", "red"), (str(one["name"]), "bold"), f"  {one['where']}"))
            for why in one["why"]:
                out.print(line(f"    {why}"))
        ended = ("green", "✓") if not failed else ("red", "✗")
        out.print(line((f"{ended[1]} ", ended[0]), f"{len(results) - len(failed)} of {len(results)} cases"))
    if failed:
        raise typer.Exit(REFUSED)


Agent = Annotated[str, typer.Option("--as", help="The agent that would call.")]
Several = list[str] | None


@app.command()
@command
def simulate(
    resource: Annotated[str, typer.Argument(metavar="RESOURCE", help="A tool or skill, such as mcp/files/read_file.")],
    args: Annotated[str, typer.Argument(metavar="JSON", help="Its arguments.")] = "{}",
    agent: Agent = "",
    user: Annotated[str, typer.Option(help="For whom.")] = "somebody",
    role: Annotated[Several, typer.Option(help="A role of theirs; may be given again.")] = None,
    group: Annotated[Several, typer.Option(help="A group of theirs.")] = None,
    label: Annotated[Several, typer.Option(help="A label of the data that has reached the agent.")] = None,
    found: Annotated[Several, typer.Option(help="A kind of finding, such as secret.npm_token.")] = None,
    action: Annotated[str, typer.Option(help="call, delegate, detach, release or list.")] = "",
    say_also: Annotated[
        Several, typer.Option("--set", help="Anything else a case may say: tier=untrusted, depth=4.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--policies", help="Ask these policies instead, without a broker.")
    ] = None,
    tenant: Tenant = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Say what policy would decide. A running broker fills in what it knows of agent and tool; nothing is called."""
    wish: dict[str, Any] = {
        "resource": resource, "agent": agent, "user": user, "roles": role or [], "groups": group or [],
        "labels": label or [], "findings": found or [], "args": read_json(args, "JSON"), "action": action,
        **dict(_set(text) for text in say_also or []),
    }  # fmt: skip
    if not agent:
        raise ConfigError("nobody calls", "name an agent: --as researcher")
    told = _simulated(folder, wish) if folder else BrokerClient(load(config), tenant).post("/api/policy/simulate", wish)
    if as_json:
        say(told)
    else:
        show_verdict(told)


def _simulated(folder: Path, wish: dict[str, Any]) -> dict[str, Any]:
    import msgspec

    from remit_broker.adapters.cedar import CedarEngine
    from remit_broker.core.what_if import WhatIf
    from remit_broker.edges.http.policy import told

    try:
        request = msgspec.convert(wish, WhatIf, strict=False).question()
    except msgspec.ValidationError as error:
        raise ConfigError(str(error), "docs/policy.md shows what a case may say") from None
    shown: dict[str, Any] = msgspec.to_builtins(told(request, CedarEngine.load(folder).decide(request)))
    return shown


def show_verdict(told: dict[str, Any]) -> None:
    """A simulated verdict for people."""
    colour = {"allow": "green", "deny": "red"}.get(told["outcome"], "yellow")
    out.print(line((f"{told['outcome']} ", colour), f"by {', '.join(told['rules'])}"))
    if told["reason"]:
        out.print(line(f"  {told['reason']}"))
    if told["ask"] and told["outcome"] != "allow":
        out.print(line((f"  → {told['ask']}", "dim")))
    for key in ("redact", "label"):
        if told[key]:
            out.print(line(f"  {key}: {', '.join(told[key])}"))
    if told["cap"]:
        out.print(line("  cap: " + ", ".join(f"{k}={v}" for k, v in told["cap"].items() if v is not None)))
    if unseen := told["args"].get("unprojected"):
        out.print(line((f"  policy cannot see: {', '.join(place or 'the arguments' for place in unseen)}", "yellow")))
    if not told["target_known"]:
        out.print(line(("  nobody serves it now: what it says of itself was assumed", "dim")))


@app.command()
@command
def replay(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The policies to try.")],
    since: Annotated[str, typer.Option(help="Only what was decided at or after (RFC 3339).")] = "",
    limit: Annotated[int, typer.Option(min=1, help="Most kinds of change to show.")] = 20,
    tenant: Tenant = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Ask other policies about everything that was ever decided: what would newly be denied or allowed, for whom, how often."""
    import msgspec

    from remit_broker.adapters.cedar import Policies
    from remit_broker.core.replay import replayed

    policies = Policies.read(folder)
    worst = best = policies.decide
    if policies.looks_at_arguments:
        worst, best = policies.assuming("forbid").decide, policies.assuming("permit").decide
    report = msgspec.to_builtins(
        replayed(history(BrokerClient(load(config), tenant), since, answers=True), worst, best)
    )
    if as_json:
        say({**report, "revision": policies.revision})
        return
    out.print(
        line(
            f"{report['calls']} decisions, {report['answers']} of them about answers; {report['same']} alike under revision "
            f"{policies.revision[:12]}"
        )
    )
    if report["unsure"]:
        out.print(
            line((f"{report['unsure']} depend on what records do not keep: arguments, or labels in between", "yellow"))
        )
    for one in report["changes"][:limit]:
        colour = "red" if one["becomes"] == "deny" else "green" if one["becomes"] == "allow" else "yellow"
        out.print(
            line(
                (f"{one['was']} → {one['becomes']}", colour), f"  {one['count']} times  {one['caller']} ",
                (f"{one['resource']}", "bold"), f"  for {', '.join(one['users'])}  by {', '.join(one['rules']) or 'default deny'}",
            )
        )  # fmt: skip
        out.print(line((f"    remit why {one['examples'][0]}", "dim")))
    if len(report["changes"]) > limit:
        out.print(line((f"and {len(report['changes']) - limit} more kinds: --limit", "dim")))


def history(client: BrokerClient, since: str = "", answers: bool = False) -> Any:
    """Everything that was decided, opened calls first, from a running broker; about ``answers`` too where that is wanted."""
    import msgspec

    from remit_broker.core.replay import Past

    for kind in ("opened", "refused", *(["answered"] if answers else [])):
        after: int | None = 0
        while after is not None:
            page = client.get("/api/policy/decisions", kind=kind, after=after, since=since)
            after = page["next"]
            for raw in page["decisions"]:
                past = msgspec.convert(raw, Past, strict=False)
                if past.at >= since:
                    yield past


@app.command()
@command
def exceptions(
    withdraw: Annotated[
        str | None, typer.Option(metavar="ID", help="End the exception that was made for this call.")
    ] = None,
    why: Annotated[str, typer.Option(help="For the record.")] = "",
    tenant: Tenant = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """List exceptions and what is only observed, by whom and why; or end an exception."""
    client = BrokerClient(load(config), tenant)
    if withdraw is not None:
        told = client.post("/api/policy/withdraw", {"hop": withdraw.rpartition(".")[2], "why": why})
    else:
        told = client.get("/api/policy/rulings")
    if as_json:
        say(told)
        return
    if withdraw is not None:
        out.print(line(f"the exception for {told['name']} has ended (record {told['record']})"))
        return
    for one in told["observed"]:
        out.print(line((f"observed  {one['name']}", "yellow"), f"  by {one['who']} at {one['at']}  {one['why']}"))
    for one in told["exceptions"]:
        state, colour = ("in force", "yellow") if one["in_force"] else ("over", "dim")
        out.print(
            line((f"{state}  {one['hop']}", colour), f"  {one['caller']} {one['action']} ", (one["resource"], "bold"),
                 f" for {one['user']} despite {', '.join(one['rules'])}  by {one['who']} at {one['at']}  {one['why']}")
        )  # fmt: skip
    if not told["observed"] and not told["exceptions"]:
        out.print("none")


def _folder(folder: Path | None, config: str | None) -> Path:
    return folder if folder is not None else load(config).policies


def _set(text: str) -> tuple[str, Any]:
    """``depth=4``, ``tiers=a,b``, ``readOnly=true``: what a case may say. Raises :class:`ConfigError`."""
    from remit_broker.core.what_if import WhatIf

    key, equals, value = text.partition("=")
    plain = WhatIf(resource="", agent="")
    if not equals or key not in plain.__struct_fields__:
        raise ConfigError(
            f"--set {text!r} says nothing of a call", f"one of {', '.join(plain.__struct_fields__)}, then = and a value"
        )
    if isinstance(getattr(plain, key), tuple) or key in ("tiers", "actors"):
        return key, [part for part in value.split(",") if part]
    if value in ("true", "false"):
        return key, value == "true"
    return key, int(value) if isinstance(getattr(plain, key), int) and value.isascii() and value.isdigit() else value
