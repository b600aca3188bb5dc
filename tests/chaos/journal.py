"""What each process saw, one JSON line per event, in a file of its own.

A line is one write(2) to a file opened for appending. So a process that is killed with SIGKILL leaves all it wrote, in order, and at
most nothing of the line it was about to write: the kernel keeps what was written, and the machine itself does not die here.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Journal:
    """The journal of one process. A new process under the same name goes on with its predecessor's file."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(folder / f"{name}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, what: str, **fields: Any) -> None:
        """Append an event, with the time."""
        line = json.dumps({"what": what, "at": time.time(), **fields}, separators=(",", ":"))
        os.write(self._file, line.encode() + b"\n")


def read(folder: Path) -> Iterator[dict[str, Any]]:
    """Every event of every journal of a folder, in no order; each says who saw it."""
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_bytes().splitlines():
            yield {"who": path.stem, **json.loads(line)}
