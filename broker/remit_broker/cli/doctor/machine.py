"""What can be looked at without anybody answering: files, disk, index."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import stat
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from remit_broker.adapters.errors import ConfigError
from remit_broker.adapters.private_files import read_private
from remit_broker.cli.checking import checks
from remit_broker.cli.doctor.finding import Finding, note, ok, unknown, wrong
from remit_broker.config import Settings

ROOM: Final = (256 * 1024**2, 2 * 1024**3)
"""Free bytes below which nothing should run, and below which somebody should know."""
SLOW_FSYNC: Final = 0.05
PRIVATE: Final = ("", "keys", "credentials", "index", "run")


def look(settings: Settings) -> Iterator[Finding]:
    """Configuration, policies, keys, servers, ports; then files, disk and index."""
    for part in checks(settings):
        yield ok(part.check, part.said) if part.ok else wrong(part.check, part.said, part.ask)
    yield _files(settings)
    yield from _disk(settings.data)
    yield _index(settings.data / "index" / "index.db")


def _files(settings: Settings) -> Finding:
    data = settings.data
    open_to_others = [
        path
        for folder in (*PRIVATE, *(f"credentials/{tenant}" for tenant in settings.others))
        if (data / folder).is_dir()
        for path in (data / folder, *(data / folder).iterdir())
        if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) & 0o077
    ]
    if open_to_others:
        first = open_to_others[0]
        return wrong(
            "files", f"{first} can be read or changed by others" + _more(len(open_to_others) - 1),
            f"chmod -R go-rwx {data}; rotate the keys if others use this machine",
        )  # fmt: skip
    return (
        ok("files", "nobody else can read them")
        if data.exists()
        else note("files", f"{data} is made at the first start")
    )


def _more(count: int) -> str:
    return f", and {count} more" if count else ""


def _disk(data: Path) -> Iterator[Finding]:
    place = next(path for path in (data, *data.parents) if path.exists())
    free = shutil.disk_usage(place).free
    least, little = ROOM
    said = f"{free / 1024**3:.1f} GiB free"
    if free < least:
        yield wrong("disk", said, "make room: a full disk refuses every call")
    elif free < little:
        yield note("disk", said, "make room before it is full: a full disk refuses every call")
    else:
        yield ok("disk", said)
    try:
        seconds = statistics.median(_fsync(place) for _ in range(5))
    except OSError as error:
        yield wrong("fsync", f"{place} cannot be written: {error.strerror}", "make it writable for this user")
        return
    said = f"{seconds * 1000:.1f} ms"
    if seconds > SLOW_FSYNC:
        yield note(
            "fsync", said, "every record waits for it with bus.sync = always: use a faster disk, or a cluster of three"
        )
    else:
        yield ok("fsync", said)


def _fsync(place: Path) -> float:
    with tempfile.TemporaryFile(dir=place) as file:
        file.write(b"x" * 4096)
        file.flush()
        began = time.monotonic()
        os.fsync(file.fileno())
        return time.monotonic() - began


def _index(file: Path) -> Finding:
    if not file.exists():
        return note("index", "there is none yet; it is made from the ledger")
    try:
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=2) as db:
            said = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            broken = db.execute("SELECT count(*), min(why) FROM broken").fetchone()
    except sqlite3.OperationalError as error:
        return unknown("index", f"it cannot be read now: {error}", "try again")
    except sqlite3.DatabaseError as error:
        said, broken = str(error), (0, None)
    if said != "ok":
        return wrong("index", f"{file} is damaged: {said}", "stop the broker and move it away: it is made again")
    if broken[0]:
        return wrong(
            "index", f"{broken[0]} tasks whose records do not hold together: {broken[1]}", "look at the ledger"
        )
    return ok("index", "it is whole")


def credentials(settings: Settings, bus: str) -> Finding:
    """Whether the credentials kept here lead to the bus. ``bus`` is one URL or several."""
    folders = [settings.credentials_of(tenant) for tenant in settings.tenants]
    files = [file for folder in folders if folder.is_dir() for file in sorted(folder.glob("*.json"))]
    for file in files:
        try:
            told = json.loads(read_private(file, 256 * 1024)).get("bus")
        except (ValueError, ConfigError, AttributeError) as error:
            return wrong(
                "credentials", f"{file} cannot be used: {error}", "remit agents remove NAME, then add it again"
            )
        if not isinstance(told, str) or not set(told.split(",")) & set(bus.split(",")):
            return wrong("credentials", f"{file} points at {told}, the bus is at {bus}", f'set "bus" in it to {bus}')
    return ok("credentials", f"{len(files)} files, all for this bus" if files else "none are kept here")
