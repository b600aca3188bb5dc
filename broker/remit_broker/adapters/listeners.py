"""Who listens on a local TCP port, where the system tells: for error messages only."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def who_listens(port: int) -> str:
    """`` by NAME (process PID)``, or a hint how to find out. Linux only reads its own tables; nothing is started."""
    inode = _listening_inode(port)
    pid = _holder(inode) if inode else None
    if pid is None:
        return f" (`ss -ltnp 'sport = :{port}'` or `lsof -i :{port}` says by what)"
    with contextlib.suppress(OSError):
        return f" by {Path(f'/proc/{pid}/comm').read_text().strip()} (process {pid})"
    return f" by process {pid}"


def _listening_inode(port: int) -> str | None:
    # proc(5), /proc/net/tcp: local address in hex, state 0A is LISTEN, the tenth field is the socket's inode.
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rsplit(":", 1)[1], 16) == port:
                    return fields[9]
    return None


def _holder(inode: str) -> int | None:
    for folder in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):
            for link in folder.iterdir():
                if os.readlink(link) == f"socket:[{inode}]":
                    return int(folder.parent.name)
    return None
