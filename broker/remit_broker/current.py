"""What the code that runs just now is about, for log lines: set once by the loop around the stages, passed through by nobody."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final, NamedTuple


class About(NamedTuple):
    """A hop. ``txn`` is ``new`` where there is none yet."""

    txn: str
    hop: str


ABOUT: Final[ContextVar[About | None]] = ContextVar("remit_about", default=None)
"""None outside of any hop. Each hop is a task of its own, so what is set there ends with it."""
