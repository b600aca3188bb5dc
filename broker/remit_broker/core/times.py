"""Times as records and people read them. No clock here: seconds in, text out."""

from __future__ import annotations

import functools
import math
from datetime import UTC, datetime


def rfc3339(seconds: float) -> str:
    """RFC 3339 UTC with milliseconds, such as ``2026-01-02T03:04:05.678Z``."""
    fraction, whole = math.modf(seconds)
    micros = round(fraction * 1_000_000)
    if fraction < 0 or micros == 1_000_000:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return f"{_second(int(whole))}.{micros // 1000:03d}Z"


@functools.lru_cache(maxsize=64)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "")


def seconds_of(text: str) -> float:
    """Unix seconds of an RFC 3339 time."""
    return datetime.fromisoformat(text).timestamp()


def utc(text: str) -> str:
    """An RFC 3339 time with any offset, in the form that records have. Raises ValueError for what is none, or names no time zone."""
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError(f"{text[:64]!r} names no time zone")
    try:
        return rfc3339(at.timestamp())
    except OverflowError:
        raise ValueError(f"{text[:64]!r} is no time") from None
