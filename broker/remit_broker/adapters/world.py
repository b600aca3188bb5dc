"""The world a simulation would replace: clocks, randomness, and the failpoints of crash tests."""

from __future__ import annotations

import os
import secrets
import signal
import time

FAILPOINT = "REMIT_FAILPOINT"
"""Environment variable naming the point at which this process kills itself (``open``) or, once, freezes (``open:stop``); empty
in every real deployment."""


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


class Failpoints:
    """Ends the process with SIGKILL, or freezes it with SIGSTOP, at one named point: a crash test's stand-in for what happens there."""

    def __init__(self, point: str | None = None) -> None:
        given = os.environ.get(FAILPOINT, "") if point is None else point
        self._point, _, how = given.partition(":")
        self._signal = signal.SIGSTOP if how == "stop" else signal.SIGKILL

    def hit(self, name: str) -> None:
        """Die or freeze here, if this is the point."""
        if name == self._point:
            self._point = ""
            os.kill(os.getpid(), self._signal)
