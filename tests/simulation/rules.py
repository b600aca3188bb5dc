"""The policies of a simulated machine: what they forbid, which calls they permit only with an approval, and who may give one.

What is written here is known to whoever judges, too: :mod:`tests.simulation.consent` looks it up, and asks no broker.
"""

from __future__ import annotations

from typing import Any, Final

from remit_broker.core.arguments import NOTHING, Arguments
from remit_broker.core.obligations import Approval
from remit_broker.core.policy import PolicyRequest, Verdict
from remit_schemas.records import Decision

CAREFUL: Final = {
    "agent/worker/careful": Approval(policy="look", text="look", ttl=2),
    "agent/leaf/careful": Approval(policy="other-eyes", text="look", four_eyes=True),
    "mcp/tools/write": Approval(policy="two", text="look twice", count=2),
}
"""Calls that need an approval, and what it takes."""
APPROVERS: Final = ("kim", "lee", "max")
"""Who may decide; so may the users themselves, where four eyes are not asked for."""
USERS: Final = ("ann", "bob", "eve")
NOBODY: Final = "mallory"
"""Who may not."""
FIRST: Final = "r" * 64


class Rules:
    """The policies of one machine: they outlive its brokers. ``revision`` changes with every edit, what they say stays the same."""

    labels = False

    def __init__(self, revision: str = FIRST) -> None:
        self.revision = revision
        self.changed_at = 0.0
        self._known: dict[str, tuple[Verdict, Verdict, dict[str, Verdict]]] = {}

    def edit(self, revision: str, now: float) -> None:
        """Take other policies."""
        if revision != self.revision:
            self.revision, self.changed_at = revision, now

    def arguments(self, *_: Any) -> Arguments:
        return NOTHING

    def decide(self, request: PolicyRequest) -> Verdict:
        found = self._known.get(self.revision)
        if found is None:
            found = self._known[self.revision] = _verdicts(self.revision)
        yes, no, careful = found
        if request.action == "approve":
            return yes if request.approver in (*APPROVERS, *USERS) else no
        if request.resource.op == "forbidden":
            return no
        return careful.get(str(request.resource), yes) if request.resource.op in ("careful", "write") else yes


def _verdicts(revision: str) -> tuple[Verdict, Verdict, dict[str, Verdict]]:
    yes = Verdict(allowed=True, decision=Decision("allow", ("all",), revision))
    no = Verdict(allowed=False, decision=Decision("deny", ("forbidden",), revision))
    careful = {
        name: Verdict(
            allowed=True, decision=Decision("allow", (asked.policy,), revision), approve=(asked.policy,), approvals=(asked,),
            reason=asked.text,
        )
        for name, asked in CAREFUL.items()
    }  # fmt: skip
    return yes, no, careful
