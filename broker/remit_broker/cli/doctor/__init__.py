"""``remit doctor``: everything that a person would look at, one line each, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from remit_broker.adapters.errors import ConfigError
from remit_broker.cli.common import REFUSED, UNREACHABLE, Config, Json, Unreachable, command, run_loop
from remit_broker.cli.doctor.finding import Finding, unknown, wrong
from remit_broker.cli.printing import line, out, say
from remit_broker.config import Settings, load

_MARKS = {"ok": ("✓ ", "green"), "wrong": ("✗ ", "red"), "note": ("! ", "yellow"), "unknown": ("! ", "yellow")}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


@command
def doctor(config: Config = None, as_json: Json = False) -> None:
    """Look at everything: files, disk, clock, NATS, streams, callout, replicas, index, servers. Works with the broker down, too."""
    found = list(_look(config))
    code = _code(found)
    if as_json:
        say({"ok": code == 0, "checks": found})
    else:
        for one in found:
            out.print(line(_MARKS[one.state], f"{one.check}: {one.said}"))
            if one.ask:
                out.print(line(f"    → {one.ask}"))
    if code:
        raise typer.Exit(code)


def _code(found: list[Finding]) -> int:
    if any(one.state == "wrong" for one in found):
        return REFUSED
    return UNREACHABLE if any(one.state == "unknown" for one in found) else 0


def _look(config: str | None) -> Iterator[Finding]:
    from remit_broker.cli.doctor import machine

    try:
        settings = load(config)
    except ConfigError as bad:
        yield wrong("configuration", bad.message, bad.ask)
        return
    yield from machine.look(settings)
    client, bus, gone = _broker(settings)
    if bus:
        yield from run_loop(_bus(settings, bus))
        yield machine.credentials(settings, bus)
    else:
        yield unknown(
            "bus", "not looked at: its embedded NATS server runs with the broker", f"remit up -c {settings.file}"
        )
    if client is None:
        yield unknown(
            "broker",
            f"not looked at, nor replicas, index lag, servers and orphans: {gone}",
            f"remit up -c {settings.file}",
        )
        return
    from remit_broker.cli.doctor import broker

    try:
        yield from broker.look(client)
    except Unreachable as left:
        yield unknown("broker", str(left), left.ask)


def _broker(settings: Settings) -> tuple[Any, str, str]:
    """The running broker, the bus, and why there is no broker."""
    from remit_broker.cli.client import BrokerClient

    try:
        client = BrokerClient(settings)
        return client, settings.config.bus.url or client.bus, ""
    except Unreachable as gone:
        return None, settings.config.bus.url, str(gone)
    except ConfigError as bad:
        return None, settings.config.bus.url, bad.message


async def _bus(settings: Settings, url: str) -> list[Finding]:
    from remit_broker.cli.doctor import bus

    return [found async for found in bus.look(settings, url)]
