"""``remit up`` in a process whose wall clock may be moved while it runs: ``python -m tests.chaos.broker OFFSET_FILE up …``.

Everything in the broker reads the wall clock as ``time.time()``. Here that adds the seconds that stand in a file of eight bytes, which
is mapped, so that writing it moves the clock at once. Monotonic time is left alone, as it is when a real clock is set.
"""

from __future__ import annotations

import mmap
import struct
import sys
import time
from pathlib import Path


def shift(file: Path) -> None:
    """Move the clock of this process by what ``file`` says from now on."""
    with file.open("r+b") as opened:
        offset = mmap.mmap(opened.fileno(), 8)
    real = time.time
    time.time = lambda: real() + struct.unpack("d", offset[:8])[0]


def move(file: Path, seconds: float) -> None:
    """Set the clock of whoever runs on ``file`` to ``seconds`` from the true time."""
    if not file.exists():
        file.write_bytes(struct.pack("d", seconds))
        return
    with file.open("r+b") as opened:
        opened.write(struct.pack("d", seconds))


if __name__ == "__main__":
    shift(Path(sys.argv[1]))
    from remit_broker.cli.main import main

    sys.argv = ["remit", *sys.argv[2:]]
    main()
