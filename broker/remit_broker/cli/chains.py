"""``chains``, ``chain``, ``why``, ``revoke``, ``reinstate``, ``revocations``: what happened, why, and stopping it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from remit_broker.adapters.errors import ConfigError
from remit_broker.cli.audit_export import moment
from remit_broker.cli.client import BrokerClient
from remit_broker.cli.common import Config, Json, Tenant, command, typed
from remit_broker.cli.printing import line, out, say
from remit_broker.cli.show import cost, count, explained, on_whose_authority, tree
from remit_broker.config import Settings, load
from remit_broker.core.near import meant
from remit_schemas.budget import parse_budget
from remit_schemas.errors import Code, refusal
from remit_schemas.names import is_txn


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(chains)
    app.command()(chain)
    app.command()(why)
    app.command()(revoke)
    app.command()(reinstate)
    app.command()(revocations)


@command
def chains(
    user: Annotated[str | None, typer.Option(help="Of this user.")] = None,
    agent: Annotated[str | None, typer.Option(help="With this agent or server in it.")] = None,
    server: Annotated[str | None, typer.Option(help="That called this MCP server.")] = None,
    tool: Annotated[str | None, typer.Option(help="That called this resource, or the beginning of one.")] = None,
    decision: Annotated[str | None, typer.Option(help="With this decision in it: allow, deny or would_deny.")] = None,
    rule: Annotated[str | None, typer.Option(help="With this policy, or other rule, deciding in it.")] = None,
    code: Annotated[str | None, typer.Option(help="With this error in it.")] = None,
    label: Annotated[str | None, typer.Option(help="That this label got into.")] = None,
    reason: Annotated[str | None, typer.Option(metavar="WORDS", help="With all these words in its reasons.")] = None,
    min_cost: Annotated[str | None, typer.Option(metavar="USD", help="That cost this much or more.")] = None,
    max_cost: Annotated[str | None, typer.Option(metavar="USD", help="That cost this much or less.")] = None,
    since: Annotated[str | None, typer.Option(help="Opened at or after: RFC 3339, or 90s, 10m, 24h, 7d ago.")] = None,
    until: Annotated[str | None, typer.Option(help="Opened before: RFC 3339, or as long ago.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=500)] = 50,
    cursor: Annotated[str | None, typer.Option(help="Where the page before ended.")] = None,
    tenant: Tenant = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """List delegated tasks, newest first. Of several filters a task has to fit all."""
    now = datetime.now(UTC)
    wanted = {
        "user": user, "agent": agent, "server": server, "tool": tool, "decision": decision, "rule": rule, "code": code,
        "label": label, "reason": reason, "min_usd_micros": _micros("--min-cost", min_cost),
        "max_usd_micros": _micros("--max-cost", max_cost), "since": moment(since, now), "until": moment(until, now),
        "cursor": cursor,
    }  # fmt: skip
    page = BrokerClient(load(config), tenant).get("/api/chains", limit=limit, **wanted)
    if as_json:
        say(page)
        return
    for row in page["chains"]:
        state = row["reason"] or "open"
        refused = f"  {row['refused']} refused" if row["refused"] else ""
        out.print(
            line(
                f"{row['txn']}  {row['opened_at']}  ", (row["user"], "bold"), f" → {row['agent']}  {count(row['hops'], 'hop')}  ",
                f"{cost(row['spent'])} of {cost(row['limit'])}  {state}", (refused, "red"),
            )
        )  # fmt: skip
    if page["cursor"]:
        out.print(line(f"more: --cursor {page['cursor']}"))
    if not page["chains"]:
        out.print("none")


def _micros(option: str, dollars: str | None) -> int | None:
    """Millionths of a dollar. Raises :class:`ConfigError`."""
    return None if dollars is None else typed(option, f"usd={dollars}", parse_budget).usd_micros


@command
def chain(
    txn: Annotated[str, typer.Argument(metavar="TXN", help="The txn, or a unique beginning of it.")],
    tenant: Tenant = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Draw one chain: every hop, what was refused, and what it cost."""
    settings = load(config)
    client = BrokerClient(settings, tenant)
    found = client.get(f"/api/chains/{whole(client, txn)}")
    at = trace_link(settings, found["txn"], found["records"][0]["hop"])
    if as_json:
        say({**found, "trace": at})
        return
    out.print(tree(found["records"], found["refusals"]), soft_wrap=False)
    if at:
        out.print(line(("trace ", "dim"), at))


