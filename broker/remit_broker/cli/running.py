"""``init``, ``check``, ``up``: a configuration, whether it is right, and a broker on it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from remit_broker.cli.common import UNREACHABLE, USAGE, Config, Json, command, run_loop
from remit_broker.cli.logs import set_up as set_up_logging
from remit_broker.cli.printing import err, line, out, say
from remit_broker.config import FILE, Settings, load


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(init)
    app.command()(check)
    app.command()(up)


@command
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to put remit.toml and the starter policy.")],
    auth: Annotated[Literal["local", "open", "issuer"], typer.Option(help="How HTTP callers are known.")] = "local",
    port: Annotated[
        int, typer.Option(help="Port of the HTTP edge; 0 takes a free one at each start.", min=0, max=65535)
    ] = 7480,
    nats_config: Annotated[
        bool, typer.Option("--nats-config", help="Print nats.conf for an external NATS server with this broker's keys.")
    ] = False,
    cluster: Annotated[
        str, typer.Option(help="With --nats-config: its nodes, HOST[:PORT[:ROUTE_PORT]],…", metavar="NODES")
    ] = "127.0.0.1",
    node: Annotated[int, typer.Option(help="With --nats-config: which node of the cluster, from 1.")] = 1,
    store: Annotated[str, typer.Option(help="With --nats-config: the server's folder for JetStream.")] = "",
    as_json: Json = False,
) -> None:
    """Write a commented remit.toml and a starter policy. Nothing that exists is overwritten."""
    from remit_broker.starter import write_starter

    if nats_config:
        _nats_config(folder, auth, port, (cluster, node, store), as_json)
        return
    file = write_starter(folder, auth, port)
    if as_json:
        say({"config": str(file), "policies": str(file.parent / "policies")})
    else:
        out.print(line(f"wrote {file} and {file.parent / 'policies' / 'default.cedar'}"))
        out.print(line(f"  → start it with: remit up -c {folder}"))


def _nats_config(folder: Path, auth: str, port: int, wanted: tuple[str, int, str], as_json: bool) -> None:
    """What `remit init` does where that was not done, the keys drawn, and nats.conf on standard output."""
    from remit_broker.adapters.keyfiles import KeyFiles
    from remit_broker.adapters.nats_nodes import node_config, parse_nodes
    from remit_broker.starter import write_starter

    cluster, node, store = wanted
    nodes = parse_nodes(cluster)
    if not (folder / FILE).exists():
        err.print(line(f"wrote {write_starter(folder, auth, port)}"))
    settings = load(str(folder))
    keys = KeyFiles.open(settings.data, create=True)
    text = node_config(keys, nodes, node, store, settings.config.bus.sync, settings.others)
    if as_json:
        say({"config": str(settings.file), "url": ",".join(one.url for one in nodes), "nats_config": text})
    else:
        sys.stdout.write(text)


@command
def check(config: Config = None, as_json: Json = False) -> None:
    """Check configuration, policies, keys, ports and the servers to run; says everything that is wrong, and where."""
    from remit_broker.cli.checking import checks

    settings = load(config)
    found = list(checks(settings))
    if as_json:
        say({"ok": all(part.ok for part in found), "config": str(settings.file), "checks": found})
    else:
        for part in found:
            out.print(line(("✓ ", "green") if part.ok else ("✗ ", "red"), f"{part.check}: {part.said}"))
            if part.ask:
                out.print(line(f"    → {part.ask}"))
    if not all(part.ok for part in found):
        raise typer.Exit(USAGE)


@command
def up(
    config: Config = None,
    replicas: Annotated[int, typer.Option(help="Broker processes on this machine.", min=1, max=64)] = 1,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Log errors only.")] = False,
    logs: Annotated[Literal["text", "json"], typer.Option(help="How log lines look.")] = "text",
) -> None:
    """Run the broker: an embedded NATS server (unless bus.url is set), the broker and the HTTP edge, until Ctrl-C."""
    settings = load(config)
    set_up_logging(quiet, logs)
    words = [*(["--quiet"] if quiet else []), f"--logs={logs}"]
    raise typer.Exit(
        run_loop(_serve(settings, as_json) if replicas == 1 else _supervise(settings, replicas, as_json, words))
    )


def until_asked_to_stop() -> asyncio.Event:
    """An event that Ctrl-C and SIGTERM set."""
    asked = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    return asked


def settle_down() -> None:
    """What is here now stays for good, and a full collection over every open task would stop all hops for a tenth of a second."""
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


async def first_of(*events: asyncio.Event) -> None:
    """Return when one of them is set."""
    waiting = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()


def _warn(ready: dict[str, Any]) -> None:
    """What of the ready line nobody should overlook."""
    if url := ready.get("development_issuer"):
        out.print(
            line(("  DEVELOPMENT ISSUER ", "bold red"), f"at {url}: its users are a table, for trying things out only")
        )
    if user := ready.get("open"):
        out.print(line(("  OPEN ", "bold red"), f"everybody on this machine may do everything here, as {user}"))


async def _supervise(settings: Settings, count: int, as_json: bool, words: list[str]) -> int:
    asked = until_asked_to_stop()
    from remit_broker.replicas import Replicas

    async with Replicas(settings, count, words) as group:
        if as_json:
            say(group.ready)
        else:
            pids = " ".join(str(one.pid) for one in group.replicas)
            out.print(line(f"remit is up: {group.http}  bus {group.bus}  pid {os.getpid()}"))
            out.print(line(f"  {count} replicas: {pids}; data in {settings.data}; stop with Ctrl-C"))
            _warn(group.ready)
        await first_of(asked, group.ended)
        if group.ended.is_set():
            err.print(line(("it cannot go on ", "bold red"), group.why))
            return UNREACHABLE
        err.print("stopping: running hops get a moment to end")
    return 0


async def _serve(settings: Settings, as_json: bool) -> int:
    asked = until_asked_to_stop()
    from remit_broker.app import Broker

    async with Broker(settings) as broker:
        settle_down()
        if as_json:
            say(broker.ready)
        else:
            out.print(line(f"remit is up: {broker.http}  bus {broker.bus}  pid {os.getpid()}"))
            out.print(line(f"  data in {settings.data}; stop with Ctrl-C"))
            _warn(broker.ready)
        await first_of(asked, broker.ended)
        if broker.ended.is_set():
            err.print(line(("the NATS server ended", "bold red"), f"; its log is {settings.data / 'nats.log'}"))
            return UNREACHABLE
        err.print("stopping: running hops get a moment to end")
    return 0
