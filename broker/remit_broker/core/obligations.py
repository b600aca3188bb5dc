"""What a permit may demand beside permitting, and how an annotation says it: ``@approve``, ``@redact``, ``@cap``, ``@label``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Final

import msgspec

from remit_broker.core.findings import REDACTABLE
from remit_schemas.budget import Budget
from remit_schemas.canonical import MAX_INTEGER

MAX_APPROVERS: Final = 16
LABEL: Final = re.compile(r"[a-z0-9][a-z0-9_.:/-]{0,63}")
_ROLE = re.compile(r"[^\s;=\"]{1,128}")
_AMOUNT = re.compile(r"(usd|tokens|calls)=([0-9]{1,12}(?:\.[0-9]{1,6})?)")
_TTL = re.compile(r"ttl=([0-9]{1,6})([smh])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600}


class BadObligation(ValueError):  # noqa: N818 - as BadCap
    """An annotation that means nothing. ``ask`` is what could stand there."""

    def __init__(self, why: str, ask: str) -> None:
        super().__init__(why)
        self.why, self.ask = why, ask


class Approval(msgspec.Struct, frozen=True, kw_only=True):
    """One demand for an approval: ``count`` different people, each of ``role`` where one is named, within ``ttl`` seconds (0: the
    usual time). ``four_eyes``: never the person for whom the call is made. ``text`` is what they are told.
    """

    policy: str
    text: str
    count: int = 1
    role: str = ""
    four_eyes: bool = False
    ttl: int = 0


class Cap(msgspec.Struct, frozen=True, kw_only=True):
    """What a call may at most be given; None: as much as without it. ``seconds`` is its life."""

    usd_micros: int | None = None
    tokens: int | None = None
    calls: int | None = None
    seconds: int | None = None

    def meet(self, other: Cap) -> Cap:
        """The smaller of each."""
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in self.__struct_fields__}
        return Cap(
            **{name: min((one for one in pair if one is not None), default=None) for name, pair in pairs.items()}
        )

    def of(self, budget: Budget) -> Budget:
        """As much of ``budget`` as this leaves."""
        limits = (self.usd_micros, self.tokens, self.calls)
        given = (budget.usd_micros, budget.tokens, budget.calls)
        return Budget(*(have if cap is None else min(have, cap) for have, cap in zip(given, limits, strict=True)))


def parse_approval(policy: str, text: str) -> Approval:
    """``what the approver is told; count=2; role=security; four-eyes; ttl=15m``: the text first, the rest in any order.

    Raises :class:`BadObligation`.
    """
    said, *parts = (part.strip() for part in text.split(";"))
    ask = '@approve("what the approver is told; count=2; role=security; four-eyes; ttl=15m")'
    if not said:
        raise BadObligation("it does not say what is to be approved", ask)
    found: dict[str, str] = {}
    for part in parts:
        key, _, value = part.partition("=")
        if key not in ("count", "role", "four-eyes", "ttl") or key in found or (key == "four-eyes") is bool(value):
            raise BadObligation(f"{part!r} says nothing of an approval", ask)
        found[key] = value
    count, ttl = found.get("count", "1"), _TTL.fullmatch(f"ttl={found['ttl']}") if "ttl" in found else None
    if not (count.isascii() and count.isdigit() and 1 <= int(count[:4]) <= MAX_APPROVERS):
        raise BadObligation(f"{count!r} is no number of approvers", f"count=1 to count={MAX_APPROVERS}")
    if "role" in found and not _ROLE.fullmatch(found["role"]):
        raise BadObligation(f"{found['role']!r} is no role", "role=security")
    if "ttl" in found and (ttl is None or not int(ttl[1])):
        raise BadObligation(f"{found['ttl']!r} is no time", "ttl=90s, ttl=15m or ttl=2h")
    return Approval(
        policy=policy,
        text=said,
        count=int(count),
        role=found.get("role", ""),
        four_eyes="four-eyes" in found,
        ttl=int(ttl[1]) * _SECONDS[ttl[2]] if ttl else 0,
    )


def parse_cap(text: str) -> Cap:
    """``usd=0.05,tokens=1000,calls=3,ttl=30s``, each at most once. Raises :class:`BadObligation`."""
    found: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        amount, ttl = _AMOUNT.fullmatch(part), _TTL.fullmatch(part)
        if amount is not None:
            name = "usd_micros" if amount[1] == "usd" else amount[1]
            value = Decimal(amount[2]) * (1_000_000 if amount[1] == "usd" else 1)
        elif ttl is not None:
            name, value = "seconds", Decimal(int(ttl[1]) * _SECONDS[ttl[2]])
        else:
            raise _bad_cap(part)
        least = 1 if name in ("calls", "seconds") else 0
        if name in found or value != value.to_integral_value() or not least <= value <= MAX_INTEGER:
            raise _bad_cap(part)
        found[name] = int(value)
    if not found:
        raise _bad_cap(text)
    return Cap(**found)


def _bad_cap(part: str) -> BadObligation:
    return BadObligation(
        f"{part!r} caps nothing",
        '@cap("usd=0.05,tokens=1000,calls=3,ttl=30s"): each at most once, at least one call and one second',
    )


def parse_classes(text: str) -> tuple[str, ...]:
    """Classes of findings, with commas between them. Raises :class:`BadObligation`."""
    names = tuple(sorted({name.strip() for name in text.split(",")}))
    if wrong := [name for name in names if name not in REDACTABLE]:
        raise BadObligation(
            f"it redacts {wrong[0]!r}, which nothing detects", f"allowed: {', '.join(sorted(REDACTABLE))}"
        )
    return names


def parse_labels(text: str) -> tuple[str, ...]:
    """Labels, with commas between them. Raises :class:`BadObligation`."""
    names = tuple(sorted({name.strip() for name in text.split(",")}))
    if wrong := [name for name in names if not LABEL.fullmatch(name)]:
        raise BadObligation(f"{wrong[0]!r} is no label", "use lower-case letters, digits, _ . : / -")
    return names


def strictest(caps: Iterable[Cap]) -> Cap | None:
    """All of ``caps`` at once; None where there is none."""
    found: Cap | None = None
    for cap in caps:
        found = cap if found is None else found.meet(cap)
    return found
