"""Budget: three non-negative integers that are always all present. Nothing means unlimited."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Final

import msgspec

from remit_schemas.canonical import MAX_INTEGER
from remit_schemas.errors import Code, refusal

UNITS: Final = ("usd_micros", "tokens", "calls")


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """An amount of each unit: millionths of a US dollar, model tokens, calls."""

    usd_micros: int
    tokens: int
    calls: int

    def __post_init__(self) -> None:
        if not (
            0 <= self.usd_micros <= MAX_INTEGER and 0 <= self.tokens <= MAX_INTEGER and 0 <= self.calls <= MAX_INTEGER
        ):
            unit = next(unit for unit in UNITS if not 0 <= getattr(self, unit) <= MAX_INTEGER)
            raise ValueError(f"{unit} must be between 0 and 2^53-1")

    def __add__(self, other: Budget) -> Budget:
        if other is ZERO:
            return self
        usd_micros, tokens, calls = (
            self.usd_micros + other.usd_micros, self.tokens + other.tokens, self.calls + other.calls
        )  # fmt: skip
        # Comparisons instead of min(): this is most of the arithmetic of a hop.
        return Budget(
            usd_micros if usd_micros < MAX_INTEGER else MAX_INTEGER,
            tokens if tokens < MAX_INTEGER else MAX_INTEGER,
            calls if calls < MAX_INTEGER else MAX_INTEGER,
        )

    def minus(self, other: Budget) -> Budget:
        """What is left after ``other``, never below zero in any unit."""
        if other is ZERO:
            return self
        usd_micros, tokens, calls = (
            self.usd_micros - other.usd_micros, self.tokens - other.tokens, self.calls - other.calls
        )  # fmt: skip
        return Budget(
            usd_micros if usd_micros > 0 else 0, tokens if tokens > 0 else 0, calls if calls > 0 else 0
        )  # fmt: skip

    def within(self, other: Budget) -> bool:
        """Whether this is no larger than ``other`` in every unit."""
        return self.usd_micros <= other.usd_micros and self.tokens <= other.tokens and self.calls <= other.calls

    def meet(self, other: Budget) -> Budget:
        """The larger of the amounts that are within both."""
        if self.within(other):
            return self
        return Budget(
            min(self.usd_micros, other.usd_micros), min(self.tokens, other.tokens), min(self.calls, other.calls)
        )

    def join(self, other: Budget) -> Budget:
        """The smallest amount that both are within."""
        if other.within(self):
            return self
        return Budget(
            max(self.usd_micros, other.usd_micros), max(self.tokens, other.tokens), max(self.calls, other.calls)
        )

    def half(self) -> Budget:
        """Half of each unit, rounded down (calls rounded up, since a hop costs at least one)."""
        return Budget(self.usd_micros // 2, self.tokens // 2, (self.calls + 1) // 2)

    def __str__(self) -> str:
        parts = [f"${self.usd_micros / 1_000_000:.6f}".rstrip("0").rstrip(".")]
        if self.tokens:
            parts.append(f"{self.tokens} token{'s' if self.tokens != 1 else ''}")
        parts.append(f"{self.calls} call{'s' if self.calls != 1 else ''}")
        return " ".join(parts)


ZERO: Final = Budget(0, 0, 0)
ONE_CALL: Final = Budget(0, 0, 1)

_PART = re.compile(r"(?:(usd|usd_micros|tokens|calls)=([0-9.]+))|(?:([0-9.]+)(usd|tokens|calls))")


def parse_budget(text: str) -> Budget:
    """``usd=0.5,calls=20`` or ``0.50usd 40calls``. What is not named is zero, except calls, which is then 1.

    Raises a MALFORMED refusal.
    """
    amounts: dict[str, int] = {}
    for part in text.replace(",", " ").split():
        match = _PART.fullmatch(part.strip())
        if match is None:
            raise _bad(text)
        unit, number = (match[1], match[2]) if match[1] else (match[4], match[3])
        try:
            value = Decimal(number) * (1_000_000 if unit == "usd" else 1)
        except InvalidOperation:
            raise _bad(text) from None
        key = "usd_micros" if unit == "usd" else unit
        if value != value.to_integral_value() or value > MAX_INTEGER or key in amounts:
            raise _bad(text)
        amounts[key] = int(value)
    if not amounts:
        raise _bad(text)
    return Budget(amounts.get("usd_micros", 0), amounts.get("tokens", 0), amounts.get("calls", 1))


def _bad(text: str) -> Exception:
    return refusal(
        Code.MALFORMED, f"{text!r} is not a budget", rule="budget.syntax",
        ask="write each unit once: usd=0.5,tokens=1000,calls=20",
    )  # fmt: skip
