"""The ``remit`` command: each command in the file of what it is about.

These files import what they need when they run: people type ``remit chains`` all day, and the broker's libraries take a second.
"""

from __future__ import annotations

import io
import sys

import typer

from remit_broker import __version__
from remit_broker.cli import (
    agents,
    approvals,
    audit,
    bench,
    budgets,
    callout,
    calls,
    chains,
    demo,
    doctor,
    evidence,
    index,
    keys,
    mcp,
    policy,
    rulings,
    running,
    secrets,
    servers,
    trace,
    users,
    vault,
)
from remit_broker.cli.common import USAGE, own, show_error
from remit_broker.cli.printing import out, say
from remit_schemas.errors import Code

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
budgets.register(app)
bench.register(app)
doctor.register(app)
callout.register(app)
demo.register(app)
mcp.register(app)
servers.register(app)
rulings.register(app)
app.add_typer(agents.app, name="agents")
app.add_typer(approvals.app, name="approvals")
app.add_typer(servers.app, name="servers")
app.add_typer(evidence.app, name="evidence")
app.add_typer(audit.app, name="audit")
app.add_typer(index.app, name="index")
app.add_typer(keys.app, name="keys")
app.add_typer(policy.app, name="policy")
app.add_typer(trace.app, name="trace")
app.add_typer(secrets.app, name="secrets")
app.add_typer(users.app, name="users")
app.add_typer(vault.app, name="vault")


def main() -> None:
    """Entry point."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that knows no ✓ is no reason to fail
    if not _wants_json(sys.argv[1:]):
        app()
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except typer.TyperException as wrong:  # the words of the command; whatever it does itself ends in an exit code
        body = own(Code.MALFORMED, "usage", wrong.format_message(), "say --help after the command")
        say({"error": body})
        show_error(body)
        sys.exit(USAGE)


def _wants_json(words: list[str]) -> bool:
    """Whether ``--json`` is meant for this command, not for one that it is to run."""
    return "--json" in (words[: words.index("--")] if "--" in words else words)


if __name__ == "__main__":
    main()
