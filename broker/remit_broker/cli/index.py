"""``remit index``: the tables that listings are read from, made again from the streams."""

from __future__ import annotations

import typer

from remit_broker.adapters.errors import ConfigError
from remit_broker.cli.client import BrokerClient
from remit_broker.cli.common import REFUSED, Config, Json, Unreachable, command, run_loop
from remit_broker.cli.printing import line, out, say
from remit_broker.config import Settings, load

app = typer.Typer(help="The index beside the ledger: a projection that can be made again.", no_args_is_help=True)


@app.command("rebuild")
@command
def rebuild(config: Config = None, as_json: Json = False) -> None:
    """Make the index again from the ledger and the refusals, and compare the roots of its trees. Stop the broker first.

    Exits 1 where the log is another one than the checkpoints were signed of.
    """
    from remit_broker.adapters.index_rebuild import rebuild

    settings = load(config)
    _nobody_runs(settings)
    made = run_loop(rebuild(settings.data, settings.config.bus.url, sync=settings.config.bus.sync))
    if as_json:
        say(made)
    else:
        out.print(line(f"{made.records} records, root {made.ledger_root}"))
        out.print(line(f"{made.refusals} refusals, root {made.refusals_root}"))
        for bad in made.differs:
            out.print(line(("  ✗ ", "red"), bad))
        if not made.differs:
            out.print(line(("✓ ", "green"), "the roots are those that were there before"))
    if made.differs:
        raise typer.Exit(REFUSED)


def _nobody_runs(settings: Settings) -> None:
    try:
        url = BrokerClient(settings).bus
    except Unreachable:
        return
    raise ConfigError(f"a broker runs on {settings.data} (its bus is {url})", "stop it first")
