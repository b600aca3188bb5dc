"""What operators have said about policy while it is in force: what is only observed, and who is excepted from what until when.

*Observe*: a policy, or all that is said of a server's tools, is evaluated and recorded, and refuses nothing. *Exception*: the policies
that refused one call do not refuse its like, for a time. Both are entries beside the revocations, so that every replica has them
within two seconds or refuses, and records of what operators did.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from remit_broker.core.policy import PolicyRequest, Verdict
from remit_broker.core.revocations import Entry
from remit_schemas.records import Decision

DEFAULT_DENY: Final = "policy.default-deny"
"""Stands for a policy's id where nothing permits a call."""
MAX_LIFE: Final = 30 * 86400
"""Longest exception in seconds."""

_NONE: Final[frozenset[str]] = frozenset()
Again = Callable[[frozenset[str], frozenset[str]], Verdict]
"""The verdict without some policies, and without the obligations of others."""


class Exempt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Until ``until`` (Unix seconds) ``rules`` do not refuse ``caller`` who asks the same of ``resource`` for ``user``. ``hop`` is
    the refused call that it was made for, and its name.
    """

    hop: str
    tenant: str
    action: str
    user: str
    caller: str
    resource: str
    rules: tuple[str, ...]
    until: int

    def fits(self, request: PolicyRequest) -> bool:
        """Whether ``request`` is of the kind that was excepted, and it is time still."""
        mine = (self.tenant, self.action, self.user, self.caller, self.resource)
        theirs = (request.tenant, request.action, request.user, request.caller, str(request.resource))
        return mine == theirs and request.now < self.until


class Rulings:
    """What is in force. :meth:`apply` is told of every entry, in any replica in the same order."""

    def __init__(self) -> None:
        self.policies: dict[str, frozenset[str]] = {}
        self.servers: dict[str, frozenset[str]] = {}
        """What is only observed, by tenant."""
        self.exempt: dict[str, Exempt] = {}

    def apply(self, entry: Entry) -> None:
        """Take note of an entry; those of other kinds are none of our business."""
        if entry.kind == "exception":
            self.exempt.pop(entry.name, None)
            if entry.state == "allowed":
                self.exempt[entry.name] = msgspec.json.decode(entry.detail, type=Exempt)
        elif entry.kind == "observe":
            what, _, name = entry.name.partition(" ")
            table = self.servers if what == "server" else self.policies
            named = table.get(entry.tenant, _NONE)
            table[entry.tenant] = named | {name} if entry.state == "observed" else named - {name}

    @property
    def silent(self) -> bool:
        """Whether nothing was said."""
        return not (any(self.policies.values()) or any(self.servers.values()) or self.exempt)

    def excepted(self, request: PolicyRequest) -> dict[str, str]:
        """The policies that do not refuse ``request``, and the exception that says so of each."""
        return {rule: one.hop for one in self.exempt.values() if one.fits(request) for rule in one.rules}


def ruled(request: PolicyRequest, verdict: Verdict, again: Again, rulings: Rulings) -> Verdict:
    """``verdict`` as it is in force.

    INVARIANT: nothing but what operators have named is let through (test_an_exception_lifts_what_it_names_and_nothing_else,
    test_what_is_only_observed_refuses_nothing_and_is_recorded).
    """
    if rulings.silent:
        return verdict
    # INVARIANT: what one tenant only observes is enforced in every other (test_what_one_tenant_observes_others_enforce).
    servers, observed = rulings.servers.get(request.tenant, _NONE), rulings.policies.get(request.tenant, _NONE)
    if request.resource.kind == "mcp" and request.resource.name in servers:
        return _observed(verdict)
    excepted = rulings.excepted(request)
    lifted: set[str] = set()
    while not verdict.allowed:
        rules = set(verdict.decision.rules) or {DEFAULT_DENY}
        if not rules <= observed | set(excepted):
            return verdict
        lifted |= rules
        if DEFAULT_DENY in rules:
            verdict = Verdict(allowed=True, decision=msgspec.structs.replace(verdict.decision, effect="allow"))
            break
        verdict = again(frozenset(lifted), frozenset())
    would = lifted & observed
    if loose := observed & set(verdict.decision.rules):
        without = again(frozenset(lifted - {DEFAULT_DENY}), loose)
        would |= loose if _demands(without) != _demands(verdict) else set()
        verdict = without if without.allowed else verdict
    if not lifted and not would:
        return verdict
    return _told(verdict, would, {excepted[rule] for rule in lifted - would})


def _observed(verdict: Verdict) -> Verdict:
    """Of a server that is only observed: nothing is refused and nothing demanded; data is labelled all the same."""
    if verdict.allowed and not any(_demands(verdict)):
        return verdict
    rules = verdict.decision.rules if verdict.allowed else verdict.decision.rules or (DEFAULT_DENY,)
    return Verdict(
        allowed=True,
        decision=Decision("would_deny", rules, verdict.decision.revision),
        label=verdict.label,
        reason=verdict.reason,
        ask=verdict.ask,
        cause=verdict.cause,
    )


def _told(verdict: Verdict, would: set[str], exceptions: set[str]) -> Verdict:
    """``verdict`` with a decision that says what let it through."""
    named = tuple(f"exception.{hop}" for hop in sorted(exceptions))
    if would:
        decision = Decision("would_deny", (*sorted(would), *named), verdict.decision.revision)
    else:
        decision = Decision("allow", (*verdict.decision.rules, *named), verdict.decision.revision)
    return msgspec.structs.replace(verdict, decision=decision)


def _demands(verdict: Verdict) -> tuple[object, ...]:
    return verdict.approvals, verdict.redact, verdict.cap
