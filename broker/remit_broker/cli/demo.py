"""``remit demo``: everything on one screen in seconds, all of it captured from this run."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from remit_broker.cli.common import REFUSED, Json, command, run_loop
from remit_broker.cli.printing import err, line, out, say
from remit_broker.cli.show import cost, tree, verdict_lines

if TYPE_CHECKING:
    from remit_broker.demo.run import Shown


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(run)


@command
def run(
    keep: Annotated[
        Path | None, typer.Option(help="Leave the folder here; remit up -c DIR goes on with its ledger.")
    ] = None,
    as_json: Json = False,
) -> None:
    """A task through three agents and a real MCP server, hops that are refused, an agent that tries the bus, and the proof."""
    from remit_broker.demo.run import demo

    logging.basicConfig(level=logging.ERROR)
    with _folder(keep) as folder:
        shown = run_loop(demo(folder, lambda said: err.print(line((said, "dim")))))
    if as_json:
        say(summary(shown))
    else:
        _print(shown, keep)
    if not shown.verdict.verified or not all(attempt.stopped_by for attempt in shown.attempts):
        raise typer.Exit(REFUSED)


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        yield keep.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="remit-demo-") as folder:
        yield Path(folder)


def summary(shown: Shown) -> dict[str, Any]:
    """The JSON of the contract."""
    closed = {record["hop"]: record for record in shown.records if record["kind"] == "hop.closed"}
    hops = [_hop(record, closed[record["hop"]]) for record in shown.records if record["kind"] == "hop.opened"]
    refused = [
        {
            "hop": record["hop"], "parent": record["parent"], "caller": record["caller"], "target": record["resource"],
            "decision": "deny", "code": record["code"], "reason": record["message"],
        }
        for record in shown.refusals
    ]  # fmt: skip
    return {
        "txn": shown.txn,
        "hops": hops + refused,
        "attempts": shown.attempts,
        "evidence": {"verified": shown.verdict.verified, "records": len(shown.records)},
        "result": shown.result,
    }


def _hop(opened: dict[str, Any], closed: dict[str, Any]) -> dict[str, Any]:
    return {
        "hop": opened["hop"], "parent": opened["parent"], "caller": opened["caller"], "target": opened["resource"],
        "decision": "allow", "code": closed["code"], "reason": ", ".join(opened["decision"]["rules"]),
    }  # fmt: skip


def _print(shown: Shown, keep: Path | None) -> None:
    out.print()
    out.print(tree(shown.records, shown.refusals), soft_wrap=False)
    end = shown.records[-1]
    out.print(f"\nspent {cost(end['spent'])} of {cost(shown.records[0]['budget'])}; every refusal above cost nothing")
    out.print("\nan agent with valid credentials tries the bus without the broker:")
    for attempt in shown.attempts:
        out.print(line(("  ⊘ " if attempt.stopped_by else "  ! ", "red"), attempt.what))
        out.print(line((f"    {attempt.stopped_by or 'nothing stopped it'}", "dim")))
    out.print("\nthe evidence of this chain, checked with the published keys alone:")
    for told in verdict_lines(shown.verdict):
        out.print(told)
    if keep:
        out.print(line(f"kept in {keep}"))
        out.print(line(f"  → remit up -c {keep}, and then: remit chain {shown.txn[:8]} -c {keep}"))
