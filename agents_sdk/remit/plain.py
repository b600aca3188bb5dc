"""From Python values to the JSON that may travel, and from what people write to amounts and times."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import msgspec

from remit.errors import as_refused, refused
from remit_schemas.budget import Budget, parse_budget
from remit_schemas.canonical import MAX_DEPTH, MAX_INTEGER
from remit_schemas.errors import Code, Effect
from remit_schemas.scope import Detail, parse_scope

_NESTED: Final = MAX_DEPTH - 4
"""Deepest value that still fits with an envelope around it."""

_TIME: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def plain(value: Any, what: str, code: Code, effect: Effect = "none") -> Any:
    """``value`` as JSON data: structs, dataclasses, dates, enums and sets become what JSON has.

    Raises :class:`~remit.errors.Refused` with ``code`` for what the other side would refuse or what would silently become
    something else: NaN, integers beyond 2^53-1 (RFC 8785 §3.2.2.3), text that is not Unicode, values nested too deeply.
    """
    try:
        value = msgspec.to_builtins(value, str_keys=True)
        why = _flaw(value)
    except (TypeError, ValueError, RecursionError) as error:
        why = str(error) or type(error).__name__
    if why:
        raise refused(
            code, f"{what} cannot be sent: {why}", rule="value.json", ask="send plain JSON data", effect=effect
        )
    return value


def _flaw(value: Any) -> str:
    level = [value]
    for _ in range(_NESTED):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.keys())
                below.extend(item.values())
            elif isinstance(item, list | tuple):
                below.extend(item)
            elif isinstance(item, str):
                if not item.isascii():
                    item.encode()
            elif isinstance(item, float):
                if not math.isfinite(item):
                    return f"{item} is not JSON"
            elif isinstance(item, int) and not -MAX_INTEGER <= item <= MAX_INTEGER:
                return "an integer beyond 2^53-1"
        if not below:
            return ""
        level = below
    return f"it is nested more than {_NESTED} levels deep"


def seconds(time: str | float) -> float:
    """``"500ms"``, ``"30s"``, ``"5m"``, ``"4h"``, or a number of seconds. Raises a MALFORMED refusal."""
    if isinstance(time, str):
        match = _TIME.fullmatch(time.strip())
        time = float(match[1]) * _SECONDS[match[2]] if match else math.nan
    if not 0 < time < math.inf:
        raise refused(
            Code.MALFORMED, "not a length of time", rule="value.time", ask='write "500ms", "30s", "5m" or "4h"'
        )
    return time


def budget_of(wish: Budget | str, left: Budget) -> Budget:
    """A budget as it is, ``"0.05usd 3calls"``, or a share of ``left`` such as ``"1/8"`` (each unit rounded down, at least a call)."""
    if isinstance(wish, Budget):
        return wish
    if "/" not in wish:
        with as_refused():
            return parse_budget(wish)
    try:
        share = Fraction(wish.replace(" ", ""))
    except (ValueError, ZeroDivisionError):
        share = Fraction(0)
    if not 0 < share <= 1:
        raise refused(
            Code.MALFORMED, f"{wish!r} is not a share", rule="value.share", ask='write a fraction, such as "1/8"'
        )
    return Budget(int(left.usd_micros * share), int(left.tokens * share), max(int(left.calls * share), 1))


def micros(usd: float | str | Decimal) -> int:
    """Millionths of a US dollar, rounded up. Raises a MALFORMED refusal."""
    amount = Decimal(str(usd)) if re.fullmatch(r"[0-9]+(\.[0-9]*)?([eE]-?[0-9]+)?", str(usd)) else Decimal(-1)
    if not 0 <= amount * 1_000_000 <= MAX_INTEGER:
        raise refused(
            Code.MALFORMED, f"{usd!r} is not a cost", rule="value.cost", ask="report what was spent, in US dollars"
        )
    return math.ceil(amount * 1_000_000)


def details(scopes: list[str | Detail] | tuple[str | Detail, ...]) -> tuple[Detail, ...]:
    """Scopes as they are written, such as ``mcp/files/read_file{"path":{"prefix":"docs/"}}``. Raises a MALFORMED refusal."""
    with as_refused():
        return tuple(parse_scope(scope) if isinstance(scope, str) else scope for scope in scopes)
