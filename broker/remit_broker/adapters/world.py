"""The world a simulation would replace: clocks, randomness, and the failpoints of crash tests."""

from __future__ import annotations

import os
import secrets
import signal
import time

FAILPOINT = "REMIT_FAILPOINT"
"""Environment variable naming the point at which this process kills or freezes itself; empty in every real deployment."""


class SystemClock:
    """The machine's clocks."""

    def now(self) -> float:
        """Unix seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds that only grow."""
        return time.monotonic()


class RandomIds:
    """Ids from the operating system's random source."""

    def txn(self) -> str:
        """32 lower-case hex digits."""
        return secrets.token_hex(16)

    def hop(self) -> str:
        """16 lower-case hex digits."""
        return secrets.token_hex(8)

    def blind(self) -> str:
        """32 lower-case hex digits."""
        return secrets.token_hex(16)


class Failpoints:
    """Stops the process at one named point, once: a crash test's stand-in for pulling the plug there.

    A point is ``open`` (SIGKILL when a hop comes by there first), ``open@7`` (the seventh time), or ``freeze:open@7``: SIGSTOP,
    after which whoever watches may let it go on.
    """

    def __init__(self, point: str | None = None) -> None:
        how, _, rest = (os.environ.get(FAILPOINT, "") if point is None else point).rpartition(":")
        self._signal = signal.SIGSTOP if how == "freeze" else signal.SIGKILL
        self._point, _, count = rest.partition("@")
        self._left = int(count or 1)

    def hit(self, name: str) -> None:
        """Stop here, if this is the point and the time."""
        if name != self._point or self._left < 1:
            return
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), self._signal)
