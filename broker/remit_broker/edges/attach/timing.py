"""How patient a worker is. By itself, since who starts workers needs no MCP library."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """How patient the worker is, in seconds.

    ``start`` for starting and the handshake, ``listing`` for all pages of tools, ``probe`` for one listing that asks whether a
    server still lives, ``first_restart`` and ``last_restart`` the ends of the exponential back-off, ``steady`` the life of a
    session after which the back-off starts over, ``finish`` for calls in flight when the worker stops.
    """

    start: float = 30.0
    listing: float = 60.0
    probe: float = 10.0
    first_restart: float = 1.0
    last_restart: float = 30.0
    steady: float = 30.0
    finish: float = 5.0
