"""``remit audit export`` and ``push``: the records out of here, a page at a time, each at least once, from where it stopped before."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from remit_broker import __version__
from remit_broker.adapters.errors import ConfigError
from remit_broker.cli.client import BrokerClient
from remit_broker.cli.common import REFUSED, Config, Json, Tenant, Unreachable, command, duration, read_text
from remit_broker.cli.printing import err, line, out, say
from remit_broker.config import load
from remit_broker.core.export import Entry, Format, head, writer
from remit_schemas.errors import Refusal

PAGE = 500
POLL = 5.0
"""Seconds between two looks for more, with ``--follow``."""

Form = Annotated[
    Format, typer.Option("--format", help="One JSON object a line as recorded, a table, or OCSF 1.8 events.")
]
Since = Annotated[str | None, typer.Option(help="At or after: RFC 3339, or 90s, 10m, 24h, 7d ago.")]
Until = Annotated[str | None, typer.Option(help="Before: RFC 3339, or as long ago.")]
CursorFile = Annotated[
    Path | None,
    typer.Option(help="Keeps where this stopped: run it again, and it goes on there. One file for each receiver."),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("export")(export)
    app.command("push")(push)
    app.command("accesses")(accesses)


@command
def export(
    form: Form = "jsonl",
    since: Since = None,
    until: Until = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A file (0600) to add to; else standard output."),
    ] = None,
    cursor_file: CursorFile = None,
    tenant: Tenant = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Write every record of the ledger and every refusal, as lines. That somebody did so is recorded first."""
    client = BrokerClient(load(config), tenant)
    told = writer(form, __version__)
    written = 0
    with _opened(output) as (file, fresh):
        for page, cursor in _pages(client, _kept(cursor_file), since, until):
            lines = [told(entry) for entry in page]
            if lines and fresh and not written:
                lines.insert(0, head(form))
            file.write("".join(lines))
            file.flush()
            if output is not None:
                os.fsync(file.fileno())
            written += len(page)
            # INVARIANT: a place is kept only after what is before it was written (test_an_export_goes_on_where_it_stopped).
            _keep(cursor_file, cursor)
    if as_json and output is not None:
        say({"records": written, "file": str(output)})
    err.print(line(f"{written} records"))


@command
def push(
    to: Annotated[
        str, typer.Option(help="https://HOST/PATH (JSON lines), tls://HOST:PORT or tcp://HOST:PORT (syslog).")
    ],
    cursor_file: Annotated[Path, typer.Option(help="Keeps what the receiver has. One file for each receiver.")],
    form: Annotated[Format, typer.Option("--format", help="ocsf or jsonl.")] = "ocsf",
    headers: Annotated[
        Path | None, typer.Option(help="With https: a file of `Name: value` lines, such as the receiver's token.")
    ] = None,
    since: Since = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what comes, until stopped.")] = False,
    batch: Annotated[int, typer.Option(min=1, max=1000, help="Records in one request.")] = 200,
    tenant: Tenant = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Push records to a SIEM, each at least once, in batches, patiently. The place is kept once the receiver has said yes."""
    from remit_broker.adapters.siem import Refused, parse_headers, pushed, receiver

    if form == "csv":
        raise ConfigError("a table is not pushed", "use --format ocsf or jsonl")
    there = receiver(to, parse_headers(read_text(headers)) if headers else {})
    client = BrokerClient(load(config), tenant)
    told = writer(form, __version__)
    sent = 0
    try:
        while True:
            for page, cursor in _patient_pages(client, _kept(cursor_file), since, batch, follow):
                lines = [(told(entry), entry["record"]) for entry in page]
                if lines:
                    pushed(lambda lines=lines: there.send(lines), lambda said: err.print(line(said)))  # type: ignore[misc]
                sent += len(page)
                # INVARIANT: what nobody took is sent again (test_what_a_receiver_did_not_take_is_sent_again).
                _keep(cursor_file, cursor)
            if not follow:
                break
            time.sleep(POLL)
    except Refused as no:
        err.print(line(("refused ", "bold red"), f"{to}: {no}"))
        raise typer.Exit(REFUSED) from None
    finally:
        there.close()
        err.print(line(f"{sent} records"))
    if as_json:
        say({"records": sent, "to": to})


@command
def accesses(
    tenant: Tenant = None, config: Config = None, as_json: Annotated[bool, typer.Option("--json")] = False
) -> None:
    """Who read the records, what of them and when: a chain of sealed records. Exits 1 where it was tampered with."""
    found = BrokerClient(load(config), tenant).get("/api/accesses")
    if as_json:
        say(found)
    else:
        for one in found["accesses"]:
            out.print(line(f"{one['at']}  ", (one["who"], "bold"), f"  read {one['what']}"))
        broken = found["chain"]["broken"]
        out.print(
            line((f"tampered with: {broken}", "bold red"))
            if broken
            else line(f"{found['chain']['records']} records, whole")
        )
    if found["chain"]["broken"]:
        raise typer.Exit(REFUSED)


def moment(text: str | None, now: datetime) -> str | None:
    """RFC 3339 UTC of a time or of how long ago. Raises :class:`ConfigError`."""
    if text is None:
        return None
    if re.fullmatch(r"\d+[smhd]", text):
        seconds = int(text[:-1]) * 86400 if text.endswith("d") else duration(text)
        at = now - timedelta(seconds=seconds)
    else:
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            raise ConfigError(f"{text!r} is no time", "write 2026-11-03T14:00:00Z, or 24h for a day ago") from None
        at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _pages(
    client: BrokerClient, after: str, since: str | None, until: str | None, size: int = PAGE
) -> Iterator[tuple[list[Entry], str]]:
    """Pages up to what is there now, each with the place after it. Memory holds one."""
    now = datetime.now(UTC)
    wanted = {"since": moment(since, now), "until": moment(until, now), "limit": size}
    while True:
        page: dict[str, Any] = client.get("/api/records", after=after or None, **wanted)
        after = page["cursor"]
        yield page["records"], after
        if not page["more"]:
            return


def _patient_pages(
    client: BrokerClient, after: str, since: str | None, size: int, follow: bool
) -> Iterator[tuple[list[Entry], str]]:
    """As :func:`_pages`; with ``follow`` a broker that is away for a while ends nothing."""
    try:
        yield from _pages(client, after, since, None, size)
    except (Unreachable, Refusal) as away:
        if not follow or (isinstance(away, Refusal) and not away.body.retryable):
            raise
        err.print(line(f"the broker did not answer: {away}; again in {POLL:g} s"))


@contextmanager
def _opened(path: Path | None) -> Iterator[tuple[TextIO, bool]]:
    """Where lines go, and whether nothing stands there yet."""
    if path is None:
        yield sys.stdout, True
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "r+", encoding="utf-8", newline="") as file:
        size = _whole_lines(descriptor)
        os.ftruncate(descriptor, size)
        file.seek(size)
        yield file, size == 0


def _whole_lines(descriptor: int) -> int:
    """Bytes up to the end of the last whole line: what a crash cut off comes again."""
    size = os.fstat(descriptor).st_size
    while size:
        begin = max(0, size - 65_536)
        if (found := os.pread(descriptor, size - begin, begin).rfind(b"\n")) >= 0:
            return begin + found + 1
        size = begin
    return 0


def _kept(path: Path | None) -> str:
    if path is None or not path.exists():
        return ""
    return read_text(path, 256).strip()


def _keep(path: Path | None, cursor: str) -> None:
    """In place of what stood there, or not at all."""
    if path is None:
        return
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(f"{cursor}\n")
        file.flush()
        os.fsync(file.fileno())
    Path(name).replace(path)
