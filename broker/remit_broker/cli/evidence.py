"""``remit evidence``: one chain in one file, and checking such a file with nothing but the published keys."""

from __future__ import annotations

import json
import subprocess
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from remit_broker.adapters.errors import ConfigError
from remit_broker.cli.chains import the_hop, whole
from remit_broker.cli.client import BrokerClient
from remit_broker.cli.common import REFUSED, Config, Json, Tenant, command, typed
from remit_broker.cli.printing import line, out, say
from remit_broker.cli.show import verdict_lines
from remit_broker.config import cycle, load

if TYPE_CHECKING:
    from remit_broker.core.evidence import Verdict

app = typer.Typer(help="Evidence of one chain that verifies offline.", no_args_is_help=True)


Cycles = Annotated[list[str] | None, typer.Option(help="caller>callee pairs that policy permits to close a loop.")]
Witnesses = Annotated[
    list[str] | None,
    typer.Option(metavar="VKEY", help="The key of a witness that must have signed the checkpoint: name+id+base64."),
]

Authority = Annotated[
    Path | None,
    typer.Option(
        "--tsa", metavar="PEM", help="The certificates of the authority whose time stamp is wanted; takes openssl."
    ),
]


@app.command("export")
@command
def export(
    txn: Annotated[str, typer.Argument(metavar="TXN")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write it.")],
    with_payloads: Annotated[
        bool, typer.Option("--with-payloads", help="With what was sent and answered, as far as the vault has it.")
    ] = False,
    hop: Annotated[
        list[str] | None, typer.Option(help="With --with-payloads: of this hop, and no other not named.")
    ] = None,
    withhold: Annotated[
        str | None,
        typer.Option(
            metavar="GROUPS",
            help="Leave out personal fields: some of user,claims,people,reasons, or all. nothing: also of who was erased.",
        ),
    ] = None,
    disclose: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD", help="With --withhold: show this one all the same, as in 0.user."),
    ] = None,
    tenant: Tenant = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Write the records and grants of one chain to a file."""
    if hop and not with_payloads:
        raise ConfigError("--hop says of which hops contents are disclosed", "say --with-payloads too")
    client = BrokerClient(load(config), tenant)
    payloads = (",".join(the_hop(client, one) for one in hop) if hop else "all") if with_payloads else None
    shown = ",".join(disclose) if disclose else None
    found = client.get(
        f"/api/chains/{whole(client, txn)}/evidence", payloads=payloads, withhold=withhold, disclose=shown
    )
    output.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    if as_json:
        say({"txn": found["txn"], "file": str(output), "records": len(found["records"]), "complete": found["complete"]})
    else:
        out.print(line(f"wrote {output}: {len(found['records'])} records, {len(found['grants'])} grants"))
        if "personal" in found:
            out.print(
                line(
                    f"  personal fields are withheld, {len(found['personal'])} of them disclosed, and refusals left out"
                )
            )
        if not found["complete"]:
            out.print(line(("  the txn is still open: more may follow", "yellow")))


@app.command("verify")
@command
def verify(
    file: Annotated[Path, typer.Argument(metavar="F", help="The evidence.")],
    keys: Annotated[
        Path, typer.Option(help="The JWKS as downloaded from /.well-known/jwks.json; nothing else is trusted.")
    ],
    allow_cycle: Cycles = None,
    witness: Witnesses = None,
    tsa: Authority = None,
    as_json: Json = False,
) -> None:
    """Check every record, hash, grant, delegation and proof offline. Exits 1 where anything does not hold."""
    _, verdict = _verified(file, keys, allow_cycle, witness, tsa)
    if as_json:
        say(verdict)
    else:
        for found in verdict_lines(verdict):
            out.print(found)
    if not verdict.verified:
        raise typer.Exit(REFUSED)


@app.command("report")
@command
def report(
    file: Annotated[Path, typer.Argument(metavar="F", help="The evidence.")],
    html: Annotated[Path, typer.Option(help="Where to write the page.")],
    keys: Annotated[
        Path | None,
        typer.Option(help="The JWKS of the issuer. Without it the page says that nobody's keys were trusted."),
    ] = None,
    allow_cycle: Cycles = None,
    witness: Witnesses = None,
    tsa: Authority = None,
    as_json: Json = False,
) -> None:
    """Write the evidence as one page: who, when, by which rule, at what cost, what is proved. Exits 1 where it does not verify."""
    from remit_broker.core.report import page

    found, verdict = _verified(file, keys, allow_cycle, witness, tsa)
    if not next((check.ok for check in verdict.checks if check.check == "records"), False):
        raise ConfigError(f"{file} has no records that hold together", "remit evidence verify says where")
    html.write_text(page(found, verdict, _local), encoding="utf-8")
    if as_json:
        say({"file": str(html), "verified": verdict.verified})
    else:
        out.print(line(f"wrote {html}: {'verified' if verdict.verified else 'NOT verified'}"))
    if not verdict.verified:
        raise typer.Exit(REFUSED)


@app.command("verifier")
@command
def verifier(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write it.")], as_json: Json = False
) -> None:
    """Write the verifier as one file for somebody who has Python and nothing else: python3 remit_verify.py F --keys jwks.json."""
    from importlib import resources

    output.write_bytes((resources.files("remit_broker") / "verifier.py").read_bytes())
    if as_json:
        say({"file": str(output)})
    else:
        out.print(line(f"wrote {output}: python3 {output} EVIDENCE --keys jwks.json"))


def _verified(
    file: Path, keys: Path | None, allow_cycle: list[str] | None, witness: list[str] | None, tsa: Path | None
) -> tuple[dict[str, Any], Verdict]:
    from remit_broker.core.evidence import read, verify_evidence
    from remit_broker.core.notes import parse_vkey
    from remit_schemas.keys import KeySet

    trusted = typed(f"--keys {keys}", "", lambda _: KeySet.from_jwks(keys.read_bytes())) if keys else KeySet()
    pairs = frozenset(typed("--allow-cycle", pair, cycle) for pair in allow_cycle or ())
    try:
        witnesses = [parse_vkey(text) for text in witness or ()]
    except ValueError as bad:
        raise ConfigError(f"--witness: {bad}", "the key as the witness published it") from None
    found = read(file.read_bytes())
    verdict = verify_evidence(found, trusted, pairs, witnesses)
    return found, verdict if not found else _stamped(verdict, found, tsa)


def _stamped(verdict: Verdict, found: dict[str, Any], tsa: Path | None) -> Verdict:
    """With what time-stamping authorities said, which openssl checks."""
    from remit_broker.core.evidence import Check, Verdict
    from remit_broker.verifier import Bad, timestamps

    if tsa is not None and not tsa.is_file():
        raise ConfigError(f"--tsa {tsa}: there is no such file", "the certificates of the authority, as PEM")
    try:
        check = Check("timestamps", True, timestamps(found, None if tsa is None else str(tsa)))
    except (Bad, ValueError, KeyError, AttributeError, OSError, subprocess.SubprocessError) as no:
        check = Check(
            "timestamps", False, str(no) if isinstance(no, Bad) else f"they are of no form ({type(no).__name__})"
        )
    return Verdict(verdict.verified and check.ok, (*verdict.checks, check))


def _local(at: str) -> str:
    """A time as the clock on this machine shows it."""
    return f"{datetime.fromisoformat(at).astimezone():%Y-%m-%d %H:%M:%S %Z}"
