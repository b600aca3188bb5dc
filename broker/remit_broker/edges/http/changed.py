"""What operators changed of who and what is let in, in the chain of what they did: registrations, removals, accepted definitions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from remit_broker.core.admin import AdminRecord
from remit_broker.core.revocations import Entry, State, What
from remit_broker.core.times import rfc3339
from remit_broker.edges.http.pins import Acceptance, looked_at
from remit_schemas.errors import Refusal, refusal

if TYPE_CHECKING:
    from remit_broker.core.registry import Principal
    from remit_broker.edges.http.desk import Call


async def registered(principal: Principal, at: Call) -> int:
    """Register, and record it; the number of the record. Refuses as the registry does."""
    await at.desk.directory.add(principal)
    return await _after("principal", principal.name, "registered", principal.nkey, at)


async def removed(name: str, at: Call) -> int:
    """Forget, and record it; the number of the record. Refuses UNKNOWN_TARGET."""
    nkey = next((one.nkey for one in at.desk.directory.principals() if one.name == name), "")
    await at.desk.directory.remove(name)
    return await _after("principal", name, "removed", nkey, at)


async def accepted(name: str, wanted: Acceptance, at: Call) -> dict[str, Any]:
    """Record that definitions are accepted, and accept them. Refuses as :func:`~remit_broker.edges.http.pins.looked_at`.

    INVARIANT: nothing is accepted without a record of who did (test_nothing_is_accepted_without_a_record).
    """
    looked_at(name, wanted, at.desk.directory)
    detail = msgspec.json.encode({"digests": wanted.digests, "forget": wanted.forget}).decode()
    record = await _record("definitions", name, "accepted", detail, at)
    try:
        names = await at.desk.directory.accept(name, wanted.digests, forget=wanted.forget)
    except Refusal as no:
        # It changed in that very moment: what was recorded did not happen, and that is recorded as well.
        await _record("definitions", name, "withdrawn", detail, at, why=no.body.message)
        raise
    return {"accepted": names, "record": record.seq}


async def _after(kind: What, name: str, state: State, detail: str, at: Call) -> int:
    """The record of what was done already: who is let in is said by the registry, and a record says by whom."""
    try:
        return (await _record(kind, name, state, detail, at)).seq
    except Refusal as no:
        raise refusal(
            no.body.code, f"{name} is {state}, but that could not be recorded", rule="agents.unrecorded",
            ask="do it again; until then it is in no history", effect="happened", cause=no.cause,
        ) from None  # fmt: skip


async def _record(kind: What, name: str, state: State, detail: str, at: Call, why: str = "") -> AdminRecord:
    now = rfc3339(at.desk.ports.clock.now())
    entry = Entry(kind=kind, name=name, who=at.who, at=now, why=why, state=state, detail=detail, tenant=at.tenant)
    return await at.desk.admin.append(entry)