def trace_link(settings: Settings, txn: str | None, hop: str) -> str | None:
    """Where Jaeger shows a hop in its trace, None without ``traces.ui``. A call that was refused without a grant has one
    of its own.
    """
    ui = settings.config.traces.ui.rstrip("/")
    return f"{ui}/trace/{txn or hop * 2}?uiFind={hop}" if ui else None


def whole(client: BrokerClient, beginning: str) -> str:
    """The txn that ``beginning`` is the unique beginning of. Refuses UNKNOWN_TARGET."""
    if is_txn(beginning):
        return beginning
    told = _search(client, beginning)
    found = sorted({hit["txn"] for hit in told["found"] if hit["txn"] and hit["txn"].startswith(beginning.lower())})
    if len(found) != 1:
        raise refusal(
            Code.UNKNOWN_TARGET, f"{'no txn begins' if not found else f'{len(found)} txns begin'} with {beginning}",
            rule="chain.id",
            ask=meant(found[:3] or told["near"], "remit chains lists them; at least 4 digits, enough to be unique"),
        )  # fmt: skip
    return str(found[0])


def _search(client: BrokerClient, beginning: str) -> dict[str, Any]:
    beginning = beginning.lower()
    if len(beginning) < 4 or not set(beginning) <= set("0123456789abcdef."):
        raise ConfigError(f"{beginning!r} is no id", "give a txn, a hop, <txn>.<hop>, or at least 4 of its digits")
    told: dict[str, Any] = client.get(f"/api/find/{beginning}")
    return told


