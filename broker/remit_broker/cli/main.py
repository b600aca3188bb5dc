"""The ``remit`` command: each command in the file of what it is about."""

from __future__ import annotations

import typer

from remit_broker import __version__
from remit_broker.cli import agents, bench, calls, chains, demo, evidence, running, servers
from remit_broker.cli.common import out

app = typer.Typer(
    name="remit",
    help="Delegation broker for agents on NATS, and control plane for MCP servers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"remit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Options before any command."""


running.register(app)
calls.register(app)
chains.register(app)
bench.register(app)
demo.register(app)
servers.register(app)
app.add_typer(agents.app, name="agents")
app.add_typer(servers.app, name="servers")
app.add_typer(evidence.app, name="evidence")


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
