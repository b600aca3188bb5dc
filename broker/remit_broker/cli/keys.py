"""``remit keys``: what a broker signs and proves itself with, and how another broker on the same bus gets it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from remit_broker.cli.common import Config, Json, command
from remit_broker.cli.printing import line, out, say
from remit_broker.config import load

app = typer.Typer(help="The broker's keys: the same for all brokers on one bus.", no_args_is_help=True)


@app.command("list")
@command
def list_(config: Config = None, as_json: Json = False) -> None:
    """List the keys that sign grants, oldest first; the last that is not retired signs."""
    from remit_broker.adapters.keyfiles import KeyFiles

    keys = KeyFiles.open(load(config).data)
    found = [
        {"kid": one.key.kid, "created": one.created, "retired": one.retired, "signs": one.key.kid == keys.signing.kid}
        for one in keys.grant_keys
    ]
    if as_json:
        say(found)
        return
    for key in keys.grant_keys:
        state = "signs" if key.key.kid == keys.signing.kid else "retired" if key.retired else "kept"
        out.print(line(f"{key.key.kid}  {datetime.fromtimestamp(key.created, UTC):%Y-%m-%d}  {state}"))


@app.command("export")
@command
def export(
    file: Annotated[Path, typer.Argument(help="Where to write them; it must not exist.")],
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Write all keys into one file (0600) for another broker on the same bus. Keep it as you keep keys, and delete it soon."""
    from remit_broker.adapters.key_bundle import export

    count = export(load(config).data, file)
    if as_json:
        say({"file": str(file.absolute()), "keys": count})
    else:
        out.print(line(f"wrote {count} keys to {file}"))
        out.print("  → on the other machine: remit keys import FILE, then delete the file on both")


@app.command("import")
@command
def import_(
    file: Annotated[Path, typer.Argument(help="What `remit keys export` wrote.")],
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Take the keys of another broker, before the first start: keys that are there are never replaced."""
    from remit_broker.adapters.key_bundle import restore

    settings = load(config)
    count = restore(settings.data, file)
    if as_json:
        say({"data": str(settings.data), "keys": count})
    else:
        out.print(line(f"{count} keys are in {settings.data / 'keys'}"))