@command
def why(
    what: Annotated[str, typer.Argument(metavar="ID", help="A hop, <txn>.<hop>, or a unique beginning.")],
    tenant: Tenant = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Explain one decision: what was asked, by whom, what decided, and what to ask for instead."""
    settings = load(config)
    client = BrokerClient(settings, tenant)
    record = client.get(f"/api/records/{the_hop(client, what)}")
    from remit_broker.cli.reasons import reasons, show_reasons

    told = reasons(record, settings.policies)
    at = trace_link(settings, record["txn"], record["hop"])
    if as_json:
        say({**record, **told, "trace": at})
        return
    for part in record["records"]:
        for words in explained(part):
            out.print(words)
        if part["kind"] == "hop.opened":
            for words in on_whose_authority(record["authority"]):
                out.print(words)
    show_reasons(told)
    if at:
        out.print(line(("trace ", "dim"), at))


def the_hop(client: BrokerClient, what: str) -> str:
    """The hop, or refused call, that ``what`` is the unique beginning of. Refuses UNKNOWN_TARGET."""
    hits = [hit for hit in _search(client, what)["found"] if hit["hop"]]
    if len({hit["hop"] for hit in hits}) != 1:
        shown = " ".join(hit["hop"] for hit in hits[:8])
        raise refusal(
            Code.UNKNOWN_TARGET, f"{len(hits) or 'no'} hops begin with {what}", rule="why.id",
            ask=f"one of {shown}" if hits else "remit chain TXN shows the hops of a chain with their ids",
        )  # fmt: skip
    return str(hits[0]["hop"])


Agent = Annotated[str | None, typer.Option(help="An agent or server: its calls, calls of it, its connections.")]
User = Annotated[str | None, typer.Option(help="A user: every task opened for them.")]
Tool = Annotated[str | None, typer.Option(metavar="PATTERN", help="Tools or skills, such as mcp/files/*.")]
Stopped = Annotated[
    str | None,
    typer.Option(
        "--tenant", help="By itself a whole tenant: calls, new tasks, connections; else where the other one is."
    ),
]
All = Annotated[bool, typer.Option("--all", help="Everything.")]
Why = Annotated[str, typer.Option(help="For the record.")]


@command
def revoke(
    grant: Annotated[str | None, typer.Option(help="A grant by its jti: it and everything below it.")] = None,
    txn: Annotated[str | None, typer.Option(help="A whole txn, by a unique beginning.")] = None,
    agent: Agent = None,
    user: User = None,
    tool: Tool = None,
    tenant: Stopped = None,
    everything: All = False,
    unseen: Annotated[
        bool, typer.Option("--unseen", help="With --user: also one for whom no task was ever opened.")
    ] = False,
    why: Why = "",
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Stop a grant or a txn at its very next hop; an agent, a user, tools, a tenant or everything within two seconds."""
    wish = _one({"grant": grant, "txn": txn, "agent": agent, "user": user, "tool": tool, "all": everything}, tenant)
    client = BrokerClient(load(config), tenant)
    if txn is not None:
        wish["txn"] = whole(client, txn)
    told = client.post("/api/revocations", {**wish, "why": why, **({"unseen": True} if unseen else {})})
    if as_json:
        say(told)
    elif "seq" in told:
        out.print(line(f"revoked {told['revoked']} (record {told['seq']} of txn {told['txn']})"))
    else:
        again = "--all" if told["kind"] == "all" else f"--{told['kind']} {told['name']}"
        again += f" --tenant {tenant}" if tenant and told["kind"] not in ("all", "tenant") else ""
        out.print(line(f"revoked {told['revoked']}; to lift it: remit reinstate {again}"))


@command
def reinstate(
    agent: Agent = None,
    user: User = None,
    tool: Tool = None,
    tenant: Stopped = None,
    everything: All = False,
    why: Why = "",
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Lift the revocation of an agent, a user, tools, a tenant or everything. Grants and txns stay revoked."""
    wish = _one({"agent": agent, "user": user, "tool": tool, "all": everything}, tenant)
    told = BrokerClient(load(config), tenant).post("/api/revocations/reinstate", {**wish, "why": why})
    if as_json:
        say(told)
    else:
        out.print(line(f"reinstated {told['reinstated']}"))


@command
def revocations(
    history: Annotated[bool, typer.Option("--history", help="All that was ever revoked and lifted.")] = False,
    tenant: Tenant = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """List which agents, users, tools and tenants are revoked, by whom and why; the history is a chain of sealed records."""
    found = BrokerClient(load(config), tenant).get("/api/revocations")
    if as_json:
        say(found)
        return
    entries = found["history" if history else "revocations"]
    for entry in entries:
        what = entry["name"] if entry["kind"] == "all" else f"{entry['kind']} {entry['name']}"
        state = f"{entry['state']:<11}" if history else ""
        out.print(line(f"{entry['at']}  {state}", (what, "bold"), f"  by {entry['who']}  {entry['why']}"))
    if not entries:
        out.print("none")
    if history and found["chain"]["broken"]:
        raise refusal(
            Code.LEDGER_UNAVAILABLE, f"this history was tampered with: {found['chain']['broken']}", rule="admin.chain",
            ask="find out who can write to the NATS account CORE",
        )  # fmt: skip


def _one(given: dict[str, Any], tenant: str | None) -> dict[str, Any]:
    """The one option that was given; where there is none, the tenant. Raises :class:`ConfigError` for none or several."""
    named = {name: value for name, value in given.items() if value}
    if not named and tenant:
        return {"tenant": tenant}
    if len(named) != 1:
        options = ", ".join(f"--{name}" for name in (*given, "tenant"))
        raise ConfigError(f"name exactly one of {options}", "such as: remit revoke --agent NAME --why TEXT")
    return named
