"""Budgets: arithmetic that never goes below zero or above the cap, and the form of the command line."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit_schemas.budget import ONE_CALL, UNITS, ZERO, Budget, parse_budget
from remit_schemas.canonical import MAX_INTEGER
from remit_schemas.errors import Code, Refusal

AMOUNTS = st.integers(0, 100) | st.integers(0, MAX_INTEGER)
BUDGETS = st.builds(Budget, AMOUNTS, AMOUNTS, AMOUNTS)


@pytest.mark.parametrize("amount", [-1, MAX_INTEGER + 1])
@pytest.mark.parametrize("unit", UNITS)
def test_an_amount_out_of_range_is_an_error(unit: str, amount: int) -> None:
    with pytest.raises(ValueError, match=unit):
        Budget(**{**dict.fromkeys(UNITS, 0), unit: amount})


@pytest.mark.parametrize(
    "data",
    [b"{}", b'{"usd_micros":1,"tokens":1}', b'{"usd_micros":1,"tokens":1,"calls":null}',
     b'{"usd_micros":1.5,"tokens":1,"calls":1}', b'{"usd_micros":true,"tokens":1,"calls":1}',
     b'{"usd_micros":"1","tokens":1,"calls":1}', b'{"usd_micros":-1,"tokens":1,"calls":1}',
     b'{"usd_micros":1,"tokens":1,"calls":1,"days":1}'],
)  # fmt: skip
def test_a_budget_has_all_three_integers_and_nothing_else(data: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(data, type=Budget)


def test_a_budget_is_immutable() -> None:
    with pytest.raises(AttributeError):
        ZERO.calls = 1  # type: ignore[misc]


@given(BUDGETS, BUDGETS)
def test_what_is_taken_and_what_is_left_make_the_whole(a: Budget, b: Budget) -> None:
    if b.within(a):
        assert a.minus(b) + b == a
    assert a.minus(b).within(a)
    assert a.minus(a) == ZERO


@given(BUDGETS, BUDGETS)
def test_a_sum_never_falls_below_a_part(a: Budget, b: Budget) -> None:
    assert a.within(a + b)
    assert a + b == b + a
    assert a + ZERO == a


@given(BUDGETS, BUDGETS, BUDGETS)
def test_meet_and_join_are_the_bounds_of_the_order(a: Budget, b: Budget, c: Budget) -> None:
    assert a.meet(b).within(a) and a.meet(b).within(b)
    assert a.within(a.join(b)) and b.within(a.join(b))
    assert c.within(a.meet(b)) == (c.within(a) and c.within(b))
    assert a.join(b).within(c) == (a.within(c) and b.within(c))
    assert a.within(b) == (a.meet(b) == a) == (a.join(b) == b)


def test_within_needs_every_unit() -> None:
    whole = Budget(5, 5, 5)
    assert whole.within(whole)
    for larger in (Budget(6, 0, 0), Budget(0, 6, 0), Budget(0, 0, 6)):
        assert not larger.within(whole)


@given(BUDGETS)
def test_half_is_within_the_whole_and_keeps_a_call(budget: Budget) -> None:
    assert budget.half().within(budget)
    assert (budget.half().calls > 0) == (budget.calls > 0)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("usd=0.5,calls=20", Budget(500_000, 0, 20)),
        ("0.50usd 40calls", Budget(500_000, 0, 40)),
        ("usd_micros=7", Budget(7, 0, 1)),
        ("tokens=1000", Budget(0, 1000, 1)),
        ("calls=0", ZERO),
        ("1calls", ONE_CALL),
        ("usd=0.000001", Budget(1, 0, 1)),
        (" usd=1 , tokens=2 ", Budget(1_000_000, 2, 1)),
    ],
)
def test_a_budget_is_read_from_the_command_line(text: str, budget: Budget) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize(
    "text",
    ["", " ", "usd", "usd=", "usd=.", "usd=1.2.3", "usd=-1", "calls=1.5", "calls=1e3", "eur=1", "usd=1,usd=2",
     "usd=1,usd_micros=2", "usd=0.0000001", "calls=9007199254740992", "usd=" + "9" * 5000, "usd=inf", "usd=NaN", "5"],
)  # fmt: skip
def test_what_is_no_budget_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(Refusal) as caught:
        parse_budget(text)
    assert caught.value.body.code is Code.MALFORMED
    assert "usd=0.5" in caught.value.body.ask
