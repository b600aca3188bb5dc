"""Calls, budgets, retries and effects, without a bus."""

from __future__ import annotations

import asyncio
import gc
import math
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit import Budget, Hop, InputNeeded, Refused, Run, ToolFailed, refused
from remit.plain import budget_of, micros, plain, seconds
from remit.schema import skill_of
from remit.serve import Trust, Worker, _body
from remit_schemas.envelope import Error, Event, InputRequired, Progress, Result, Resumed, encode
from remit_schemas.errors import Code, Effect
from remit_schemas.keys import KeySet
from tests.support.sdk_broker import ISSUER, KEYS, FakeLink, accepted, dispatch, grant, no, verified

LIMIT = Budget(1_000_000, 1000, 9)


def hop(*answers: list[Any], seconds: float = 30) -> tuple[Hop, FakeLink]:
    link = FakeLink("researcher", *answers)
    d = dispatch("agent/researcher/brief", {}, seconds=seconds)
    return Hop(link, verified(d), d, f"res.researcher.r1.{d.txn}.{d.hop}"), link


def ok(value: Any = 1, cost: Budget | None = None) -> list[Any]:
    return [accepted(), Result(value=value, cost=cost)]


async def test_what_is_wished_for_a_child_travels() -> None:
    me, link = hop(ok())
    await me.call(
        "agent/critic/review", args={"key": "an argument"}, text="t", budget="0.05usd 3calls", scopes=["mcp/web/*"],
        ttl="20s", max_depth=2, key="k", approval="a",
    )  # fmt: skip
    subject, request = link.asked[0]
    assert subject == f"req.researcher.{me.txn}.agent.critic.review"
    assert request.args == {"key": "an argument", "text": "t"} and (request.key, request.approval) == ("k", "a")
    assert request.want.budget == Budget(50_000, 0, 3) and request.want.ttl_ms == 20_000 and request.want.max_depth == 2
    assert request.want.scopes is not None and request.want.scopes[0].resource == "mcp/web/*"
    assert request.deadline is not None and 19 < request.deadline / 1000 - time.time() <= 20


async def test_a_call_never_outlives_its_hop() -> None:
    me, link = hop(ok(), ok(), seconds=5)
    await me.call("mcp/web/fetch")
    await me.call("mcp/web/fetch", ttl="1h")
    assert all(request.deadline is not None and request.deadline <= me.deadline * 1000 for _, request in link.asked)


async def test_after_its_deadline_nothing_is_called() -> None:
    me, link = hop(seconds=-1)
    with pytest.raises(Refused) as late:
        await me.call("mcp/web/fetch")
    assert late.value.code is Code.DEADLINE_EXCEEDED and late.value.effect == "none" and link.asked == []


async def test_what_is_left_follows_the_costs() -> None:
    me, _ = hop(
        ok(cost=Budget(100, 10, 2)), [no(Code.POLICY_DENIED)], [accepted(), no(Code.INTERNAL, effect="unknown")]
    )
    assert me.left == LIMIT.minus(Budget(0, 0, 1))
    await me.call("mcp/web/fetch")
    assert me.left == Budget(999_900, 990, 6)
    with pytest.raises(Refused):
        await me.call("mcp/web/fetch", budget="0.5usd")
    assert me.left == Budget(999_900, 990, 6)
    with pytest.raises(Refused):
        await me.call("mcp/web/fetch", budget="0.5usd 2calls")
    assert me.left == Budget(499_900, 990, 4)
    me.cost(usd="0.1", tokens=90)
    me.cost(usd=0.0000001)
    assert me.left == Budget(399_899, 900, 4) and me.reported == Budget(100_001, 90, 0)


async def test_while_a_call_runs_its_budget_is_held() -> None:
    me, _ = hop([accepted()])
    run = await me.start("mcp/web/fetch", budget="0.5usd 4calls")
    assert me.left == Budget(500_000, 1000, 4)
    run.abandon()
    assert me.left == Budget(500_000, 1000, 4)


async def test_gather_shares_and_keeps_the_order() -> None:
    me, link = hop(*[ok(n) for n in range(4)])
    got = await me.gather(
        *[me.call("mcp/web/fetch", n=n) for n in range(3)], me.call("mcp/web/fetch", n=3, budget="1calls"), each="1/4"
    )
    assert len(got) == 4
    budgets = [request.want.budget for _, request in link.asked]
    assert budgets == [Budget(250_000, 250, 2)] * 3 + [Budget(0, 0, 1)]
    assert [request.args["n"] for _, request in link.asked] == [0, 1, 2, 3]


