"""GCRA: so many at once, so many a second, each caller for itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit_broker.adapters.limits import Gcra


class Clock:
    """A clock that a test moves, by seconds."""

    def __init__(self) -> None:
        self.at = 1000.0

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at


def admitted(limit: Gcra, times: int, caller: str = "planner") -> int:
    """How many of ``times`` calls at this moment go on."""
    return sum(limit.admit(caller) == 0 for _ in range(times))


def test_a_burst_goes_on_at_once_and_not_one_more() -> None:
    assert admitted(Gcra(Clock(), per_second=10, burst=5), 100) == 5


def test_after_a_burst_it_goes_on_at_the_rate() -> None:
    clock = Clock()
    limit = Gcra(clock, per_second=10, burst=5)
    admitted(limit, 5)
    for _ in range(20):
        clock.at += 0.1001
        assert admitted(limit, 3) == 1


def test_the_wait_it_names_is_the_wait_it_takes() -> None:
    clock = Clock()
    limit = Gcra(clock, per_second=4, burst=2)
    admitted(limit, 2)
    wait = limit.admit("planner")
    assert wait == pytest.approx(0.25)
    clock.at += wait / 2
    assert limit.admit("planner") > 0
    clock.at += wait / 2 + 1e-9
    assert limit.admit("planner") == 0


def test_a_refused_call_does_not_push_the_next_one_back() -> None:
    clock = Clock()
    limit = Gcra(clock, per_second=4, burst=1)
    limit.admit("planner")
    first = limit.admit("planner")
    for _ in range(100):
        limit.admit("planner")
    assert limit.admit("planner") == pytest.approx(first)


def test_a_rest_gives_back_one_burst_and_no_more() -> None:
    clock = Clock()
    limit = Gcra(clock, per_second=10, burst=5)
    admitted(limit, 5)
    clock.at += 3600
    assert admitted(limit, 100) == 5


def test_callers_do_not_use_up_each_others_share() -> None:
    limit = Gcra(Clock(), per_second=10, burst=5)
    assert admitted(limit, 10, "planner") == 5
    assert admitted(limit, 10, "researcher") == 5


def test_who_called_longest_ago_is_forgotten_first() -> None:
    clock = Clock()
    limit = Gcra(clock, per_second=0.01, burst=1, remember=2)
    for caller in ("a", "b", "c"):
        limit.admit(caller)
        clock.at += 1
    assert limit.admit("c") > 0
    assert limit.admit("b") > 0
    assert limit.admit("a") == 0


@given(st.floats(0.5, 500), st.integers(1, 50), st.lists(st.floats(0, 2), min_size=1, max_size=200))
def test_never_more_than_burst_and_rate_allow(rate: float, burst: int, gaps: list[float]) -> None:
    clock = Clock()
    start = clock.at
    limit = Gcra(clock, rate, burst)
    count = 0
    for gap in gaps:
        clock.at += gap
        count += limit.admit("planner") == 0
        assert count <= burst + (clock.at - start) * rate + 1e-3


def test_what_is_charged_afterwards_is_waited_for() -> None:
    clock = Clock()
    limit = Gcra(clock, per_second=10, burst=5)
    assert limit.admit("planner") == 0
    limit.charge("planner", 14)
    assert limit.admit("planner") == pytest.approx(1.1)
    assert limit.admit("worker") == 0
