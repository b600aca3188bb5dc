"""People decide while replicas race, die and come back and policies change: each approval opens one hop, with the bytes it was for."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any, NamedTuple

import msgspec
import pytest

from remit_broker.core import approvals, fold
from remit_broker.core.fold import fold_all
from remit_broker.core.obligations import Approval
from remit_broker.core.policy import PolicyRequest, Verdict
from remit_broker.hop import approve
from remit_broker.hop.decide import Approver, decide
from remit_broker.hop.scan import close_orphans
from remit_broker.hop.txn import Delegation, open_txn
from remit_broker.ports import Ports
from remit_schemas.budget import Budget
from remit_schemas.envelope import Dispatch, Error, Frame, Result
from remit_schemas.records import Decision
from remit_schemas.scope import Scope, parse_scope
from tests.simulation.loop import simulate
from tests.simulation.world import KeptHere, Life, Permissive, Replica, World
from tests.support.ledger_books import Books

SEEDS = 40
CALLERS = 6
INBOX = "_INBOX_desk.aaaaaaaaaaaaaaaaaaaaaaaa.r{}"
WANT = {"budget": {"usd_micros": 0, "tokens": 0, "calls": 1}}


class Demanding(Permissive):
    """Every call needs somebody's approval; the policies may be others from one moment to the next."""

    def __init__(self) -> None:
        self.revision = "a" * 64

    def decide(self, request: PolicyRequest) -> Verdict:
        decision = Decision("allow", ("people",), self.revision)
        if request.action == "delegate":
            asked = (Approval(policy="people", text="look"),)
            return Verdict(allowed=True, decision=decision, approve=("people",), approvals=asked)
        return Verdict(allowed=True, decision=decision)


class Asking(Replica):
    """A replica under those policies; what is asked about is kept where all of them see it."""

    def __init__(self, world: World, name: str, policy: Demanding, kept: KeptHere) -> None:
        self._policy, self._kept = policy, kept
        super().__init__(world, name)

    def _ports(self, life: Life) -> Ports:
        return msgspec.structs.replace(super()._ports(life), policy=self._policy, arguments=self._kept)


class Story(NamedTuple):
    records: list[dict[str, Any]]
    log: list[tuple[str, str]]
    answers: Counter[str]
    faults: list[str]
    lost_races: int
    crashes: int


async def _story(seed: int, crash_rate: float) -> Story:
    rng = random.Random(seed)
    world, policy, kept = World(rng, ("desk", "worker"), 0.0), Demanding(), KeptHere()
    replicas = [Asking(world, f"r{number}", policy, kept) for number in range(3)]
    wish = Delegation(
        tenant="default", user="ann", agent="desk", scope=Scope.of([parse_scope("agent/**")]), budget=Budget(0, 0, 60),
        ttl=600, auth="sim",
    )  # fmt: skip
    opened = await open_txn(wish, replicas[0].ports)
    world.crash_rate = crash_rate
    count, answers = iter(range(1_000_000)), Counter[str]()

    async def work(_: Dispatch) -> Frame:
        await world.pause()
        return Result(value={})

    world.work = work

    async def caller() -> None:
        """The identical call again and again, as a client that knows nothing of approvals."""
        args = {"n": rng.randrange(3)}
        for _ in range(12):
            reply = INBOX.format(next(count))
            body = {"grant": opened.grant, "args": args, "want": WANT}
            await rng.choice(replicas).ask("desk", opened.txn, "agent/worker/do", body, reply)
            end = world.answers.get(reply)
            answers[
                "result" if isinstance(end, Result) else str(end.error.code) if isinstance(end, Error) else "none"
            ] += 1
            await asyncio.sleep(rng.random() * 0.05)

    async def person(user: str) -> None:
        by = Approver(who=f"sim:{user}", user=user, tenant="default", auth="sim")
        for _ in range(14):
            await asyncio.sleep(rng.random() * 0.05)
            requests = [raw["id"] for raw in world.store[opened.txn] if raw["kind"] == "approval.requested"]
            if requests:
                replica, verdict = rng.choice(replicas), "approve" if rng.random() < 0.9 else "deny"
                said = decide(opened.txn, rng.choice(requests[-4:]), verdict, "", by, replica.ports)  # type: ignore[arg-type]
                await replica.survive(said)
            if rng.random() < 0.05:
                policy.revision = f"{rng.getrandbits(256):064x}"

    await asyncio.gather(*(caller() for _ in range(CALLERS)), person("eve"), person("kim"))
    world.crash_rate = 0.0
    await asyncio.sleep(90)  # past every deadline and the grace
    root = str(world.store[opened.txn][0]["hop"])
    late = [("default", opened.txn, hop) for hop in fold_all(world.store[opened.txn]).descendants_open(root)]
    await close_orphans(late, replicas[0].ports)
    await world.bury()
    return Story(world.store[opened.txn], world.log, answers, world.faults, world.lost_races, world.crashes)


def _violations(story: Story) -> list[str]:
    """The promises, by the independent books and the order of events alone."""
    found = [f"fault: {fault}" for fault in story.faults]
    books = Books((story.records[0]["tenant"], story.records[0]["txn"]))
    for record in msgspec.json.decode(msgspec.json.encode(story.records)):
        books.add(record)
        if record["kind"] == "hop.opened" and record["approval"] is None:
            found.append("opened without an approval")
    dispatched = Counter(hop for what, hop in story.log if what == "dispatched")
    found += [f"{hop} was dispatched {times} times" for hop, times in dispatched.items() if times != 1]
    return found + [violation.rule for violation in books.found]


def _run(seed: int, crash_rate: float) -> Story:
    return simulate(seed, _story(seed, crash_rate))


@pytest.mark.parametrize("crash_rate", [0.0, 0.03])
def test_in_no_order_of_events_is_an_approval_used_twice_or_for_something_else(crash_rate: float) -> None:
    seen, races, crashes, used = Counter[str](), 0, 0, 0
    for seed in range(SEEDS):
        story = _run(seed, crash_rate)
        assert _violations(story) == [], f"seed {seed}"
        seen, races, crashes = seen + story.answers, races + story.lost_races, crashes + story.crashes
        used += sum(record["kind"] == "hop.opened" for record in story.records)
    print(f"{SEEDS} runs: {used} approvals used, {races} lost races, {crashes} crashes, {dict(seen)}")
    # A run in which nobody raced, asked or was refused proves nothing.
    assert used > SEEDS and races > SEEDS and seen["APPROVAL_REQUIRED"] > SEEDS and seen["APPROVAL_INVALID"] > 0
    assert (crashes > SEEDS) == (crash_rate > 0)


def _found(rule: str) -> bool:
    return any(rule in found for seed in range(SEEDS) for found in _violations(_run(seed, 0.0)))


def _without_the_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fold believes what it is told, so that what is found is found by the checks."""
    monkeypatch.setattr(fold, "bad_use", lambda *_: "")
    monkeypatch.setattr(approve, "bad_use", lambda *_: "")


def test_an_approval_that_is_used_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    _without_the_fold(monkeypatch)
    state = approvals.Approval.state

    def forgetful(self: approvals.Approval, now: float) -> str:
        return state(msgspec.structs.replace(self, used_by=""), now)

    monkeypatch.setattr(approvals.Approval, "state", forgetful)
    assert _found("approval.twice")


def test_an_approval_for_other_bytes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    _without_the_fold(monkeypatch)
    monkeypatch.setattr(approvals, "_SAME", tuple(name for name in approvals._SAME if name != "args_digest"))
    assert _found("approval.other")
