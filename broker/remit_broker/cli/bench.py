"""``remit bench``: what a governed hop costs beside a direct call."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from remit_broker.cli.common import Json, command, run_loop
from remit_broker.cli.printing import err, line, out, say

if TYPE_CHECKING:
    from rich.table import Table

WAYS = ("direct", "relay", "governed", "governed_fsync", "governed_two")
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
    as_json: Json = False,
) -> None:
    """Measure direct request/reply, a bare relay and the full governed hop, interleaved in one run."""
    from remit_broker.bench.run import bench

    found: dict[str, Any] = run_loop(bench(rounds, scale, lambda said: err.print(line((said, "dim"))), profile))
    output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if as_json:
        say(found)
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


def table(found: dict[str, Any], ways: Iterable[str]) -> Table:
    """The figures, each with its ratio to a direct call where there is one."""
    from rich.table import Table

    grid = Table(title="microseconds (us) and calls per second (ops); in brackets: times a direct call")
    grid.add_column("")
    for column in COLUMNS:
        grid.add_column(column, justify="right")
    base = found.get("direct", {})
    for way in ways:
        grid.add_row(way, *(_cell(found[way][name], base.get(name)) for name in COLUMNS))
    return grid


def _cell(value: float | None, base: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f} ({value / base:.2f})" if base else f"{value:,.0f}"
