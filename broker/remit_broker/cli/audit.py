"""``remit audit``: the whole ledger, checked."""

from __future__ import annotations

import typer

from remit_broker.cli import audit_export
from remit_broker.cli.client import BrokerClient
from remit_broker.cli.common import REFUSED, Config, Json, Unreachable, command, run_loop
from remit_broker.cli.printing import line, out, say
from remit_broker.config import Settings, load

app = typer.Typer(help="The whole ledger: checked, exported, pushed to where it is watched.", no_args_is_help=True)

audit_export.register(app)

_SHOWN = 20


@app.command("verify")
@command
def verify(config: Config = None, as_json: Json = False) -> None:
    """Check every record, hash chain, account and grant of the ledger, and the index beside it. Exits 1 at anything bad.

    It reads from the NATS server of the running broker, or at bus.url; where nobody runs it starts the embedded one for that long.
    """
    from remit_broker.adapters.audit import audit

    settings = load(config)
    report = run_loop(audit(settings.data, _bus(settings), sync=settings.config.bus.sync))
    if as_json:
        say(report)
    else:
        for check in report.checks:
            out.print(line(("✓ ", "green") if check["ok"] else ("✗ ", "red"), f"{check['check']}: {check['where']}"))
        for bad in report.bad[:_SHOWN]:
            out.print(line(("  ✗ ", "red"), f"{bad.where}: {bad.check}: {bad.why}"))
        if report.verified:
            out.print(line(f"{report.txns} txns, {report.open_txns} of them open"))
    if not report.verified:
        raise typer.Exit(REFUSED)


def _bus(settings: Settings) -> str:
    """Where the ledger is; empty where nobody runs."""
    if settings.config.bus.url:
        return settings.config.bus.url
    try:
        return BrokerClient(settings).bus
    except Unreachable:
        return ""
