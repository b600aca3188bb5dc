"""``python -m remit_broker.edges.attach NAME --credentials F (-- CMD… | --url URL)``; see :func:`run_attach` for exit codes."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from remit_broker.edges.attach.containment import Limits, Room
from remit_broker.edges.attach.run import USAGE, run_attach
from remit_broker.edges.attach.source import Sharing
from remit_broker.edges.attach.worker import Report


def main(argv: Sequence[str]) -> int:
    """Parse and run."""
    own, command = _split(argv)
    parser = argparse.ArgumentParser(prog="remit-attach", description="Attach an MCP server to the bus.")
    parser.add_argument("name")
    parser.add_argument("--credentials", required=True, metavar="FILE")
    parser.add_argument("--url", help="a streamable HTTP server, instead of a command after --")
    parser.add_argument("--cwd", metavar="DIR", help="where the command runs")
    parser.add_argument(
        "--env", metavar="NAME", action="append", default=[], help="a variable of this environment to pass on"
    )
    parser.add_argument(
        "--supervised",
        action="store_true",
        help="one line of JSON about the server on stdin, and an end when stdin closes",
    )
    parser.add_argument("--json", action="store_true", help="every change of state as one JSON line on standard output")
    try:
        args = parser.parse_args(own)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else USAGE
    missing = [name for name in args.env if name not in os.environ]
    if missing:
        print(f"{args.name}: --env {missing[0]}: it is not set here", file=sys.stderr)
        return USAGE
    env = {name: os.environ[name] for name in args.env}
    given: dict[str, Any] = {}
    if args.supervised:
        # What is meant for the server would in our own environment also act on us (PYTHONPATH, LD_PRELOAD).
        given = json.loads(sys.stdin.buffer.readline())
        env |= given["env"]
    return run_attach(
        args.name,
        args.credentials,
        command=command,
        url=args.url,
        cwd=args.cwd,
        env=env,
        room=_room(given.get("room")),
        limits=Limits(**given.get("limits", {})),
        sharing=Sharing(**given.get("sharing", {})),
        on_report=_json_line if args.json else None,
        leash=sys.stdin.fileno() if args.supervised else None,
    )


def _room(told: dict[str, Any] | None) -> Room | None:
    if told is None:
        return None
    return Room(tuple(map(Path, told["read"])), tuple(map(Path, told["write"])), bool(told["network"]))


def _split(argv: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """Our own words, and the command after ``--`` untouched."""
    words = list(argv)
    if "--" not in words:
        return words, None
    at = words.index("--")
    return words[:at], words[at + 1 :]


def _json_line(report: Report) -> None:
    print(report.as_json(), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
