"""What a process has used so far, as Linux counts it: processor time and memory. None where the system does not tell."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def processor_seconds(pids: Iterable[int]) -> float | None:
    """Processor time of all threads of these processes since they began."""
    total = 0
    for pid in pids:
        try:
            # Nanoseconds, of each thread; ``stat`` counts in hundredths of a second.
            for thread in Path(f"/proc/{pid}/task").iterdir():
                total += int((thread / "schedstat").read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return None
    return total / 1e9


def resident_bytes(pids: Iterable[int]) -> int | None:
    """Memory that these processes have in RAM."""
    try:
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def children(pid: int, name: str) -> list[int]:
    """The processes called ``name`` that ``pid`` started, itself or through others."""
    parents: dict[int, list[int]] = {}
    names: dict[int, str] = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            # "<pid> (<name>) <state> <parent> …", and the name may hold anything.
            told = (place / "stat").read_text()
            head, _, rest = told.rpartition(")")
            parents.setdefault(int(rest.split()[1]), []).append(int(place.name))
            names[int(place.name)] = head.partition("(")[2]
        except (OSError, ValueError, IndexError):
            continue
    found: list[int] = []
    waiting = [pid]
    for parent in waiting:
        below = parents.get(parent, [])
        waiting.extend(below)
        found.extend(child for child in below if names[child].startswith(name))
    return found
