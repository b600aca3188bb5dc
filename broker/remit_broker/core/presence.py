"""Which replicas live, judged by one of them from the heartbeats it hears. Pure: times are that replica's own monotonic clock.

A replica may judge others only for a time in which it heard itself: while its own heartbeats do not come back, it is the one
that is cut off, and everybody else only seems silent.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Beat(msgspec.Struct, frozen=True):
    """``by`` is the replica, ``at`` its own monotonic clock, which means something to itself only; ``about`` is for operators."""

    by: str
    at: float
    about: dict[str, Any] = {}
    bye: bool = False
    """The last one: it ends in order, with no hop in hand."""


class Peer(msgspec.Struct, frozen=True):
    """A replica as another one sees it. ``silent`` is in seconds."""

    replica: str
    silent: float
    about: dict[str, Any]


class Presence:
    """What one replica knows of all. ``gap`` is how long it may not hear itself and still judge others, in seconds."""

    def __init__(self, me: str, gap: float) -> None:
        self._me, self._gap = me, gap
        self._heard: dict[str, tuple[float, Beat]] = {}
        self._own = float("-inf")
        self._since = float("inf")

    def hear(self, beat: Beat, now: float) -> None:
        """A heartbeat came."""
        if beat.by == self._me:
            # INVARIANT: a replica that was cut off, or frozen, begins to judge anew
            # (test_who_was_cut_off_holds_nobody_for_silent).
            if now - self._own > self._gap:
                self._since = now
            self._own = now
        if beat.bye:
            self._heard.pop(beat.by, None)
        else:
            self._heard[beat.by] = (now, beat)

    def silence(self, replica: str, now: float) -> float:
        """For how long ``replica`` has certainly said nothing. 0 while this replica cannot tell."""
        if now - self._own > self._gap:
            return 0.0
        heard = self._heard.get(replica)
        return max(0.0, now - max(heard[0] if heard else self._since, self._since))

    def peers(self, now: float, seconds: float) -> list[Peer]:
        """Everybody heard within ``seconds``, itself too, by name."""
        return [
            Peer(name, max(0.0, now - at), beat.about)
            for name, (at, beat) in sorted(self._heard.items())
            if now - at < seconds
        ]

    def forget(self, now: float, seconds: float) -> None:
        """Let go of who has been silent for longer than ``seconds``: their ids never come back."""
        self._heard = {name: kept for name, kept in self._heard.items() if now - kept[0] < seconds}
