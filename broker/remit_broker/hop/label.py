"""Which labels a hop has, from its beginning to its end, and whom they may reach: ceilings bind whatever policy says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from remit_broker.core.flow import NONE
from remit_broker.core.fold import Fold, Node
from remit_broker.core.label_sources import NO_LABELS
from remit_broker.core.labels import MAX_LABELS, normal
from remit_broker.hop.hop import Hop
from remit_broker.ports import Ports
from remit_schemas.claims import ANY_LABEL, labels_within
from remit_schemas.errors import Code, Refusal, refusal
from remit_schemas.records import Finding

MAX_RELATIVES: Final = 64
"""Tasks that share labels with the one of a call, where that agent detached one from another: each is looked at for every call."""


async def labelled(hop: Hop, ports: Ports, replaced: tuple[str, ...] = ()) -> Hop:
    """The hop with the labels of what is sent, of what the target brings, and of what its endorser may take.

    ``replaced`` are the classes of findings that are not sent.
    Refuses OUT_OF_SCOPE above a ceiling, TOO_LARGE for a task with too many labels.
    """
    declared, args = hop.aim.labels, hop.request.args
    known = hop.above.labels | await _elsewhere(hop, ports)
    sent = normal(known | declared.sent(args) | ports.limits.labels.of_findings(_kinds(hop.findings), replaced))
    if hop.request.detach:
        # The broker answers, not the target.
        hop = hop.with_(labels=tuple(sorted(sent)), lowered=(), brings=(), endorser="", lowers=())
    else:
        brings = normal(declared.answers.of(args) | hop.past.reached.get(hop.aim.callee, NONE))
        endorser = hop.aim.endorser
        hop = hop.with_(
            labels=tuple(sorted(sent)),
            lowered=(),
            brings=tuple(sorted(brings)),
            endorser=endorser.name if endorser else "",
            lowers=tuple(sorted(endorser.lowers)) if endorser else (),
        )
    return within_bounds(hop)


def marked(hop: Hop) -> Hop:
    """The hop with the labels that policy puts on what is sent."""
    labels = hop.judged.label
    return within_bounds(hop.with_(labels=tuple(sorted({*hop.labels, *labels})))) if labels else hop


def within_bounds(hop: Hop) -> Hop:
    """The same hop, where its labels may be. Refuses as :func:`labelled`."""
    _not_too_many(hop)
    _within_ceilings(hop)
    return hop


async def _elsewhere(hop: Hop, ports: Ports) -> frozenset[str]:
    """What has reached the caller in the tasks that this one carries on, or that it moved out of this one.

    INVARIANT: a detached task is no way round a label, in either direction
    (test_what_reaches_an_agent_in_one_task_is_on_what_it_sends_in_the_one_it_detached).
    """
    fold, who = hop.past, hop.ask.caller
    found: frozenset[str] = NONE
    seen, waiting = {fold.txn}, _relatives(fold, who)
    while waiting := [txn for txn in waiting if txn not in seen]:
        seen.update(waiting)
        folds = await asyncio.gather(*(_now(hop.ask.tenant, txn, ports) for txn in waiting))
        found = found.union(*(fold.reached.get(who, NONE) for fold in folds))
        waiting = list(dict.fromkeys(txn for fold in folds for txn in _relatives(fold, who)))
    if hop.request.detach and len(seen) > MAX_RELATIVES:
        # INVARIANT: what a call has to look at is bounded (test_an_agent_detaches_no_more_tasks_than_its_calls_can_look_at).
        raise refusal(
            Code.TOO_LARGE, f"{who} has detached {len(seen) - 1} tasks that share labels, at most {MAX_RELATIVES} are looked at",
            rule="labels.relatives", ask="carry on in a new task, opened for the same user",
        )  # fmt: skip
    return found


async def _now(tenant: str, txn: str, ports: Ports) -> Fold:
    """A task as the ledger has it; what has ended stays as it is remembered."""
    known = await ports.ledger.fold(tenant, txn)
    return known if known.state == "closed" else await ports.ledger.newest(tenant, txn)


def _relatives(fold: Fold, who: str) -> list[str]:
    earlier = [fold.continues.partition(".")[0]] if fold.continues and fold.totals.callee == who else []
    return [*earlier, *fold.detached.get(who, ())]


def _kinds(findings: Iterable[Finding]) -> frozenset[str]:
    return frozenset(finding.kind for finding in findings)


def _not_too_many(hop: Hop) -> None:
    # INVARIANT: the labels of a task are bounded, so that every record of it can say them all
    # (test_a_task_does_not_gather_labels_without_end).
    count = len(hop.past.labels.union(hop.labels, hop.brings))
    if count > MAX_LABELS:
        raise refusal(
            Code.TOO_LARGE, f"this task would have {count} labels, at most {MAX_LABELS} are kept of one", rule="labels.many",
            ask="carry on in a new task, opened for the same user",
        )  # fmt: skip


def _within_ceilings(hop: Hop) -> None:
    """What is sent may reach the callee by the grant it is given; what the target brings may reach the caller by its own."""
    # INVARIANT: no callee is sent what the ceiling of its grant excludes (test_nothing_above_its_ceiling_reaches_a_callee).
    if not labels_within(hop.labels, hop.given.labels):
        raise _above(hop, hop.labels, hop.given.labels, f"{hop.aim.callee} would be sent data")
    # INVARIANT: nor is a call made whose answer its caller may not have (test_what_a_caller_may_not_have_is_not_asked_for).
    brings = set(hop.brings) - set(hop.lowers)
    if not labels_within(brings, hop.held.claims.labels):
        raise _above(hop, brings, hop.held.claims.labels, f"{hop.resource} answers with data")


def _above(hop: Hop, labels: Iterable[str], ceiling: Iterable[str], what: str) -> Refusal:
    return refusal(
        Code.OUT_OF_SCOPE, f"{what} labelled {', '.join(sorted(set(labels) - set(ceiling)))}, which its grant excludes",
        rule="labels.ceiling", ask="leave that data out, or ask the user for a task with a higher ceiling of labels",
    )  # fmt: skip


async def at_the_end(hop: Hop, ports: Ports) -> Hop:
    """The hop with the labels that whatever it says has by now: those of its opening, and all that has reached its callee since."""
    labels = frozenset(hop.labels).union(hop.brings)
    heard = hop.aim.kind == "agent" or hop.held.claims.labels != (ANY_LABEL,)
    if heard and (hop.past.labels or ports.policy.labels or ports.limits.labels != NO_LABELS):
        # What it heard before it said this is durable, perhaps by another replica.
        node = (await ports.ledger.newest(hop.ask.tenant, hop.ask.txn)).nodes[hop.id]
        labels = labels | node.labels
    return hop.with_(said=tuple(sorted(labels)))


def with_content(hop: Hop, ports: Ports, findings: tuple[Finding, ...], replaced: tuple[str, ...]) -> frozenset[str]:
    """The labels of an answer: what the hop says, and what was found in it and is not replaced."""
    found = ports.limits.labels.of_findings(_kinds(findings), replaced) if findings else NONE
    return normal(frozenset(hop.said) | found)


def heard_before_end(hop: Hop, labels: frozenset[str]) -> bool:
    """Whether a frame with these labels may be released before the end: its caller has them already, and may have them.

    INVARIANT: what the caller does not have by the opening is not released early
    (test_an_early_frame_with_a_label_of_its_own_is_withheld).
    """
    durable = frozenset(hop.labels).union(hop.brings, hop.said) - frozenset(hop.lowers)
    return labels <= durable | hop.above.labels and labels_within(labels, hop.held.claims.labels)


def may_reach(hop: Hop, labels: Iterable[str]) -> None:
    """Refuses RESULT_DENIED where the caller's own ceiling excludes what came back."""
    ceiling = hop.held.claims.labels
    # INVARIANT: no caller is given what the ceiling of its grant excludes (test_no_answer_above_its_ceiling_reaches_a_caller).
    if not labels_within(labels, ceiling):
        above = ", ".join(sorted(set(labels) - set(ceiling)))
        raise refusal(
            Code.RESULT_DENIED, f"the answer of {hop.resource} is labelled {above}, which the caller's grant excludes",
            rule="labels.ceiling", ask="ask for less, or ask the user for a task with a higher ceiling of labels",
            effect="happened",
        )  # fmt: skip


def labels_back(hop: Hop, node: Node) -> tuple[str, ...]:
    """What the caller may have heard: whatever this hop says, but for what an endorser took away.

    INVARIANT: labels follow data up the chain, also through an agent that only passes it on, in errors and in what was sent
    before the end (test_labels_come_back_through_an_agent_that_only_passes_data_on).
    """
    seen = hop.result
    found = frozenset(seen.labels) if seen is not None else NONE
    return tuple(sorted((node.labels | found) - lowered(hop, node)))


def lowered(hop: Hop, node: Node) -> frozenset[str]:
    """What the endorser took away of what this hop has."""
    seen = hop.result
    if seen is None or not seen.endorsed:
        return NONE
    return node.lowers & (node.labels | frozenset(seen.labels))
