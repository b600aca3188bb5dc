"""``remit evidence``: one chain in one file, and checking such a file with nothing but the published keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from remit_broker.cli.chains import whole
from remit_broker.cli.client import BrokerClient
from remit_broker.cli.common import REFUSED, Config, Json, Tenant, command, typed
from remit_broker.cli.printing import line, out, say
from remit_broker.cli.show import verdict_lines
from remit_broker.config import cycle, load

app = typer.Typer(help="Evidence of one chain that verifies offline.", no_args_is_help=True)


@app.command("export")
@command
def export(
    txn: Annotated[str, typer.Argument(metavar="TXN")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write it.")],
    tenant: Tenant = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Write the records and grants of one chain to a file."""
    client = BrokerClient(load(config), tenant)
    found = client.get(f"/api/chains/{whole(client, txn)}/evidence")
    output.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    if as_json:
        say({"txn": found["txn"], "file": str(output), "records": len(found["records"]), "complete": found["complete"]})
    else:
        out.print(line(f"wrote {output}: {len(found['records'])} records, {len(found['grants'])} grants"))
        if not found["complete"]:
            out.print(line(("  the txn is still open: more may follow", "yellow")))


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
    from remit_broker.core.evidence import read, verify_evidence
    from remit_schemas.keys import KeySet

    trusted = typed(f"--keys {keys}", "", lambda _: KeySet.from_jwks(keys.read_bytes()))
    pairs = frozenset(typed("--allow-cycle", pair, cycle) for pair in allow_cycle or ())
    verdict = verify_evidence(read(file.read_bytes()), trusted, pairs)
    if as_json:
        say(verdict)
    else:
        for found in verdict_lines(verdict):
            out.print(found)
    if not verdict.verified:
        raise typer.Exit(REFUSED)
