"""What ``remit doctor`` found: one line each."""

from __future__ import annotations

from typing import Literal

import msgspec

State = Literal["ok", "wrong", "note", "unknown"]


class Finding(msgspec.Struct, frozen=True):
    """``state``: as it should be, not so, worth knowing, or not to be found out now. ``ask`` says what to do."""

    check: str
    state: State
    said: str
    ask: str = ""


def ok(check: str, said: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", said)


def wrong(check: str, said: str, ask: str) -> Finding:
    """Something is not as it must be."""
    return Finding(check, "wrong", said, ask)


def note(check: str, said: str, ask: str = "") -> Finding:
    """Works, but somebody should know."""
    return Finding(check, "note", said, ask)


def unknown(check: str, said: str, ask: str = "") -> Finding:
    """Could not be looked at."""
    return Finding(check, "unknown", said, ask)
