"""What a configuration's caps would not do: found by ``remit check`` and said at each start.

A cap counts what callees report and, where they report nothing, what ``[prices]`` says. So a cap in money or tokens that no
price stands behind counts nothing of what reports nothing; and a price above a cap refuses every call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple

from remit_broker.core.accounts import Cap, Window
from remit_broker.core.caps import DEFAULT, EVERY_TOOL, Caps, units_named
from remit_schemas.budget import Budget, parse_budget

EVERYTHING = ("agent/*/*", EVERY_TOOL)
MARKS = {"usd_micros": "usd", "tokens": "tokens"}


class Finding(NamedTuple):
    """A cap (``key``) that would not be what its author thinks, and what to do about it."""

    key: str
    why: str
    ask: str

    def __str__(self) -> str:
        return f"{self.key}: {self.why}; {self.ask}"


def ineffective(caps: Caps, prices: Mapping[str, str]) -> list[Finding]:
    """Every cap that no price stands behind, or that a price exceeds. ``prices`` as the configuration has them."""
    costs = {pattern: (parse_budget(text), units_named(text)) for pattern, text in prices.items()}
    return [
        found
        for key, kind, name, window, cap in _all(caps)
        for found in (*_unpriced(key, kind, name, cap, costs), *_too_dear(key, (kind, name), window, cap, costs))
    ]


def _all(caps: Caps) -> Iterator[tuple[str, str, str, Window, Cap]]:
    for kind, named in caps.tables.items():
        for name, table in named.items():
            for window, cap in table.items():
                yield f'caps.{kind}."{name}".{window}', kind, name, window, cap


def _unpriced(
    key: str, kind: str, name: str, cap: Cap, costs: Mapping[str, tuple[Budget, frozenset[str]]]
) -> Iterator[Finding]:
    counted = EVERYTHING if kind != "tool" else (EVERY_TOOL if name == DEFAULT else name,)
    for unit, mark in MARKS.items():
        if getattr(cap, unit) is None:
            continue
        priced = [pattern for pattern, (_, units) in costs.items() if unit in units]
        if bare := [one for one in counted if not any(fnmatchcase(one, pattern) for pattern in priced)]:
            yield Finding(
                key, f"no price says what {bare[0]} costs in {mark}, so what reports nothing is counted as nothing",
                f'price it, such as prices."{bare[0]}" = "{mark}=…,calls=1" ({mark}=0 says that it is free)',
            )  # fmt: skip


def _too_dear(
    key: str, whose: tuple[str, str], window: Window, cap: Cap, costs: Mapping[str, tuple[Budget, frozenset[str]]]
) -> Iterator[Finding]:
    kind, name = whose
    for pattern, (price, _) in costs.items():
        # Of users and agents some may have more; a tool's and the tenant's cap is everybody's.
        inside = kind == "tenant" or (kind == "tool" and (name == DEFAULT or fnmatchcase(pattern, name)))
        if inside and (kind == "tenant" or pattern.startswith("mcp/")) and not cap.counted(price).within(cap.budget):
            yield Finding(
                key, f'prices."{pattern}" is more than a whole {window} allows, so every such call would be refused',
                "make the cap larger or the price smaller; to forbid a call use a policy",
            )  # fmt: skip
