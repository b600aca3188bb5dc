"""Accounts for every interleaving: replicas that lease, spend, return, die and see the window turn never exceed the cap."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from remit_broker.core.accounts import (
    MAX_LEASES,
    SHARE,
    WINDOWS,
    Account,
    Cap,
    Lease,
    Slice,
    Window,
    bounds,
    give_back,
    grant,
    report,
    turned,
)
from remit_schemas.budget import ZERO, Budget
from remit_schemas.canonical import MAX_INTEGER

DAY = 86400
CAP = Cap(usd_micros=1000, calls=50)
REPLICAS = st.sampled_from(["a", "b", "c"])
AMOUNTS = st.builds(Budget, st.integers(0, 300), st.integers(0, 5), st.integers(0, 12))


class Accounts(RuleBasedStateMachine):
    """The shared entry, the slices of replicas, and what each window has really seen spent and held."""

    def __init__(self) -> None:
        super().__init__()
        self.day = 100 * DAY
        self.stored: Account | None = None
        self.names = {name: name for name in "abc"}
        self.parts: dict[str, Slice] = {}
        self.open: list[tuple[Slice, Budget, int]] = []
        self.seen = ZERO

    def part(self, who: str) -> Slice:
        part = self.parts.get(who)
        if part is None or part.window < self.day:
            part = self.parts[who] = Slice(CAP, self.day)
        return part

    def write(self, who: str, account: Account) -> None:
        self.stored = account
        lease = account.leases.get(self.names[who])
        self.part(who).granted = ZERO if lease is None else lease.granted

    @rule(who=REPLICAS, amount=AMOUNTS)
    def reserve(self, who: str, amount: Budget) -> None:
        part, need = self.part(who), CAP.needed(amount)
        if not part.fits(need):
            account = turned(self.stored, self.day)
            after = grant(account, self.names[who], part, need)
            if after is None:
                assert not need.within(account.left(CAP) + part.free), "refused though there is enough"
                return
            before = part.granted
            self.write(who, after)
            part.last = part.granted.minus(before)
        part.hold(need)
        self.open.append((part, need, self.day))
        self.seen += need

    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        if not self.open:
            return
        part, need, day = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        spent = CAP.counted(data.draw(AMOUNTS)).meet(need)
        part.settle(need, spent)
        if day == self.day:
            self.seen = self.seen.minus(need.minus(spent))

    @rule(who=REPLICAS)
    def give_back(self, who: str) -> None:
        part = self.part(who)
        part.granted = part.busy
        spent = part.spent
        ended = part.held == ZERO
        self.write(who, give_back(turned(self.stored, self.day), self.names[who], part))
        if ended:
            part.spent = part.spent.minus(spent)

    @rule(who=REPLICAS)
    def tell(self, who: str) -> None:
        self.write(who, report(turned(self.stored, self.day), self.names[who], self.part(who)))

    @rule(who=REPLICAS)
    def die(self, who: str) -> None:
        """What it held goes on at its callees and is never settled; it comes back under another name."""
        self.parts.pop(who, None)
        self.names[who] += "'"

    @rule()
    def turn(self) -> None:
        self.day += DAY
        self.seen = ZERO

    @invariant()
    def no_more_than_the_cap(self) -> None:
        account = turned(self.stored, self.day)
        assert account.taken.within(CAP.budget)
        assert self.seen.within(CAP.budget), "more was reserved and spent in one window than its cap"
        assert self.seen.within(account.taken), "something was spent that was never leased"


def test_no_interleaving_spends_more_than_the_cap() -> None:
    run_state_machine_as_test(Accounts, settings=settings(max_examples=200, stateful_step_count=40, deadline=None))


@given(st.integers(0, 4_000_000_000), st.sampled_from(WINDOWS))
def test_a_window_holds_its_moment_and_the_next_begins_where_it_ends(now: int, window: Window) -> None:
    start, end = bounds(window, now)
    assert start <= now < end
    assert bounds(window, start) == bounds(window, end - 1) == (start, end)
    assert bounds(window, end)[0] == end


@given(st.integers(0, 4_000_000_000))
def test_windows_are_nested_and_of_utc(now: int) -> None:
    spans = [bounds(window, now) for window in WINDOWS]
    assert all(outer[0] <= inner[0] and inner[1] <= outer[1] for inner, outer in pairwise(spans))
    moment = datetime.fromtimestamp(now, UTC)
    assert datetime.fromtimestamp(spans[2][0], UTC) == moment.replace(hour=0, minute=0, second=0)
    first = datetime.fromtimestamp(spans[3][0], UTC)
    assert (first.year, first.month, first.day) == (moment.year, moment.month, 1)
    assert (first + timedelta(seconds=spans[3][1] - spans[3][0])).day == 1


@given(AMOUNTS, AMOUNTS, st.integers(1, 1000))
def test_a_slice_grows_with_demand_and_shrinks_near_exhaustion(need: Budget, last: Budget, cap: int) -> None:
    part = Slice(Cap(calls=cap), 0)
    part.last = last
    wanted = part.cap.needed(need)
    after = grant(Account(window=0), "a", part, wanted)
    if after is None:
        assert wanted.calls > cap
        return
    granted = after.leases["a"].granted.calls
    assert wanted.calls <= granted <= max(wanted.calls, cap // SHARE)
    assert granted >= min(2 * last.calls, cap // SHARE)


def test_a_used_up_cap_refuses_also_a_call_that_costs_nothing_of_it() -> None:
    cap = Cap(usd_micros=10)
    assert cap.needed(Budget(0, 0, 1)) == Budget(1, 0, 0)
    part = Slice(cap, 0)
    part.spent = Budget(15, 0, 0)
    account = report(Account(window=0), "a", part)
    assert account.left(cap) == ZERO
    assert grant(account, "a", part, cap.needed(Budget(0, 0, 1))) is None
    assert grant(account, "b", Slice(cap, 0), cap.needed(Budget(0, 0, 1))) is None


def test_the_largest_cost_there_is_blocks_what_follows() -> None:
    cap, most = Cap(calls=30), Budget(0, 0, MAX_INTEGER)
    need = cap.needed(Budget(0, 0, 1))
    account, part = Account(window=0), Slice(cap, 0)
    for _ in range(2):
        leased = grant(account, "a", part, need)
        assert leased is not None
        account, part.granted = leased, leased.leases["a"].granted
        part.hold(need)
    part.settle(need, most)
    account = report(account, "a", part)
    part.granted = account.leases["a"].granted
    assert part.granted == most and not part.fits(need)
    assert grant(account, "a", part, need) is None
    assert grant(account, "b", Slice(cap, 0), need) is None


def test_an_account_in_a_later_window_is_not_turned_back() -> None:
    later = Account(window=200, used=Budget(1, 0, 0))
    assert turned(later, 100) is later
    assert turned(later, 300) == Account(window=300)


def test_of_too_many_leases_the_one_unheard_of_for_longest_counts_as_used() -> None:
    leases = {f"r{number}": Lease(Budget(0, 0, 1)) for number in range(MAX_LEASES)}
    account = Account(window=0, leases=leases)
    cap = Cap(calls=10_000)
    part = Slice(cap, 0)
    after = report(account, "r0", part)
    assert len(after.leases) == MAX_LEASES
    more = grant(after, "new", part, Budget(0, 0, 5))
    assert more is not None
    assert len(more.leases) == MAX_LEASES and "r1" not in more.leases and "r0" in more.leases
    assert more.taken.calls == MAX_LEASES + 5


@pytest.mark.parametrize("window", WINDOWS)
def test_fractions_of_a_second_belong_to_the_window_they_are_in(window: Window) -> None:
    _, end = bounds(window, 1_800_000_000)
    assert bounds(window, end - 0.001)[1] == end
    assert bounds(window, end + 0.001)[0] == end
