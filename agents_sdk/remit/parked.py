"""How the run of a skill ends that has asked for an input and does not wait for it here."""

from __future__ import annotations

from typing import Final

LAST_WORD: Final = 5.0
"""Seconds that a final frame waits, past the deadline too, for a lost connection: the broker may still want it for the record."""


class Parked(BaseException):
    """Raised through a skill whose hop is parked. No :class:`Exception`: it is no failure, and no skill should handle it."""
