"""What clients leave behind of calls that go on after they were answered is bounded, and is told as the two generations have it."""

from __future__ import annotations

import pytest

from remit_broker.edges.mcp.background import BYTES, KEPT, WORKING, Backgrounds, Outcome, Owner
from remit_broker.edges.mcp.jsonrpc import Fault
from remit_schemas.errors import Code, Refusal

pytestmark = pytest.mark.asyncio
ANN, BOB = Owner(("user", "t", "", "ann"), None, "s"), Owner(("user", "t", "", "bob"), None, "s")


def nothing() -> None:
    """Nobody hears of it."""


async def test_the_tasks_of_a_client_are_bounded() -> None:
    all_ = Backgrounds(lambda: 1.0)
    mine = [all_.begin(ANN, 60, nothing) for _ in range(WORKING)]
    with pytest.raises(Refusal) as no:
        all_.begin(ANN, 60, nothing)
    assert no.value.body.code is Code.RATE_LIMITED
    all_.begin(BOB, 60, nothing)  # another's are their own
    for task in mine:
        task.end(Outcome({}), "completed")
    for _ in range(KEPT):
        all_.begin(ANN, 60, nothing).end(Outcome({}), "completed")
    assert len(all_.of(ANN)) == KEPT
    with pytest.raises(Fault):
        all_.find(mine[0].id, ANN)


async def test_what_is_held_for_a_client_is_bounded_in_bytes() -> None:
    all_ = Backgrounds(lambda: 1.0)
    # In whatever session.
    first, second = all_.begin(ANN._replace(session="other"), 60, nothing), all_.begin(ANN, 60, nothing)
    for task in (first, second):
        task.end(Outcome({"content": "x" * (BYTES // 2)}), "completed")
    all_.make_room(ANN)
    assert all_.of(ANN) == [second] and all_.of(ANN._replace(session="other")) == []


async def test_what_was_cancelled_stays_so_whatever_its_hop_ends_in() -> None:
    task = Backgrounds(lambda: 1.0).begin(ANN, 60, nothing)
    task.cancel()
    task.end(Outcome({"content": "late"}), "completed")
    assert task.status == "cancelled" and "late" not in str(task.outcome)


async def test_a_failed_task_says_why_only_where_its_call_failed_as_one_of_the_protocol() -> None:
    all_ = Backgrounds(lambda: 1.0)
    failed, done = all_.begin(ANN, 60, nothing), all_.begin(ANN, 60, nothing)
    failed.end(Outcome({}, Fault(-32602, "no such tool")), "failed")
    done.end(Outcome({"isError": True}), "completed")
    assert failed.detailed()["error"] == {"code": -32602, "message": "no such tool"}
    assert done.detailed()["result"] == {"isError": True} and "error" not in done.detailed()
