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

COLUMNS = ("p50_us_1", "p99_us_1", "ops_32", "p99_us_32", "ops_256")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("bench")(run)


@command
def run(
    rounds: Annotated[int, typer.Option(min=1, max=100, help="How often every way is measured.")] = 5,
    scale: Annotated[float, typer.Option(min=0.05, max=100, help="More calls in a round, or fewer.")] = 1.0,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the figures go as JSON.")] = Path("bench.json"),
    as_json: Json = False,
) -> None:
    """Measure direct request/reply, a bare relay and the full governed hop, interleaved in one run."""
    from remit_broker.bench.run import WAYS, bench

    found: dict[str, Any] = run_loop(bench(rounds, scale, lambda said: err.print(line((said, "dim")))))
    output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if as_json:
        say(found)
        return
    out.print(table(found, WAYS))
    for way in ("governed", "governed_fsync"):
        about = found["setup"][way]
        out.print(
            f"{way}: sync {about['sync']}, {about['ledger_replicas']} replica of the ledger, stages: {' '.join(about['stages'])}"
        )
    out.print(f"{found['setup']['cpus']} cores, Python {found['setup']['python']}; figures in {output}")


def table(found: dict[str, Any], ways: Iterable[str]) -> Table:
    """The figures, each with its ratio to a direct call."""
    from rich.table import Table

    grid = Table(title="microseconds (1 in flight), calls per second (32 and 256); in brackets: times a direct call")
    grid.add_column("")
    for column in COLUMNS:
        grid.add_column(column, justify="right")
    base = found["direct"]
    for way in ways:
        row = found[way]
        grid.add_row(way, *(f"{row[name]:,.0f} ({row[name] / base[name]:.2f})" for name in COLUMNS))
    return grid