async def test_a_failure_in_gather_cancels_the_others_and_is_raised_itself() -> None:
    me, link = hop([accepted()], [accepted(), no(Code.CONTENT_DENIED)])
    with pytest.raises(Refused) as denied:
        await asyncio.wait_for(me.gather(me.call("mcp/web/fetch"), me.call("mcp/web/fetch")), 5)
    assert denied.value.code is Code.CONTENT_DENIED
    assert [data for subject, data in link.told if subject.startswith("ctl.researcher.r1.")] == [b'{"cancel":true}']


async def test_a_call_that_may_succeed_later_is_repeated() -> None:
    busy = no(Code.RATE_LIMITED, retry_after=0.001)
    me, link = hop([busy], [busy], ok("at last"))
    assert await me.call("mcp/web/fetch", retry=2) == "at last"
    assert len(link.asked) == 3


@pytest.mark.parametrize(
    "failure",
    [
        no(Code.TARGET_UNAVAILABLE, effect="unknown"),
        no(Code.POLICY_DENIED),
        no(Code.TARGET_UNAVAILABLE, effect="happened"),
    ],
)
async def test_a_call_with_an_unknown_effect_is_not_repeated(failure: Error) -> None:
    me, link = hop([accepted(), failure], ok())
    with pytest.raises(Refused):
        await me.call("mcp/web/fetch", retry=5)
    assert len(link.asked) == 1


async def test_a_wrong_claim_of_retryable_does_not_repeat_what_may_have_happened() -> None:
    import msgspec

    body = msgspec.structs.replace(no(Code.RATE_LIMITED, retry_after=0.0).error, retryable=True, effect="unknown")
    me, link = hop([Error(error=body)], ok())
    with pytest.raises(Refused):
        await me.call("mcp/web/fetch", retry=5)
    assert len(link.asked) == 1


async def test_no_retry_that_would_come_after_the_deadline() -> None:
    me, link = hop([no(Code.RATE_LIMITED, retry_after=100.0)], ok())
    with pytest.raises(Refused) as busy:
        await asyncio.wait_for(me.call("mcp/web/fetch", retry=3), 5)
    assert busy.value.retry_after == 100.0 and len(link.asked) == 1


async def test_a_repeat_that_is_a_duplicate_tells_the_first_answer() -> None:
    me, _ = hop([no(Code.TARGET_UNAVAILABLE, retry_after=0.001)], [no(Code.DUPLICATE, effect="unknown")])
    with pytest.raises(Refused) as first:
        await me.call("mcp/web/fetch", key="k", retry=3)
    assert first.value.code is Code.TARGET_UNAVAILABLE


async def test_a_run_gives_events_then_the_result() -> None:
    me, _ = hop([accepted(), Progress(message="a"), Event(data=1), Result(value=2)])
    run: Run = await me.start("agent/critic/review")
    assert [event async for event in run] == [Progress(message="a"), Event(data=1)]
    assert await run.result() == 2 and await run.result() == 2 and run.done
    assert [event async for event in run] == []


async def test_a_refusal_before_a_hop_is_raised_by_start() -> None:
    me, _ = hop([no(Code.OUT_OF_SCOPE)])
    with pytest.raises(Refused):
        await me.start("mcp/web/fetch")


async def test_a_tool_that_failed_and_one_that_asks_are_told_apart() -> None:
    me, _ = hop(
        [accepted(), Result(value={"content": [{"type": "text", "text": "404"}]}, failed=True)],
        [accepted("a" * 16), InputRequired(request={"which": 1}, cost=Budget(5, 0, 1))],
    )
    with pytest.raises(ToolFailed, match="404"):
        await me.call("mcp/web/fetch")
    with pytest.raises(InputNeeded, match="asks for an input") as asks:
        await me.call("mcp/web/fetch")
    assert (asks.value.request, asks.value.id, asks.value.resource) == ({"which": 1}, "a" * 16, "mcp/web/fetch")


@pytest.mark.parametrize(
    "resource", ["", "web/fetch", "mcp/web", "tool/web/fetch", "mcp/*/fetch", "mcp/web/*", "mcp/We b/x"]
)
async def test_what_is_no_resource_is_refused_here(resource: str) -> None:
    me, link = hop()
    with pytest.raises(Refused, match="MALFORMED"):
        await me.call(resource)
    assert link.asked == []


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, 2**53, -(2**60), 10**30, "\ud800", object(), {"x": [math.nan]}, {"\udfff": 1}]
)
async def test_arguments_that_would_not_arrive_as_they_are_are_refused(value: Any) -> None:
    me, link = hop()
    with pytest.raises(Refused) as wrong:
        await me.call("mcp/web/fetch", x=value)
    assert wrong.value.code is Code.ARGUMENTS_INVALID and link.asked == []


