"""``remit bench``: what a governed hop costs beside a direct call."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from remit_broker.adapters.errors import ConfigError
from remit_broker.cli.common import Json, command, run_loop
from remit_broker.cli.printing import err, line, out, say

if TYPE_CHECKING:
    from rich.table import Table

WAYS = ("direct", "relay", "governed", "governed_fsync", "governed_two")
MCP_WAYS = ("direct_http", "remit_http", "peer_http", "direct_stdio", "remit_stdio")
MCP_COLUMNS = ("p50_us_1", "p99_us_1", "p50_us_16", "p99_us_16", "ops_16", "cpu_us_1", "cpu_us_16")
COLUMNS = ("p50_us_1", "p99_us_1", "ops_32", "p50_us_32", "p99_us_32", "ops_256", "cpu_us_256")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("bench")(run)


@command
def run(
    rounds: Annotated[int, typer.Option(min=1, max=100, help="How often every way is measured.")] = 5,
    scale: Annotated[float, typer.Option(min=0.05, max=100, help="More calls in a round, or fewer.")] = 1.0,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the figures go as JSON.")] = Path("bench.json"),
    profile: Annotated[
        Path | None,
        typer.Option(help="Measure one broker alone, under a profiler that writes here (read it with pstats)."),
    ] = None,
    mcp: Annotated[
        bool, typer.Option("--mcp", help="Measure tool calls of MCP clients instead, beside the same server directly.")
    ] = False,
    peer: Annotated[
        Path | None,
        typer.Option(
            help="With --mcp: the program mcpgateway of ContextForge, installed elsewhere, to measure beside."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure direct request/reply, a bare relay and the full governed hop, interleaved in one run."""
    from remit_broker.bench.mcp_run import bench_mcp
    from remit_broker.bench.run import bench

    if (mcp and profile is not None) or (peer is not None and not mcp):
        raise ConfigError(
            "--profile is for calls on the bus, and --peer for those of MCP clients", "leave one out, or add --mcp"
        )
    if peer is not None and not peer.is_file():
        raise ConfigError(
            f"{peer} is no program", "install mcp-contextforge-gateway in a virtual environment of its own"
        )

    def hear(said: str) -> None:
        err.print(line((said, "dim")))

    found: dict[str, Any] = run_loop(
        bench_mcp(rounds, scale, hear, peer) if mcp else bench(rounds, scale, hear, profile)
    )
    output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if as_json:
        say(found)
        return
    if mcp:
        out.print(table(found, [way for way in found if way in MCP_WAYS], MCP_COLUMNS, "direct_http"))
        out.print(*(line(text) for text in mcp_targets(found)), sep="\n")
        about = found["setup"]["remit"]
        out.print(f"remit: sync {about['sync']}, stages: {' '.join(about['stages'])}")
        out.print(f"{found['setup']['cpus']} cores, Python {found['setup']['python']}; figures in {output}")
        return
    ways = [way for way in found if way in WAYS]
    out.print(table(found, ways))
    for way in ways:
        if about := found["setup"].get(way):
            out.print(
                f"{way}: sync {about['sync']}, {about['broker_processes']} broker process(es), "
                f"{about['ledger_replicas']} replica of the ledger, stages: {' '.join(about['stages'])}"
                + (
                    f"; {found[way]['refused']:,} calls were refused and made again"
                    if found[way].get("refused")
                    else ""
                )
            )
    if profile is None:
        out.print(*(line(text) for text in targets(found)), sep="\n")
    out.print(f"{found['setup']['cpus']} cores, Python {found['setup']['python']}; figures in {output}")


def targets(found: dict[str, Any]) -> list[str]:
    """What the figures say of the aims in docs/benchmarks.md."""
    direct, relay, one, two = (found[way] for way in ("direct", "relay", "governed", "governed_two"))
    long, memory = found["long_txn"], found["memory"]
    lines = [
        f"p50 at 1 in flight: {one['p50_us_1'] / direct['p50_us_1']:.2f} x direct",
        f"rate at 256: {one['ops_256'] / relay['ops_256']:.2f} x a bare relay",
        f"p99 at 32 in flight: {one['p99_us_32'] / one['p50_us_32']:.2f} x its p50",
        f"two broker processes: {two['ops_256'] / one['ops_256']:.2f} x the rate of one",
        f"one txn of {long['records']:,} records: p50 {long['p50_us_first']:,.0f} us in the first quarter, "
        f"{long['p50_us_last']:,.0f} in the last; the broker's processor time {_micros(long['cpu_us_first'])} and "
        f"{_micros(long['cpu_us_last'])} a hop",
        f"memory per idle connection: broker {_kib(memory['broker_bytes_per_connection'])}, "
        f"NATS server {_kib(memory['nats_server_bytes_per_connection'])}; per open txn: "
        f"broker {_kib(memory['broker_bytes_per_open_txn'])}, NATS server {_kib(memory['nats_server_bytes_per_open_txn'])}",
    ]
    if one["cpu_us_256"] and relay["cpu_us_256"]:
        rates = f"{1e6 / one['cpu_us_256']:,.0f}/s beside {1e6 / relay['cpu_us_256']:,.0f}/s"
        share = relay["cpu_us_256"] / one["cpu_us_256"]
        lines.append(f"with a core of its own, by processor time: {rates} of a bare relay ({share:.2f} x)")
    return lines


def _micros(value: float | None) -> str:
    return "?" if value is None else f"{value:,.0f} us"


def _kib(value: int | None) -> str:
    return "?" if value is None else f"{value / 1024:,.1f} KiB"


def mcp_targets(found: dict[str, Any]) -> list[str]:
    """What the figures say of the aims for MCP in docs/benchmarks.md."""
    lines = [
        f"p50 at 1 in flight over {kind}: {found[f'remit_{kind}']['p50_us_1'] / found[f'direct_{kind}']['p50_us_1']:.2f} x direct"
        for kind in ("http", "stdio")
    ]
    if peer := found.get("peer_http"):
        rates = found["remit_http"]["ops_16"] / peer["ops_16"]
        lines.append(
            f"the peer: p50 {peer['p50_us_1'] / found['direct_http']['p50_us_1']:.2f} x direct; Remit makes {rates:.1f} x its calls"
        )
    return lines


def table(found: dict[str, Any], ways: Iterable[str], columns: Sequence[str] = COLUMNS, basis: str = "direct") -> Table:
    """The figures, each with its ratio to a direct call where there is one."""
    from rich.table import Table

    grid = Table(title="microseconds (us) and calls per second (ops); in brackets: times a direct call")
    grid.add_column("")
    for column in columns:
        grid.add_column(column, justify="right")
    base = found.get(basis, {})
    for way in ways:
        grid.add_row(way, *(_cell(found[way][name], base.get(name)) for name in columns))
    return grid


def _cell(value: float | None, base: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f} ({value / base:.2f})" if base else f"{value:,.0f}"
