"""What calls of models cost: US dollars per million tokens, by the name of the model, as operators write it and agents get it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Annotated, Final

import msgspec

from remit_schemas.errors import Code, refusal

Micros = Annotated[int, msgspec.Meta(ge=0, le=10**12)]

_MILLION: Final = 1_000_000
_PART: Final = re.compile(r"(in|out|call)=([0-9]{1,6}(?:\.[0-9]{1,6})?)")


class ModelPrice(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"input": "in", "output": "out"}):
    """Millionths of a US dollar: ``input`` and ``output`` for a million tokens, ``call`` for a call whose usage nobody knows."""

    input: Micros
    output: Micros
    call: Micros

    def cost(self, used: tuple[int, int]) -> int:
        """Of so many tokens read and written, rounded up."""
        read, written = used
        return -(-(read * self.input + written * self.output) // _MILLION)


DEFAULT: Final = "default"
DEAREST: Final = ModelPrice(15 * _MILLION, 75 * _MILLION, _MILLION // 4)
"""What a model costs that no price names, where there is no ``default``: guessed high, since nothing may be used for nothing."""


class ModelPrices:
    """Prices by pattern; the longest pattern that matches a model's name wins, and ``default`` is for those that none does."""

    def __init__(self, table: Mapping[str, ModelPrice]) -> None:
        self.table: Final = dict(table)
        self._patterns = sorted((name for name in table if name != DEFAULT), key=len, reverse=True)

    def of(self, model: str) -> ModelPrice:
        """The price of a model."""
        for pattern in self._patterns:
            if fnmatchcase(model, pattern):
                return self.table[pattern]
        return self.table.get(DEFAULT, DEAREST)


def parse_model_price(text: str, default: ModelPrice = DEAREST) -> ModelPrice:
    """``in=2.5,out=10,call=0.05``: dollars for a million tokens read and written, and for a call whose usage nobody knows.

    Without ``call`` that of ``default`` is taken. Raises a MALFORMED refusal, also for a model that would cost nothing only where
    its usage is not known.
    """
    amounts: dict[str, int] = {}
    for part in text.replace(",", " ").split():
        match = _PART.fullmatch(part)
        if match is None or match[1] in amounts:
            raise _bad(text)
        amounts[match[1]] = int(Decimal(match[2]) * _MILLION)
    if not {"in", "out"} <= amounts.keys():
        raise _bad(text)
    free = amounts["in"] == amounts["out"] == 0
    price = ModelPrice(amounts["in"], amounts["out"], amounts.get("call", 0 if free else default.call))
    if not free and not price.call:
        raise _bad(text)
    return price


def _bad(text: str) -> Exception:
    return refusal(
        Code.MALFORMED, f"{text!r} is no price of a model", rule="models.price",
        ask="write dollars for a million tokens, and for a call whose usage is not known (more than 0): in=2.5,out=10,call=0.05",
    )  # fmt: skip