def test_a_deep_value_is_refused_without_a_traceback() -> None:
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(Refused):
        plain(deep, "it", Code.MALFORMED)


async def test_a_call_that_is_never_awaited_is_warned_about() -> None:
    me, _ = hop()
    with pytest.warns(RuntimeWarning, match="never awaited"):
        me.call("mcp/web/fetch")
        gc.collect()


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 10**9), st.integers(0, 10**6), st.integers(0, 100))
def test_shares_add_up_to_no_more_than_the_whole(parts: int, of: int, usd: int, tokens: int, calls: int) -> None:
    left = Budget(usd, tokens, calls)
    if parts > of:
        with pytest.raises(Refused):
            budget_of(f"{parts}/{of}", left)
        return
    share = budget_of(f"{parts}/{of}", left)
    assert share.usd_micros * of <= usd * parts and share.tokens * of <= tokens * parts
    assert share.calls == 1 or share.calls * of <= calls * parts


@pytest.mark.parametrize("wish", ["0/4", "-1/4", "1/0", "a/b", "5/4", "", "5 dollars"])
def test_what_is_no_budget_is_refused(wish: str) -> None:
    with pytest.raises(Refused, match="MALFORMED"):
        budget_of(wish, LIMIT)


def test_times_and_costs_are_read_strictly() -> None:
    assert [seconds(t) for t in ("500ms", "30s", "1.5m", "4h", 2)] == [0.5, 30, 90, 14400, 2]
    assert micros("0.0000001") == 1 and micros(0.1) == 100_000 and micros("1e-6") == 1
    for wrong in ("", "5", "-1s", "1d", 0, -1, math.nan, math.inf):
        with pytest.raises(Refused):
            seconds(wrong)
    for cost in (-1, "nan", math.inf, "x", 10**12):
        with pytest.raises(Refused):
            micros(cost)


# What a failing skill may say


async def explain(error: BaseException, before: Effect = "none", own: Effect = "unknown") -> Any:
    async def f(hop: Hop) -> None: ...

    me, _ = hop()
    me.effect = before
    return _body(error, skill_of(f, effect=own), me)


async def test_a_refusal_is_as_harmless_as_what_was_done_before_it() -> None:
    inner = refused(Code.RATE_LIMITED, "slow", rule="r")
    assert (await explain(inner)).retryable and (await explain(inner)).effect == "none"
    after = await explain(inner, before="happened")
    assert not after.retryable and after.effect == "happened"
    assert (await explain(ValueError("secret"))).effect == "unknown"
    assert (await explain(ValueError("secret"), own="none")).effect == "none"
    assert (await explain(ValueError("secret"), before="happened", own="none")).effect == "happened"
    assert "secret" not in str(await explain(ValueError("secret")))


# The callee without a bus


def worker(function: Any, link: FakeLink, concurrency: int = 64) -> Worker:
    return Worker(
        link, Trust("researcher", ISSUER, KEYS, lambda: KEYS), {"brief": skill_of(function, name="brief")}, concurrency
    )


def send(me: Worker, subject: str = "svc.agent.researcher.brief", **args: Any) -> Any:
    d = dispatch("agent/researcher/brief", args)
    me.take(subject, encode(d))
    return d


async def test_more_than_it_can_do_is_turned_away() -> None:
    go, link = asyncio.Event(), FakeLink()

    async def brief(hop: Hop) -> None:
        await go.wait()

    me = worker(brief, link, concurrency=2)
    for _ in range(3):
        send(me)
    final = await link.until_final()
    assert isinstance(final, Error) and final.error.code is Code.TARGET_UNAVAILABLE and final.error.retryable
    assert len(me) == 2
    go.set()
    await me.finish(5)
    assert len([frame for frame in link.frames() if isinstance(frame, Result)]) == 2


async def test_a_subject_that_is_not_the_resource_runs_nothing() -> None:
    link, ran = FakeLink(), []

    async def brief(hop: Hop) -> None:
        ran.append(1)

    me = worker(brief, link)
    send(me, subject="svc.agent.researcher.other")
    final = await link.until_final()
    assert isinstance(final, Error) and final.error.rule == "dispatch.subject" and ran == []


