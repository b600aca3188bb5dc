"""``remit callout``: says to the NATS server which agents may connect, in a process of its own."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from remit_broker.cli.common import Config, Json, command, run_loop
from remit_broker.cli.printing import err, line, out, say
from remit_broker.config import Settings, load


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(callout)


@command
def callout(
    config: Config = None,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Log errors only.")] = False,
) -> None:
    """Answer the NATS server's question who a connection is, until Ctrl-C: with bus.callout = "process", run two or more of it."""
    from remit_broker.cli.client import BrokerClient
    from remit_broker.cli.logs import set_up as set_up_logging

    settings = load(config)
    set_up_logging(quiet)
    url = settings.config.bus.url or BrokerClient(settings).bus
    run_loop(_serve(settings, url, as_json))


async def _serve(settings: Settings, url: str, as_json: bool) -> None:
    from remit_broker.cli.running import until_asked_to_stop
    from remit_broker.gate import Gate

    asked = until_asked_to_stop()
    async with Gate(settings, url) as gate:
        if as_json:
            say({"ready": True, "callout": gate.name, "nats": url, "pid": os.getpid()})
        else:
            out.print(line(f"the callout answers on {url}; stop with Ctrl-C"))
        await asked.wait()
        err.print("stopping")
