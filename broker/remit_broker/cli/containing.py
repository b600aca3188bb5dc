"""Options that say what a server which is started here may see and do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from remit_broker.adapters.errors import ConfigError
from remit_broker.cli.printing import err, line

if TYPE_CHECKING:
    from remit_broker.edges.attach.containment import Limits, Room

Read = Annotated[list[Path] | None, typer.Option("--read", help="A path that a contained server may read.")]
Write = Annotated[list[Path] | None, typer.Option("--write", help="A path that a contained server may change.")]
Network = Annotated[bool, typer.Option("--network", help="A contained server may use the network.")]
Uncontained = Annotated[bool, typer.Option("--uncontained", help="Run it with all rights of the broker's user.")]
Limit = Annotated[list[str] | None, typer.Option("--limit", help="memory, processes, files, cpu or file_size=NUMBER.")]


def room_for(
    words: list[str], cwd: Path | None, read: list[Path] | None, write: list[Path] | None, *, network: bool, uncontained: bool
) -> Room | None:  # fmt: skip
    """The room of a command: what was said, and what the command itself names. None where it is not contained, which is said.

    Raises :class:`ConfigError`.
    """
    from remit_broker.edges.attach.containment import Room, named_in, unavailable

    said = bool(read or write or network)
    if uncontained:
        if said:
            raise ConfigError("--read, --write and --network are for a contained server", "leave out --uncontained")
        return None
    if why := unavailable():
        if said:
            raise ConfigError(f"nothing can be contained here: {why}", "install bubblewrap, or say --uncontained")
        err.print(line(("not contained: ", "yellow"), f"{why}; it has all rights of the broker's user"))
        return None
    for path in (*(read or ()), *(write or ())):
        if not path.exists():
            raise ConfigError(f"{path} does not exist", "name a path that is there")
    writes = tuple(path.absolute() for path in write or ())
    # What may be written is not named a second time as what may be read.
    reads = [path.absolute() for path in read or ()]
    reads += [path for path in named_in(words, cwd) if not any(path.is_relative_to(one) for one in (*writes, *reads))]
    return Room(tuple(dict.fromkeys(reads)), writes, network)


def limits_of(pairs: list[str] | None) -> Limits:
    """``memory=500000000`` as limits. Raises :class:`ConfigError`."""
    from dataclasses import fields

    from remit_broker.edges.attach.containment import Limits

    known = [one.name for one in fields(Limits)]
    found: dict[str, int] = {}
    for pair in pairs or ():
        name, _, value = pair.partition("=")
        if name not in known or not (value.isascii() and value.isdigit()) or not 0 < int(value) < 2**53:
            raise ConfigError(f"--limit {pair!r} is no limit", f"write NAME=NUMBER with one of {', '.join(known)}")
        found[name] = int(value)
    return Limits(**found)
