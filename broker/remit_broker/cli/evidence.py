"""``remit evidence``: one chain in one file, and checking such a file with nothing but the published keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from remit_broker.adapters.errors import ConfigError
from remit_broker.cli.chains import whole
from remit_broker.cli.client import BrokerClient
from remit_broker.cli.common import REFUSED, Config, Json, command, out, say
from remit_broker.config import load
from remit_broker.core.evidence import read, verify_evidence
from remit_schemas.errors import Refusal
from remit_schemas.keys import KeySet

app = typer.Typer(help="Evidence of one chain that verifies offline.", no_args_is_help=True)


@app.command("export")
@command
def export(
    txn: Annotated[str, typer.Argument(metavar="TXN")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write it.")],
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Write the records and grants of one chain to a file."""
    client = BrokerClient(load(config))
    found = client.get(f"/api/chains/{whole(client, txn)}/evidence")
    output.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    if as_json:
        say({"txn": found["txn"], "file": str(output), "records": len(found["records"]), "complete": found["complete"]})
    else:
        out.print(f"wrote {output}: {len(found['records'])} records, {len(found['grants'])} grants")
        if not found["complete"]:
            out.print("  [yellow]the txn is still open: more may follow[/]")


@app.command("verify")
@command
def verify(
    file: Annotated[Path, typer.Argument(metavar="F", help="The evidence.")],
    keys: Annotated[
        Path, typer.Option(help="The JWKS as downloaded from /.well-known/jwks.json; nothing else is trusted.")
    ],
    allow_cycle: Annotated[
        list[str] | None, typer.Option(help="caller>callee pairs that policy permits to close a loop.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check every record, hash, grant and delegation offline. Exits 1 where anything does not hold."""
    try:
        trusted = KeySet.from_jwks(keys.read_bytes())
    except Refusal as bad:
        raise ConfigError(
            f"{keys} is not a usable JWKS: {bad.body.message}", "download it from /.well-known/jwks.json"
        ) from None
    pairs = frozenset(
        (one.strip(), other.strip()) for one, _, other in (pair.partition(">") for pair in allow_cycle or ())
    )
    verdict = verify_evidence(read(file.read_bytes()), trusted, pairs)
    if as_json:
        say(verdict)
    else:
        for check in verdict.checks:
            out.print(f"{'[green]✓[/]' if check.ok else '[red]✗[/]'} {check.check}: {check.where}".replace("\\[", "["))
        out.print("[bold green]verified[/]" if verdict.verified else "[bold red]NOT verified[/]")
    if not verdict.verified:
        raise typer.Exit(REFUSED)
