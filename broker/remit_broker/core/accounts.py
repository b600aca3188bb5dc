"""Accounts: what a user, an agent, a tool or a tenant may use up in a window of time, over all txns.

An :class:`Account` is one shared entry per (tenant, kind, name, window). Replicas **lease** parts of its cap from it by
compare-and-set and serve from their :class:`Slice` without asking anybody. Amounts of one account in its window::

    cap      what the configuration allows; a unit that it does not name is not counted
    used     what returned leases had spent
    granted  of one lease: what was taken out of the cap for a replica, spent or not
    left     cap - used - everything granted: what may still be leased

A lease that nobody returns keeps what it was granted until the window ends, since nobody knows how much of it was spent.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final, Literal, NamedTuple

import msgspec
from msgspec.structs import replace

from remit_schemas.budget import UNITS, ZERO, Budget

Kind = Literal["user", "agent", "tool", "tenant"]
Window = Literal["minute", "hour", "day", "month"]

KINDS: Final[tuple[Kind, ...]] = ("user", "agent", "tool", "tenant")
WINDOWS: Final[tuple[Window, ...]] = ("minute", "hour", "day", "month")
"""From the shortest to the longest."""

_SECONDS: Final[dict[Window, int]] = {"minute": 60, "hour": 3600, "day": 86400}

MAX_LEASES: Final = 256
"""Leases kept apart in one account; of more, the oldest is counted as used, all of it."""
SHARE: Final = 8
"""A slice is at most the need, or one part in so many of what is left: near exhaustion slices get small."""


def bounds(window: Window, now: float) -> tuple[int, int]:
    """The first second of the window that ``now`` is in, and the first second after it. Unix seconds; windows are of UTC."""
    if window != "month":
        start = int(now // _SECONDS[window]) * _SECONDS[window]
        return start, start + _SECONDS[window]
    first = datetime.fromtimestamp(now, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    after = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
    return int(first.timestamp()), int(after.timestamp())


class Cap(msgspec.Struct, frozen=True):
    """The most that may be used in one window; None: this unit is not capped."""

    usd_micros: int | None = None
    tokens: int | None = None
    calls: int | None = None

    def counted(self, amount: Budget) -> Budget:
        """``amount`` in the units that are capped, zero in the others."""
        return Budget(*(0 if getattr(self, unit) is None else getattr(amount, unit) for unit in UNITS))

    def needed(self, amount: Budget) -> Budget:
        """What a call of ``amount`` needs here: at least one of every capped unit, so that a used-up cap refuses every call.

        Otherwise work that holds nothing and reports its cost afterwards would never meet the cap.
        """
        return self.counted(amount.join(Budget(1, 1, 1)))

    @property
    def budget(self) -> Budget:
        """The cap with zero for what is not capped."""
        return Budget(*(getattr(self, unit) or 0 for unit in UNITS))

    def exceeds(self, other: Cap) -> str | None:
        """The first unit in which this could never bind, because ``other`` allows less."""
        for unit in UNITS:
            mine, theirs = getattr(self, unit), getattr(other, unit)
            if mine is not None and theirs is not None and mine > theirs:
                return unit
        return None

    def shown(self, amount: Budget) -> str:
        """``amount`` in the units that are capped, for people."""
        texts = {
            "usd_micros": f"${amount.usd_micros / 1_000_000:.6f}".rstrip("0").rstrip("."),
            "tokens": f"{amount.tokens} tokens",
            "calls": f"{amount.calls} calls",
        }
        return ", ".join(text for unit, text in texts.items() if getattr(self, unit) is not None)


class Key(NamedTuple):
    """Which account. ``name`` of a tool is a resource or the pattern that all resources it matches share."""

    tenant: str
    kind: Kind
    name: str
    window: Window


class Lease(msgspec.Struct, frozen=True):
    """What one replica took out of an account, and what it said it had spent and held of it, by which cap, when it last wrote."""

    granted: Budget
    spent: Budget = ZERO
    held: Budget = ZERO
    cap: Cap | None = None


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """The shared entry. ``window`` is the first second of the window it counts for; ``leases`` are by replica."""

    window: int
    used: Budget = ZERO
    leases: dict[str, Lease] = {}

    @property
    def taken(self) -> Budget:
        """Used or granted: what nobody else may have in this window."""
        total = self.used
        for lease in self.leases.values():
            total += lease.granted
        return total

    def left(self, cap: Cap) -> Budget:
        """What may still be leased, zero in units that are not capped."""
        return cap.budget.minus(self.taken)


def turned(account: Account | None, window: int) -> Account:
    """The account in the window that begins at ``window``: empty where that is a new one.

    An account that is in a later window stays there: a replica whose clock is behind does not turn it back.
    """
    return account if account is not None and account.window >= window else Account(window=window)


class Slice:
    """One replica's lease of one account in one window, served without asking. Not frozen: it is the replica's own count.

    ``free`` is what reservations can still be made of. A reported overrun makes ``spent`` larger than was granted; then
    nothing is free, and the next write to the account says so to everybody.
    """

    __slots__ = ("asked", "cap", "granted", "held", "last", "spent", "window")

    def __init__(self, cap: Cap, window: int) -> None:
        self.cap, self.window = cap, window
        self.granted = self.held = self.spent = self.last = ZERO
        self.asked = 0.0

    @property
    def busy(self) -> Budget:
        """Spent or held."""
        return self.spent + self.held

    @property
    def free(self) -> Budget:
        """What can be reserved now."""
        return self.granted.minus(self.busy)

    def fits(self, need: Budget) -> bool:
        """Whether ``need`` (counted units only) can be reserved now.

        INVARIANT: nothing is reserved that was not leased before (test_no_interleaving_spends_more_than_the_cap).
        """
        # Never by adding to what is busy: sums end at 2^53-1, and a cost of that size would make room for everything
        # (test_the_largest_cost_there_is_blocks_what_follows).
        return need.within(self.free)

    def hold(self, need: Budget) -> None:
        """Reserve ``need``, which fits."""
        self.held += need

    def settle(self, reserved: Budget, spent: Budget) -> None:
        """End a reservation at what it cost, which may be more."""
        self.held = self.held.minus(reserved)
        self.spent += spent


def _write(account: Account, who: str, lease: Lease) -> Account:
    # The one that writes goes last: what has not written for longest is the likeliest to be dead.
    leases = {**{name: other for name, other in account.leases.items() if name != who}, who: lease}
    used = account.used
    while len(leases) > MAX_LEASES:
        oldest = next(iter(leases))
        used += leases.pop(oldest).granted
    return replace(account, used=used, leases=leases)


def grant(account: Account, who: str, part: Slice, need: Budget) -> Account | None:
    """The account after ``who`` was leased enough for ``need`` beside what is busy in ``part``; None: there is not enough.

    INVARIANT: used and granted together never exceed the cap, except by what was reported beyond a hold
    (test_no_interleaving_spends_more_than_the_cap).
    """
    granted = _known(account, who).join(part.busy)
    left = part.cap.budget.minus(account.taken + granted.minus(_known(account, who)))
    missing = need.minus(granted.minus(part.busy))
    if not missing.within(left):
        return None
    more = granted + _size(missing, part.last, left)
    return _write(account, who, Lease(more, part.spent, part.held, part.cap))


def _size(missing: Budget, last: Budget, left: Budget) -> Budget:
    """How much to lease: twice as much as the last time, within a share of what is left, and at least what is missing."""
    share = Budget(*(getattr(left, unit) // SHARE for unit in UNITS))
    return missing.join((last + last).meet(share)).meet(left)


def report(account: Account, who: str, part: Slice) -> Account:
    """The account after ``who`` said what it has spent and holds; what it spent beyond its lease is taken from what is left."""
    return _write(account, who, Lease(_known(account, who).join(part.busy), part.spent, part.held, part.cap))


def give_back(account: Account, who: str, part: Slice) -> Account:
    """The account after ``who`` kept no more than what is busy in ``part``; a lease of which nothing is held ends."""
    if part.held != ZERO:
        return _write(account, who, Lease(part.busy, part.spent, part.held, part.cap))
    leases = {name: lease for name, lease in account.leases.items() if name != who}
    return replace(account, used=account.used + part.spent, leases=leases)


def disagreement(account: Account, who: str, cap: Cap) -> str | None:
    """Which other replica goes by another cap for this account, or None."""
    for name, lease in account.leases.items():
        if name != who and lease.cap is not None and lease.cap != cap:
            return f"replica {name} goes by {lease.cap.shown(lease.cap.budget)}, this one by {cap.shown(cap.budget)}"
    return None


def _known(account: Account, who: str) -> Budget:
    lease = account.leases.get(who)
    return ZERO if lease is None else lease.granted


class Hold(NamedTuple):
    """A part of one slice that a call has reserved."""

    key: Key
    part: Slice
    need: Budget


class Reservation(NamedTuple):
    """What one call has reserved, in every account that it counts in."""

    holds: tuple[Hold, ...] = ()