async def test_an_unknown_skill_is_named_and_refused() -> None:
    link = FakeLink()

    async def brief(hop: Hop) -> None: ...

    me = worker(brief, link)
    d = dispatch("agent/researcher/other", {})
    me.take("svc.agent.researcher.other", encode(d))
    final = await link.until_final()
    assert isinstance(final, Error) and final.error.code is Code.UNKNOWN_TARGET and "brief" in final.error.ask


async def test_a_hop_that_is_cancelled_before_it_began_ends_with_exactly_one_final_frame() -> None:
    link, ran = FakeLink(), []

    async def brief(hop: Hop) -> None:
        ran.append(1)

    me = worker(brief, link)
    d = send(me)
    me.control(f"_INBOX_researcher.c.ctl.{d.txn}.{d.hop}", b'{"cancel":true}')
    final = await link.until_final()
    assert (
        isinstance(final, Error) and final.error.code is Code.CANCELLED and final.error.effect == "none" and ran == []
    )
    await me.finish(1)
    assert len(link.frames()) == 1


async def test_nothing_follows_the_final_frame() -> None:
    link = FakeLink()
    kept: list[Hop] = []

    async def brief(hop: Hop) -> str:
        kept.append(hop)
        return "done"

    me = worker(brief, link)
    send(me)
    await link.until_final()
    await me.finish(1)
    for late in (kept[0].progress("late"), kept[0].event(1), kept[0].note("late"), kept[0].call("mcp/web/fetch")):
        with pytest.raises(Refused) as closed:
            await late
        assert closed.value.code is Code.GRANT_CLOSED
    assert isinstance(link.frames()[-1], Result) and link.asked == []


@pytest.mark.parametrize(
    "error", [SystemExit(3), ValueError("x"), TimeoutError("mine"), ExceptionGroup("g", [ValueError()])]
)
async def test_whatever_a_skill_raises_ends_in_one_error_frame(error: BaseException) -> None:
    link = FakeLink()

    async def brief(hop: Hop) -> None:
        raise error

    me = worker(brief, link)
    send(me)
    final = await link.until_final()
    assert isinstance(final, Error) and final.error.code is Code.INTERNAL
    assert final.error.message == f"the skill failed: {type(error).__name__}"


@pytest.mark.parametrize("value", [math.nan, 2**60, object(), {"a": "\ud800"}])
async def test_a_result_that_is_no_json_is_refused(value: Any) -> None:
    link = FakeLink()

    async def brief(hop: Hop) -> Any:
        return value

    me = worker(brief, link)
    send(me)
    final = await link.until_final()
    assert isinstance(final, Error) and final.error.code is Code.RESULT_INVALID and final.error.effect == "happened"


async def test_the_reported_cost_is_in_the_final_frame_of_a_failure_too() -> None:
    link = FakeLink()

    async def brief(hop: Hop) -> None:
        hop.cost(usd="0.25", tokens=7)
        raise RuntimeError

    me = worker(brief, link)
    send(me)
    final = await link.until_final()
    assert isinstance(final, Error) and final.cost == Budget(250_000, 7, 0)


async def test_an_unknown_key_makes_it_read_the_keys_again_but_not_for_every_message() -> None:
    link, read = FakeLink(), []

    def reload() -> KeySet:
        read.append(1)
        return KeySet()

    async def brief(hop: Hop) -> None: ...

    me = Worker(link, Trust("researcher", ISSUER, KeySet(), reload), {"brief": skill_of(brief)}, 64)
    for _ in range(20):
        send(me)
    final = await link.until_final()
    assert isinstance(final, Error) and final.error.rule == "grant.kid" and len(read) == 1


async def test_a_request_that_was_answered_is_not_said_again() -> None:
    """The bus is slow to say whether the request was heard, and the answer is there first."""
    call = dispatch("agent/researcher/brief", {})

    class Slow(FakeLink):
        async def tell(self, subject: str, data: bytes, seconds: float = 0) -> bool:
            await super().tell(subject, data, seconds)
            await asyncio.Event().wait()
            return True

    link = Slow()
    hop = Hop(link, verified(call), call, "res.x")
    asking = asyncio.ensure_future(hop.ask("well?"))
    await link.grew.wait()
    assert hop.parked and not asking.done()
    later = msgspec.structs.replace(
        call,
        grant=grant(call.txn, call.hop, "researcher", jti=f"{call.txn}.{call.hop}.2"),
        resumed=Resumed(n=2, input=7),
    )
    hop._go_on(verified(later), later, "res.y")
    assert await asyncio.wait_for(asking, 5) == 7
    assert len(link.told) == 1 and not hop.parked and hop.grant.jti.n == 2
