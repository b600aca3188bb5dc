"""The question that policy is asked and its answer. How the one becomes Cedar's terms is in ``question.py``.

A policy sees who asks, on whose behalf, through whom, for what, with how much left, *what was found* in the content, and of the
arguments what the tool's own schema declares as scalars (``arguments.py``). Raw JSON it never sees.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final, Literal

import msgspec

from remit_broker.core.arguments import NOTHING, Arguments
from remit_broker.core.labels import normal
from remit_broker.core.obligations import Approval, Cap, strictest
from remit_broker.core.registry import Annotations
from remit_schemas.budget import Budget
from remit_schemas.canonical import MAX_INTEGER
from remit_schemas.errors import Code
from remit_schemas.names import Resource
from remit_schemas.records import Decision

Action = Literal["call", "delegate", "detach", "release", "list", "approve"]
ACTIONS: Final[tuple[Action, ...]] = ("call", "delegate", "detach", "release", "list", "approve")
OBLIGING: Final[frozenset[Action]] = frozenset({"call", "delegate", "detach"})
"""Actions after which something is called: only there can an approval be waited for, or a cap be set."""

_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_INTEGER)]


class PolicyRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One question. ``now`` is Unix seconds; policies see the hour and weekday of it, in UTC.

    ``tiers`` are those of ``actors`` (the chain of agents, the caller among them), ``loops`` is how often the target is among
    them already, ``findings`` are kinds such as ``secret.npm_token``. ``roles`` and ``groups`` are those of ``user``,
    ``labels`` are those of the data in question, ``target_labels`` those that the target brings. ``tool_groups`` are those that
    the configuration puts the target in. ``approver`` is who wants to decide, where the action is ``approve``: then the
    principal, and ``user`` the one for whom the call would be made. Nothing is checked here; a question with a value of a wrong
    type is denied when it is asked.
    """

    action: Action
    tenant: str
    user: str
    caller: str
    caller_tier: str
    resource: Resource
    target_tier: str
    depth: _Count
    left: Budget
    now: _Count
    annotations: Annotations = Annotations()
    roles: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    actors: tuple[str, ...] = ()
    tiers: tuple[str, ...] = ()
    loops: _Count = 0
    tool_groups: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    target_labels: tuple[str, ...] = ()
    args: Arguments = NOTHING
    client: str = ""
    environment: str = ""
    approver: str = ""
    approver_roles: tuple[str, ...] = ()
    approver_groups: tuple[str, ...] = ()


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One answer.

    ``code`` is set when it is no. ``approve`` are the ids of the policies that permit it only with an approval,
    and ``approvals`` what each of them demands, ``redact`` the classes of findings to replace, ``cap`` what the call may be
    given at most, ``endorse`` the labels that whoever approves it takes away, ``label`` what its data is to be labelled with.
    ``reason`` and ``ask`` are the public texts of the policies that decided; ``cause`` is for operators only.
    """

    allowed: bool
    decision: Decision
    code: Code | None = None
    approve: tuple[str, ...] = ()
    approvals: tuple[Approval, ...] = ()
    redact: tuple[str, ...] = ()
    cap: Cap | None = None
    label: tuple[str, ...] = ()
    endorse: tuple[str, ...] = ()
    reason: str = ""
    ask: str = ""
    cause: str = ""


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """What the annotations of one policy say."""

    id: str
    effect: Literal["permit", "forbid"]
    reason: str
    ask: str = ""
    code: Code = Code.POLICY_DENIED
    approve: Approval | None = None
    redact: tuple[str, ...] = ()
    cap: Cap | None = None
    label: tuple[str, ...] = ()
    endorse: tuple[str, ...] = ()


# Answers


def verdict_of(allowed: bool, rules: Iterable[Rule], revision: str) -> Verdict:
    """The answer when Cedar decided and ``rules`` are the policies that determined it; none, when nothing permitted it."""
    deciding = sorted(rules, key=lambda rule: rule.id)
    ids = tuple(dict.fromkeys(rule.id for rule in deciding))
    decision = Decision("allow" if allowed else "deny", ids, revision)
    if not allowed:
        # What was found is only the whole reason where every forbid says so; else removing it would not help.
        content = bool(deciding) and all(rule.code is Code.CONTENT_DENIED for rule in deciding)
        code = Code.CONTENT_DENIED if content else Code.POLICY_DENIED
        return Verdict(allowed=False, decision=decision, code=code, reason=_reasons(deciding), ask=_asks(deciding))
    approve = [rule for rule in deciding if rule.approve]
    return Verdict(
        allowed=True,
        decision=decision,
        approve=tuple(rule.id for rule in approve),
        approvals=tuple(rule.approve for rule in approve if rule.approve),
        redact=_all(rule.redact for rule in deciding),
        cap=strictest(rule.cap for rule in deciding if rule.cap),
        endorse=_all(rule.endorse for rule in deciding),
        label=tuple(sorted(normal(name for rule in deciding for name in rule.label))),
        reason=_reasons(approve or deciding),
        ask=_asks(approve or deciding),
    )


def undecided(revision: str, cause: str) -> Verdict:
    """The answer when there was an error: a forbid that errs is skipped by Cedar, so any error at all denies."""
    return Verdict(
        allowed=False,
        code=Code.POLICY_DENIED,
        decision=Decision("deny", (UNDECIDED,), revision),
        reason="the policies could not be evaluated for it, and what cannot be decided is denied",
        ask="tell an operator: the policies need a correction",
        cause=cause,
    )


UNDECIDED: Final = "policy.error"
"""Stands for a policy's id in a decision that failed."""


def _all(names: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(sorted({name for some in names for name in some}))


def _reasons(rules: Iterable[Rule]) -> str:
    return "; ".join(dict.fromkeys(rule.reason for rule in rules))


def _asks(rules: Iterable[Rule]) -> str:
    return "; ".join(dict.fromkeys(rule.ask for rule in rules if rule.ask))
