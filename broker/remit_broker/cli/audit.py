"""``remit audit``: the whole ledger, checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from remit_broker.cli import audit_export
from remit_broker.cli.client import BrokerClient
from remit_broker.cli.common import REFUSED, Config, Json, Unreachable, command, run_loop, typed
from remit_broker.cli.printing import line, out, say
from remit_broker.config import Settings, load

app = typer.Typer(help="The whole ledger: checked, exported, pushed to where it is watched.", no_args_is_help=True)

audit_export.register(app)

_SHOWN = 20


@app.command("verify")
@command
def verify(
    since_checkpoint: Annotated[
        Path | None, typer.Option(help="A checkpoint that you kept (a note, evidence, or what /api/checkpoint said).")
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(help="The JWKS that you kept; without it, that of the data folder.")
    ] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Check every record, hash chain, account and grant of the ledger, its tree, checkpoints and the index. Exits 1 at anything bad.

    With --since-checkpoint also that the log begins with the one of that checkpoint: nothing of it was changed or cut off.
    It reads from the NATS server of the running broker, or at bus.url; where nobody runs it starts the embedded one for that long.
    """
    from remit_broker.adapters.audit import Kept, audit
    from remit_schemas.keys import KeySet

    settings = load(config)
    trusted = typed(f"--keys {keys}", "", lambda _: KeySet.from_jwks(keys.read_bytes())) if keys else None
    kept = Kept(note_in(since_checkpoint) if since_checkpoint else None, trusted)
    report = run_loop(audit(settings.data, _bus(settings), sync=settings.config.bus.sync, kept=kept))
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


def note_in(file: Path) -> str:
    """The checkpoint in a file: the note itself, or the member ``checkpoint`` of a JSON document."""
    text = file.read_text(encoding="utf-8")
    try:
        found = json.loads(text)
    except ValueError:
        return text
    note = found.get("checkpoint") if isinstance(found, dict) else None
    return note if isinstance(note, str) else ""


def _bus(settings: Settings) -> str:
    """Where the ledger is; empty where nobody runs."""
    if settings.config.bus.url:
        return settings.config.bus.url
    try:
        return BrokerClient(settings).bus
    except Unreachable:
        return ""
