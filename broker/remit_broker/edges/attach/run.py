"""Running one worker as a process: one line for every change of its state, and an exit code that says what to do."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from remit_broker.edges.attach.containment import NO_LIMITS, Limits, Room
from remit_broker.edges.attach.credentials import CredentialsError, read_credentials
from remit_broker.edges.attach.source import ONE_FOR_ALL, ServerError, Sharing, SourceError, source
from remit_broker.edges.attach.wire import BusError
from remit_broker.edges.attach.worker import AttachWorker, OnReport, Report
from remit_schemas.errors import SURFACES, Refusal

DONE: Final = 0
USAGE: Final = 2
UNREACHABLE: Final = 3


def run_attach(
    name: str,
    credentials_path: str | Path,
    *,
    command: Sequence[str] | None = None,
    url: str | None = None,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    room: Room | None = None,
    limits: Limits = NO_LIMITS,
    sharing: Sharing = ONE_FOR_ALL,
    on_report: OnReport | None = None,
    leash: int | None = None,
) -> int:
    """Attach the MCP server that exactly one of ``command`` and ``url`` names, until SIGINT or SIGTERM. Returns the exit code.

    0 stopped; 1 refused by the broker; 2 wrong usage, credentials, or a command that cannot be run; 3 the bus cannot be reached
    or the server does not start. Every failure is one line on standard error. ``on_report`` hears each change of state; by
    default it is printed on standard error too. ``leash`` is a descriptor whose end also stops the worker: with a pipe from its
    supervisor, a worker does not outlive it.
    """
    _quiet()
    try:
        credentials = read_credentials(credentials_path)
        worker = AttachWorker(
            name,
            source(command, url, cwd=cwd, env=env, room=room, limits=limits, sharing=sharing),
            credentials,
            log=credentials.path.with_suffix(".log"),
            on_report=on_report or _printer(name),
        )
        asyncio.run(_until_signalled(worker, leash))
    except (CredentialsError, SourceError) as error:
        return _failed(name, str(error), USAGE)
    except (BusError, ServerError) as error:
        what = "the bus cannot be reached" if isinstance(error, BusError) else "the server does not start"
        return _failed(name, f"{what}: {error}", UNREACHABLE)
    except Refusal as refused:
        body = refused.body
        return _failed(name, f"{body.code}: {body.message} ({body.rule}); {body.ask}", SURFACES[body.code].exit)
    return DONE


async def _until_signalled(worker: AttachWorker, leash: int | None) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, worker.stop)
    if leash is not None:
        loop.add_reader(leash, _pulled, loop, leash, worker)
    await worker.run()


def _pulled(loop: asyncio.AbstractEventLoop, leash: int, worker: AttachWorker) -> None:
    # INVARIANT: no worker outlives its supervisor (test_a_worker_ends_when_its_supervisor_is_killed).
    if not os.read(leash, 4096):
        loop.remove_reader(leash)
        worker.stop()


def _printer(name: str) -> Callable[[Report], None]:
    def say(report: Report) -> None:
        if report.state == "running":
            _print(f"{name}: attached {report.server or 'a server'} with {report.tools} tools")
            for left_out in report.left_out:
                _print(f"{name}: left out {left_out}")
        elif report.state != "failed":
            _print(f"{name}: {report.state}{': ' + report.reason if report.reason else ''}")

    return say


def _failed(name: str, why: str, code: int) -> int:
    _print(f"{name}: {why}")
    return code


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _quiet() -> None:
    """The libraries log tracebacks of what a server sends; what matters of it is in our own reports and answers."""
    for name in ("mcp", "client", "nats", "httpx2"):
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False
