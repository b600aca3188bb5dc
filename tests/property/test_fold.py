"""For every interleaving of openings, renewals, parkings, resumptions, closings and revocations: budget is conserved, nothing
runs under what ended or is parked."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from remit_broker.core.fold import Corrupt, Fold, apply, fold_all
from remit_schemas.budget import ONE_CALL, ZERO, Budget
from remit_schemas.records import hash_of, plain
from tests.support.story import Story, closing, hop_id, opened, opening, parking, renewing, resuming

AMOUNT = st.integers(0, 60)
BUDGET = st.builds(Budget, AMOUNT, AMOUNT, st.integers(1, 20))
COST = st.builds(Budget, st.integers(0, 90), st.integers(0, 90), st.integers(0, 25))
LIMIT = Budget(200, 200, 60)


def conserved(fold: Fold) -> None:
    """Held + spent never exceeds a limit, and what a node holds is what its children that have not ended may use."""
    for node in fold.nodes.values():
        assert (node.held + node.spent).within(node.limit)
        given = ZERO
        for child in node.open_children:
            given += fold.nodes[child].limit
        assert node.held == given
        if node.state == "parked":
            assert node.held + node.spent == node.limit, "it keeps nothing but what it was charged"


def usable(fold: Fold, hop: str) -> bool:
    return fold.state == "open" and all(n.state == "open" and n.hop not in fold.revoked for n in fold.path(hop))


class Tree(RuleBasedStateMachine):
    """A txn; whatever the machine tries, valid or not, only valid records apply."""

    hops = Bundle("hops")

    def __init__(self) -> None:
        super().__init__()
        self.story = Story(opened(budget=LIMIT, exp=1_900_000_000))
        self.drawn = 0
        self.own: dict[str, Budget] = {}

    @rule(target=hops)
    def root(self) -> str:
        return self.story.fold.root

    @rule(target=hops, parent=hops, budget=BUDGET)
    def open(self, parent: str, budget: Budget) -> str:
        fold, hop = self.story.fold, hop_id(self.drawn)
        self.drawn += 1
        above = fold.path(parent)
        allowed = (
            usable(fold, parent) and above[-1].depth < above[-1].max_depth and budget.within(above[-1].left)
        )  # fmt: skip
        # Shorter than the one above it, so that there is something to renew.
        record = opening(fold, hop, parent, budget, exp=above[-1].exp - 10)
        if allowed:
            self.story.add(record)
            self.own[hop] = ONE_CALL
            return hop
        with pytest.raises(Corrupt):
            self.story.add(record)
        return parent

    @rule(hop=hops, cost=COST, outcome=st.sampled_from(["ok", "failed", "error", "refused", "cancelled", "unknown"]))
    def close(self, hop: str, cost: Budget, outcome: Any) -> None:
        fold = self.story.fold
        node = fold.nodes[hop]
        if node.state == "parked":
            cost = ZERO
        record = closing(fold, hop, cost, outcome)
        if node.parent is None or node.state == "closed" or node.open_children:
            with pytest.raises(Corrupt):
                self.story.add(record)
            return
        if outcome in ("cancelled", "unknown"):
            # The whole hold is charged: what it had not used counts as its own.
            self.own[hop] += node.limit.minus(node.spent).join(cost)
        else:
            self.own[hop] += cost
        self.story.add(record)

    @rule(hop=hops, cost=COST)
    def park(self, hop: str, cost: Budget) -> None:
        fold = self.story.fold
        node = fold.nodes[hop]
        record = parking(fold, hop, cost)
        children = [fold.nodes[child].state for child in node.open_children]
        if node.parent is None or node.state != "open" or "open" in children:
            with pytest.raises(Corrupt):
                self.story.add(record)
            return
        before, above = node, fold.nodes[node.parent]
        self.own[hop] += cost
        fold = self.story.add(record)
        after, parent = fold.nodes[hop], fold.nodes[before.parent or ""]
        assert above.held.minus(parent.held) == before.limit.minus(after.limit), "exactly the rest went back"

    @rule(hop=hops, budget=BUDGET)
    def resume(self, hop: str, budget: Budget) -> None:
        fold = self.story.fold
        node = fold.nodes[hop]
        if node.parent is None:
            return
        record = resuming(fold, hop, budget)
        allowed = (
            node.state == "parked"
            and hop not in fold.revoked
            and usable(fold, node.parent)
            and budget.within(fold.nodes[node.parent].left)
        )
        if allowed:
            self.own[hop] += ONE_CALL
            fold = self.story.add(record)
            assert fold.nodes[hop].recs == (record.hash,), "nothing that was minted before counts"
        else:
            with pytest.raises(Corrupt):
                self.story.add(record)

    @rule(hop=hops, longer=st.integers(-5, 40))
    def renew(self, hop: str, longer: int) -> None:
        fold = self.story.fold
        node = fold.nodes[hop]
        record = renewing(fold, hop, node.exp + longer)
        parent = fold.nodes.get(node.parent or "")
        if (
            parent is not None and usable(fold, hop) and longer > 0 and record.exp <= parent.exp
            and record.exp * 1000 <= node.deadline
        ):  # fmt: skip
            fold = self.story.add(record)
            assert fold.nodes[hop].counts(node.n, node.rec) and fold.nodes[hop].counts(node.n + 1, record.hash)
            assert len(fold.nodes[hop].recs) <= 4
        else:
            with pytest.raises(Corrupt):
                self.story.add(record)

    @rule(hop=hops)
    def close_with_descendants(self, hop: str) -> None:
        if not self.story.fold.stands(hop) or hop == self.story.fold.root:
            return
        for below in (*self.story.fold.descendants_open(hop), hop):
            node = self.story.fold.nodes[below]
            self.own[below] += node.limit.minus(node.spent)
            self.story.close(below, outcome="unknown")

    @rule(hop=consumes(hops))
    def revoke(self, hop: str) -> None:
        fold = self.story.fold
        if fold.stands(hop) and hop not in fold.revoked:
            self.story.revoke(hop)
        else:
            with pytest.raises(Corrupt):
                self.story.revoke(hop)

    @precondition(
        lambda self: not self.story.fold.totals.open_children and self.story.fold.state == "open" and self.drawn > 12
    )
    @rule()
    def end(self) -> None:
        self.story.end()

    @invariant()
    def budget_is_conserved(self) -> None:
        conserved(self.story.fold)

    @invariant()
    def nothing_open_is_under_anything_closed_or_parked(self) -> None:
        fold = self.story.fold
        for node in fold.nodes.values():
            above = [each.state for each in fold.path(node.hop)]
            assert node.state != "open" or set(above) == {"open"}
            assert node.state == "closed" or "closed" not in above

    @invariant()
    def no_grant_outlives_the_one_above_it(self) -> None:
        fold = self.story.fold
        for node in fold.nodes.values():
            if node.parent and node.state != "closed":
                assert node.exp <= fold.nodes[node.parent].exp
                assert node.deadline <= fold.nodes[node.parent].deadline

    def teardown(self) -> None:
        """Close everything: nothing is held, and the root was charged exactly what every hop used."""
        if self.story.fold.state == "open":
            for hop in self.story.fold.descendants_open(self.story.fold.root):
                node = self.story.fold.nodes[hop]
                self.own[hop] += node.limit.minus(node.spent)
                self.story.close(hop, outcome="unknown")
            self.story.end()
        root = self.story.fold.totals
        total = ZERO
        for amount in self.own.values():
            total += amount
        assert root.held == ZERO
        assert root.spent + root.overrun == total
        assert fold_all(self.story.records) == self.story.fold


TestTree = Tree.TestCase
TestTree.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@st.composite
def stories(draw: st.DrawFn) -> Story:
    """A valid txn of at least three records."""
    story = Story(opened(budget=LIMIT))
    for number in range(draw(st.integers(2, 12))):
        openable = [
            n for n in story.fold.nodes.values() if n.state == "open" and ONE_CALL.within(n.left) and n.depth < 8
        ]
        closable = [n for n in story.fold.nodes.values() if n.state == "open" and n.parent and not n.open_children]
        parked = [
            n for n in story.fold.nodes.values()
            if n.state == "parked" and ONE_CALL.within(story.fold.left(n.parent or ""))
        ]  # fmt: skip
        match draw(st.sampled_from(["open", "open", "close", "park", "resume"])):
            case "resume" if parked:
                node = draw(st.sampled_from(parked))
                story.resume(node.hop, draw(BUDGET).meet(story.fold.left(node.parent or "")))
                continue
            case "park" if closable:
                story.park(draw(st.sampled_from(closable)).hop, draw(COST))
                continue
            case "close" if closable:
                story.close(draw(st.sampled_from(closable)).hop, draw(COST))
                continue
        if not openable:
            continue
        parent = draw(st.sampled_from(openable))
        story.open(hop_id(number), parent.hop, draw(BUDGET).meet(parent.left))
    return story


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(stories())
def test_folding_a_prefix_is_applying_its_records_one_by_one(story: Story) -> None:
    fold: Fold | None = None
    for number, raw in enumerate(story.records):
        fold = apply(fold, raw)
        assert fold == fold_all(story.records[: number + 1])


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(stories(), st.data())
def test_a_dropped_doubled_or_moved_record_is_found(story: Story, data: st.DataObject) -> None:
    records = list(story.records)
    # Cutting off the end leaves a valid, shorter sequence: that is what the witness outside the stream is for.
    at = data.draw(st.integers(0, len(records) - 2))
    match data.draw(st.sampled_from(["drop", "double", "swap"])):
        case "drop":
            del records[at]
        case "double":
            records.insert(at, records[at])
        case _:
            records[at], records[at + 1] = records[at + 1], records[at]
    with pytest.raises(Corrupt):
        fold_all(records)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the scalars of nested JSON are."""
    if isinstance(value, dict):
        return [found for key, inner in value.items() for found in leaves(inner, (*path, key))]
    if isinstance(value, list):
        return [found for index, inner in enumerate(value) for found in leaves(inner, (*path, index))]
    return [path]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(stories(), st.data())
def test_any_changed_value_is_found_at_its_record(story: Story, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(story.records) - 1))
    records = [*story.records[:at], _copy(story.records[at]), *story.records[at + 1 :]]
    path = data.draw(st.sampled_from(leaves(records[at])))
    target = records[at]
    for step in path[:-1]:
        target = target[step]
    old = target[path[-1]]
    new = data.draw(st.one_of(st.text(max_size=5), st.integers(0, 99), st.none(), st.booleans()))
    if type(new) is type(old) and new == old:
        return
    target[path[-1]] = new
    with pytest.raises(Corrupt) as corrupt:
        fold_all(records)
    assert corrupt.value.where.endswith(f"#{at}")


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(stories(), BUDGET)
def test_a_record_sealed_anew_still_cannot_take_more_than_is_left(story: Story, budget: Budget) -> None:
    fold = story.fold
    greedy = fold.totals.left + budget
    raw = plain(opening(fold, hop_id(99), budget=greedy))
    with pytest.raises(Corrupt, match="left"):
        apply(fold, raw | {"hash": hash_of(raw)})


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value
