"""``remit keys``: what a broker signs and proves itself with, and how another broker on the same bus gets it."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from remit_broker.adapters.errors import ConfigError
from remit_broker.cli.common import Config, Json, command
from remit_broker.cli.printing import line, out, say
from remit_broker.config import load
from remit_broker.credentials import tell_keys

if TYPE_CHECKING:
    from remit_broker.adapters.keyfiles import KeyFiles

app = typer.Typer(help="The broker's keys: the same for all brokers on one bus.", no_args_is_help=True)


@app.command("list")
@command
def list_(config: Config = None, as_json: Json = False) -> None:
    """List the keys that sign grants and checkpoints, oldest first; the last of a use that is not retired signs."""
    from remit_broker.adapters.keyfiles import KeyFiles

    keys = KeyFiles.open(load(config).data)
    _show(keys, as_json)


@app.command("rotate")
@command
def rotate(
    use: Annotated[list[str] | None, typer.Option(help="grant or checkpoint; both without it.", metavar="USE")] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Draw new keys and retire those that sign now. What they signed stays verifiable: they are published on, with their times.

    A broker takes the new keys when it is started again. On one bus all brokers need them: remit keys export, then import.
    """
    from remit_broker.adapters.keyfiles import KeyFiles
    from remit_schemas.keys import CHECKPOINT, GRANT

    uses = tuple(use or (GRANT, CHECKPOINT))
    if set(uses) - {GRANT, CHECKPOINT}:
        raise ConfigError(f"--use {' '.join(uses)}: there are keys for {GRANT} and {CHECKPOINT}", "name one of them")
    settings = load(config)
    keys = KeyFiles.open(settings.data).rotate(int(time.time()), uses)
    for tenant in settings.tenants:
        tell_keys(settings.credentials_of(tenant), keys.jwks())
    _show(keys, as_json)
    if not as_json:
        out.print("  → start the broker again: until then it signs with the keys it has")
        out.print(
            "  → credentials that are not in its data folder: put the published keys into them, as `jwks`, before that"
        )


def _show(keys: KeyFiles, as_json: bool) -> None:
    signing = {keys.signing.kid, keys.sealing.kid}
    found = [
        {"kid": one.key.kid, "use": one.key.public.use, "created": one.created, "retired": one.retired,
         "signs": one.key.kid in signing}
        for one in keys.signers
    ]  # fmt: skip
    if as_json:
        say(found)
        return
    for key in keys.signers:
        state = "signs" if key.key.kid in signing else "retired" if key.retired else "kept"
        day = f"{datetime.fromtimestamp(key.created, UTC):%Y-%m-%d}"
        out.print(line(f"{key.key.kid}  {key.key.public.use:<10}  {day}  {state}"))


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
