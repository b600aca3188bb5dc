"""What another policy set would have decided of what happened: for whom it would be otherwise, how often, and where to look.

Records keep no arguments. A set that looks at arguments is therefore asked twice, once as if they were the worst and once as if they
were the best for the caller: where both agree, the answer is certain, else it is said that it depends on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from remit_broker.core.policy import PolicyRequest, Verdict
from remit_broker.core.what_if import Outcome, outcome_of

EXAMPLES: Final = 3
USERS: Final = 20

Decide = Callable[[PolicyRequest], Verdict]


class Past(msgspec.Struct, frozen=True, kw_only=True):
    """A call, or an answer, that was decided: what was asked, and what came of it. ``count`` is how many of one kind a refusal stands
    for. With an ``other`` question it was one of the two, or something between them.
    """

    seq: int
    txn: str | None
    hop: str
    at: str
    then: Outcome
    rules: tuple[str, ...]
    question: PolicyRequest
    count: int = 1
    other: PolicyRequest | None = None


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """Calls of one kind of which another set decides otherwise. ``examples`` are ids for ``remit why``."""

    was: Outcome
    becomes: Outcome
    rules: tuple[str, ...]
    caller: str
    action: str
    resource: str
    count: int
    users: tuple[str, ...]
    examples: tuple[str, ...]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Of ``calls`` (and, among them, ``answers``) that were looked at, ``same`` are decided alike, ``unsure`` depend on what was not
    kept: arguments, or labels that may have come in between.
    """

    calls: int
    answers: int
    same: int
    unsure: int
    changes: tuple[Change, ...]
    first: str = ""
    last: str = ""


class _Group:
    def __init__(self) -> None:
        self.count = 0
        self.users: dict[str, None] = {}
        self.examples: list[str] = []

    def add(self, past: Past) -> None:
        self.count += past.count
        if len(self.users) < USERS:
            self.users[past.question.user] = None
        if len(self.examples) < EXAMPLES:
            self.examples.append(past.hop if past.txn is None else f"{past.txn}.{past.hop}")


def replayed(pasts: Iterable[Past], worst: Decide, best: Decide) -> Report:
    """The report of a set of which ``worst`` and ``best`` are the answers at the worst and best arguments."""
    groups: dict[tuple[Outcome, Outcome, tuple[str, ...], str, str, str], _Group] = {}
    calls = answers = same = unsure = 0
    first = last = ""
    for past in pasts:
        calls += past.count
        answers += past.count if past.question.action == "release" else 0
        first, last = first or past.at, past.at
        low = worst(past.question)
        now = outcome_of(low)
        if any(outcome_of(verdict) != now for verdict in _otherwise(past, worst, best)):
            unsure += past.count
        elif now == past.then:
            same += past.count
        else:
            asked = past.question
            key = (past.then, now, low.decision.rules, asked.caller, asked.action, str(asked.resource))
            groups.setdefault(key, _Group()).add(past)
    changes = [
        Change(
            was=was,
            becomes=becomes,
            rules=rules,
            caller=caller,
            action=action,
            resource=resource,
            count=group.count,
            users=tuple(sorted(group.users)),
            examples=tuple(group.examples),
        )
        for (was, becomes, rules, caller, action, resource), group in groups.items()
    ]
    ordered = tuple(sorted(changes, key=lambda change: (-change.count, change.resource, change.caller, change.becomes)))
    return Report(calls=calls, answers=answers, same=same, unsure=unsure, changes=ordered, first=first, last=last)


def _otherwise(past: Past, worst: Decide, best: Decide) -> Iterable[Verdict]:
    """What else may have been decided, for all that is known."""
    if best is not worst:
        yield best(past.question)
    if past.other is not None:
        yield worst(past.other)
        if best is not worst:
            yield best(past.other)
