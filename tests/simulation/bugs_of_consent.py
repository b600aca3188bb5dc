"""Planted bugs of approvals and of tenants. Each takes one guard out of the product, wherever the product has it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import msgspec

from remit_broker.adapters import jetstream_ledger, kv_accounts, ledger_memory
from remit_broker.core import approvals, fold
from remit_broker.core.caps import Whose
from remit_broker.hop import approve, decide, narrow, pipeline, request, verify
from remit_broker.hop import open as opening
from remit_broker.ledger_port import LostRace
from remit_schemas.claims import ANY_LABEL
from tests.simulation.planting import bug, put

# Approvals


def _state(stack: ExitStack, **forgotten: Any) -> None:
    """An approval as if some of what happened to it had not."""
    before = approvals.Approval.state

    def state(self: approvals.Approval, now: float) -> approvals.State:
        return before(msgspec.structs.replace(self, **forgotten), now)

    put(stack, approvals.Approval, "state", state)


def _bound_to_less(stack: ExitStack, name: str) -> None:
    put(stack, approvals, "_SAME", tuple(one for one in approvals._SAME if one != name))


@bug
def an_approval_is_used_twice(stack: ExitStack) -> None:
    _state(stack, used_by="")


@bug
def an_approval_is_for_any_arguments(stack: ExitStack) -> None:
    _bound_to_less(stack, "args_digest")


@bug
def an_approval_survives_a_change_of_policies(stack: ExitStack) -> None:
    _bound_to_less(stack, "revision")


@bug
def an_expired_approval_is_used(stack: ExitStack) -> None:
    before = approvals.Approval.state

    def state(self: approvals.Approval, now: float) -> approvals.State:
        found = before(self, now)
        return "approved" if found == "expired" and self.given else found

    put(stack, approvals.Approval, "state", state)


@bug
def a_denial_does_not_count(stack: ExitStack) -> None:
    put(stack, approvals.Approval, "denial", property(lambda self: None))


@bug
def one_approver_is_enough(stack: ExitStack) -> None:
    put(stack, approvals.Approval, "given", property(lambda self: bool(self.approvers)))


@bug
def the_same_person_approves_twice(stack: ExitStack) -> None:
    before = approvals.bad_decision

    def judged(past: Any, record: Any) -> str:
        why = before(past, record)
        return "" if why == "the same person decided before" else why

    put(stack, decide, "_may_decide", lambda *_: None)
    for module in (approvals, fold):
        put(stack, module, "bad_decision", judged)


@bug
def users_approve_their_own_calls(stack: ExitStack) -> None:
    for module in (approvals, decide):
        put(stack, module, "four_eyes", lambda asked: False)


@bug
def anybody_approves(stack: ExitStack) -> None:
    async def permitted(*_: Any) -> None:
        return None

    put(stack, decide, "_permitted", permitted)


@bug
def what_waits_for_a_person_goes_on(stack: ExitStack) -> None:
    before = approve.approve

    async def hasty(hop: Any, ports: Any) -> Any:
        try:
            return await before(hop, ports)
        except approve.Demanded:
            return hop

    stages = tuple(hasty if stage is before else stage for stage in pipeline.DECIDE)
    put(stack, pipeline, "DECIDE", stages)
    put(stack, pipeline, "AGAIN", tuple(hasty if stage is before else stage for stage in pipeline.AGAIN))


@bug
def people_are_asked_again_for_the_same(stack: ExitStack) -> None:
    put(stack, request, "_waiting", lambda hop, ports, fold: None)


@bug
def what_is_sent_is_not_what_was_approved(stack: ExitStack) -> None:
    before = opening.open_

    async def other(hop: Any, ports: Any, turn: Any) -> Any:
        opened = await before(hop, ports, turn)
        if isinstance(opened, LostRace) or opened.approval is None:
            return opened
        return opened.with_(args={**opened.args, "more": 1})

    put(stack, pipeline, "open_", other)


@bug
def a_parked_hop_goes_on_with_a_higher_ceiling(stack: ExitStack) -> None:
    async def ceiling(hop: Any, ports: Any) -> tuple[str, ...]:
        return (ANY_LABEL,) if hop.parked is not None else await before(hop, ports)

    before = put(stack, narrow, "_ceiling", ceiling)


# Tenants


@bug
def all_tenants_are_one_in_the_subjects_of_the_ledger(stack: ExitStack) -> None:
    for module in (ledger_memory, jetstream_ledger):
        put(stack, module, "subject_of", lambda key: f"ledger.default.{key[1]}")


@bug
def a_call_is_taken_for_the_tenant_of_its_grant(stack: ExitStack) -> None:
    held = verify.holder

    async def holder(hop: Any, ports: Any) -> Any:
        grant = ports.mint.verify(hop.request.grant, hop.ask.caller)
        return await held(hop.with_(ask=msgspec.structs.replace(hop.ask, tenant=grant.claims.tenant)), ports)

    put(stack, verify, "holder", holder)


@bug
def an_operator_reaches_the_tasks_of_any_tenant(stack: ExitStack) -> None:
    tenants: dict[str, str] = {}
    before = jetstream_ledger.JetStreamLedger.create

    async def create(self: Any, record: Any, grant: str) -> Any:
        tenants[record.txn] = record.tenant
        return await before(self, record, grant)

    put(stack, jetstream_ledger.JetStreamLedger, "create", create)
    turn = jetstream_ledger.JetStreamLedger.turn
    newest = jetstream_ledger.JetStreamLedger.newest

    def any_turn(self: Any, tenant: str, txn: str, *more: Any) -> Any:
        return turn(self, tenants.get(txn, tenant), txn, *more)

    async def any_newest(self: Any, tenant: str, txn: str) -> Any:
        return await newest(self, tenants.get(txn, tenant), txn)

    put(stack, jetstream_ledger.JetStreamLedger, "turn", any_turn)
    put(stack, jetstream_ledger.JetStreamLedger, "newest", any_newest)


@bug
def all_tenants_share_one_account(stack: ExitStack) -> None:
    before = kv_accounts.KvAccounts.reserve

    async def reserve(self: Any, whose: Whose, amount: Any) -> Any:
        return await before(self, whose._replace(tenant="default"), amount)

    put(stack, kv_accounts.KvAccounts, "reserve", reserve)
