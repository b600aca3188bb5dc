"""How often one caller may ask and one target be called: the defaults of ``[limits]`` and the overrides of ``[rates]``, checked.

A caller's rate is each caller's own, whichever pattern gave it. A target's pattern is one rate that everything it matches shares;
without one, each callee has the default for itself. Of several patterns that match, the longest counts, since it says the most.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

KINDS: Final = ("caller", "target")
MAX_PER_SECOND: Final = 1_000_000.0

_RATE: Final = re.compile(
    r"\s*(\d+(?:\.\d+)?)\s*/\s*(s|second|m|minute|h|hour)\s*(?:,\s*burst\s*=\s*(\d+)\s*)?", re.ASCII
)
_SECONDS: Final = {"s": 1, "second": 1, "m": 60, "minute": 60, "h": 3600, "hour": 3600}
_PRINCIPALS: Final = re.compile(r"[a-z0-9_*?\[\]!-]+")


class Rate(NamedTuple):
    """``per_second`` on average, ``burst`` at once."""

    per_second: float
    burst: int


class BadRate(Exception):  # noqa: N818 - a finding about a configuration
    """A rate that would not be what its author thinks. ``key`` is where, ``ask`` what is allowed there."""

    def __init__(self, key: str, why: str, ask: str) -> None:
        super().__init__(why)
        self.key, self.why, self.ask = key, why, ask


class Overrides:
    """The rates of one kind by pattern. False where there are none."""

    def __init__(self, by_pattern: Mapping[str, Rate]) -> None:
        self.by_pattern = dict(by_pattern)
        self._longest = sorted(by_pattern, key=lambda pattern: (-len(pattern), pattern))

    def __bool__(self) -> bool:
        return bool(self.by_pattern)

    def pattern(self, name: str) -> str | None:
        """The pattern that counts for a caller's name or a resource."""
        return next((pattern for pattern in self._longest if fnmatchcase(name, pattern)), None)


class Rates(NamedTuple):
    """All overrides."""

    caller: Overrides = Overrides({})
    target: Overrides = Overrides({})


def parse_rates(raw: Mapping[str, Mapping[str, str]], caller: Rate, target: Rate | None) -> Rates:
    """The ``[rates]`` of a configuration whose defaults are ``caller`` and ``target`` (None: unlimited). Raises :class:`BadRate`."""
    tables: dict[str, dict[str, Rate]] = {kind: {} for kind in KINDS}
    for kind, named in raw.items():
        if kind not in KINDS:
            raise BadRate(f"rates.{kind}", "there is no such key", "keys there are: " + ", ".join(KINDS))
        for pattern, text in named.items():
            key = f'rates.{kind}."{pattern}"'
            _require_pattern(key, kind, pattern)
            rate = parse_rate(key, text)
            if rate == (caller if kind == "caller" else target):
                raise BadRate(key, "it says what the default in [limits] says", "leave it out, or say something else")
            tables[kind][pattern] = rate
    return Rates(Overrides(tables["caller"]), Overrides(tables["target"]))


def parse_rate(key: str, text: str) -> Rate:
    """``10/s``, ``600/minute``, ``20/h, burst=5``; without a burst, as much at once as in one second, at least one."""
    match = _RATE.fullmatch(text)
    if match is None:
        raise BadRate(key, f"{text!r} is no rate", 'write such as "10/s", "600/minute" or "20/hour, burst=5"')
    per_second = float(match[1]) / _SECONDS[match[2]]
    burst = int(match[3]) if match[3] else max(1, math.ceil(per_second))
    if per_second == 0 or burst == 0:
        raise BadRate(key, "it would refuse every call", "to stop somebody, revoke it or use a policy")
    if per_second > MAX_PER_SECOND:
        raise BadRate(
            key,
            f"no broker takes more than {MAX_PER_SECOND:.0f} calls a second: it could never bind",
            "make it smaller",
        )
    if burst > 1_000_000_000:
        raise BadRate(key, "a burst of so many could never be used up", "make it smaller")
    return Rate(per_second, burst)


def _require_pattern(key: str, kind: str, pattern: str) -> None:
    if kind == "caller" and not _PRINCIPALS.fullmatch(pattern):
        raise BadRate(key, "no agent is called so", "write the name of an agent, or a pattern such as batch-*")
    if kind == "target" and not pattern.startswith(("agent/", "mcp/", "*")):
        raise BadRate(key, "it matches no resource", "write such as mcp/mail/* or agent/writer/*")
