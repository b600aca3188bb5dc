"""``/api/approvals``: what waits for a person, exactly as it would be sent, and what they say to it."""

from __future__ import annotations

from typing import Any

import msgspec

from remit_broker.core.approvals import Approval, four_eyes, void
from remit_broker.core.fold import Fold
from remit_broker.core.listing import ApprovalRow
from remit_broker.core.showing import hidden, visible_json
from remit_broker.core.times import rfc3339
from remit_broker.edges.http.operators import Caller
from remit_broker.hop.decide import Approver, Verdict, decide, fits, request_of
from remit_broker.operator_ports import Index
from remit_broker.ports import Ports
from remit_schemas.errors import Code, refusal

STATES = ("waiting", "approved", "denied", "used", "expired", "void", "all")
SHOWN = 200
"""Most requests that a listing shows."""


LOCAL_ROLES = ("admin", "approver", "operator")
"""What the OS user who runs the broker is, to policies about approvals."""


class Say(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``POST /api/approvals/{id}``. ``args_digest`` is that of what was shown: where it is given, nothing else is decided on."""

    verdict: Verdict
    reason: str = ""
    args_digest: str | None = None


class Approvals:
    """The approvals of one tenant at a time, over the index, which finds them, and the ledger, which says what they are."""

    def __init__(self, index: Index) -> None:
        self._index = index

    async def listed(self, tenant: str, state: str, ports: Ports) -> dict[str, Any]:
        """Those in ``state``, newest first; ``more`` says that there are others. Refuses MALFORMED for a state that is none."""
        if state not in STATES:
            raise refusal(
                Code.MALFORMED, f"{state[:32]!r} is no state", rule="approvals.state", ask=f"one of {', '.join(STATES)}"
            )
        now, revision = ports.clock.now(), ports.policy.revision
        found = await self._index.approvals_in(tenant, state, now, revision, SHOWN + 1)
        return {"approvals": [_row(row, now, revision) for row in found[:SHOWN]], "more": len(found) > SHOWN}

    async def shown(self, tenant: str, name: str, ports: Ports) -> dict[str, Any]:
        """One request, with what would be sent where that is kept still. Refuses UNKNOWN_TARGET."""
        row = await self.found(tenant, name)
        fold = await ports.ledger.newest(tenant, row.txn)
        approval = request_of(fold, row.id)
        told = described(fold, approval, ports)
        data = await ports.arguments.get((tenant, row.txn, row.id)) if told["state"] == "waiting" else None
        if data is None:
            return {**told, "kept": False, "args": None, "text": None, "hidden": 0, "match": False}
        value = msgspec.json.decode(data)
        shown = value if approval.asked.resumes is not None else value["args"]
        match = fits(approval, data, ports)
        return {
            **told, "kept": True, "args": shown, "text": visible_json(shown), "hidden": hidden(shown), "match": match,
        }  # fmt: skip

    async def decided(self, name: str, said: Say, by: Approver, ports: Ports) -> dict[str, Any]:
        """What is so once ``by`` has said it. Refuses as :func:`~remit_broker.hop.decide.decide`."""
        row = await self.found(by.tenant, name)
        if said.args_digest is not None:
            asked = request_of(await ports.ledger.newest(by.tenant, row.txn), row.id).asked
            if said.args_digest != asked.args_digest:
                raise refusal(
                    Code.CONFLICT, "that is not the digest of what is asked", rule="approvals.other",
                    ask=f"look again: remit approvals show {row.id}",
                )  # fmt: skip
        approval = await decide(row.txn, row.id, said.verdict, said.reason, by, ports)
        return described(await ports.ledger.newest(by.tenant, row.txn), approval, ports)

    async def found(self, tenant: str, name: str) -> ApprovalRow:
        """The one whose id is or begins with ``name``. Refuses UNKNOWN_TARGET for none or several."""
        rows = await self._index.approvals(tenant, name.lower(), 10) if len(name) >= 4 else []
        exact = [row for row in rows if name.lower() in (row.id, f"{row.txn}.{row.id}")]
        rows = exact or rows
        if len(rows) != 1:
            near = ", ".join(f"{row.txn}.{row.id}" for row in rows[:3])
            raise refusal(
                Code.UNKNOWN_TARGET, f"{'no' if not rows else 'more than one'} approval {name[:64]!r}", rule="approvals.unknown",
                ask=f"one of {near}" if near else "remit approvals list shows them",
            )  # fmt: skip
        return rows[0]


def described(fold: Fold, approval: Approval, ports: Ports) -> dict[str, Any]:
    """A request as JSON: what its record says, and where it stands."""
    asked, now = approval.asked, ports.clock.now()
    state: str = approval.state(now)
    why = void(fold, approval, ports.policy.revision) if state in ("waiting", "approved") else ""
    return {
        "id": asked.id,
        "txn": asked.txn,
        "hop": asked.hop,
        "state": "void" if why else state,
        "why": why,
        "user": asked.user,
        "caller": asked.caller,
        "chain": asked.chain,
        "action": asked.action,
        "resource": asked.resource,
        "needs": [msgspec.to_builtins(need) for need in asked.needs],
        "four_eyes": four_eyes(asked),
        "reason": asked.reason,
        "revision": asked.decision.revision,
        "findings": [msgspec.to_builtins(finding) for finding in asked.findings],
        "redacted": asked.redacted,
        "labels": asked.labels,
        "endorses": asked.endorses,
        "scope": [msgspec.to_builtins(detail) for detail in asked.scope],
        "args_digest": asked.args_digest,
        "args_size": asked.args_size,
        "at": asked.at,
        "expires": rfc3339(approval.exp),
        "votes": [msgspec.to_builtins(vote) for vote in approval.votes],
        "used_by": approval.used_by or None,
    }


def approver(caller: Caller, tenant: str) -> Approver:
    """Who decides, as policy sees them: a user with the roles that an issuer proved, or whoever this machine trusts."""
    proved = caller.identity
    if proved is None:
        auth, _, user = caller.who.partition(":")
        return Approver(who=caller.who, user=user, tenant=tenant, auth=auth, roles=LOCAL_ROLES)
    # INVARIANT: with four eyes the same user is the same person on both sides, whatever door they came through
    # (test_nobody_approves_their_own_call_by_another_door).
    roles = tuple(sorted({*proved.roles, *caller.roles}))
    return Approver(
        who=caller.who, user=proved.user, tenant=tenant, auth=proved.auth, roles=roles, groups=proved.groups
    )


def _row(row: ApprovalRow, now: float, revision: str) -> dict[str, Any]:
    until = row.exp if row.verdict is None or row.use_until is None else row.use_until
    return {
        "id": row.id, "txn": row.txn, "state": row.state(now, revision), "user": row.user, "resource": row.resource, "at": row.at,
        "expires": rfc3339(until), "used_by": row.used_by,
    }  # fmt: skip
