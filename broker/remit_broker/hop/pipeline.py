"""One hop, in the order that is the security argument: everything is decided and durable before anything happens.

Read the tuples, then :func:`govern`. Each stage is ``async def stage(hop, ports) -> hop`` in a file of its own, raises a
:class:`~remit_schemas.errors.Refusal` to stop, and neither logs nor traces: records, spans and logs are made here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

import msgspec

from remit_broker.current import ABOUT, About
from remit_broker.hop.admit import admit
from remit_broker.hop.approve import Demanded, approve
from remit_broker.hop.authorize import authorize
from remit_broker.hop.close import close
from remit_broker.hop.dispatch import dispatch, stop
from remit_broker.hop.hop import Ask, Closed, Denied, Hop, Refused
from remit_broker.hop.inspect import inspect
from remit_broker.hop.inspect_result import inspect_result
from remit_broker.hop.keep import keep
from remit_broker.hop.narrow import narrow
from remit_broker.hop.open import open_
from remit_broker.hop.park import park
from remit_broker.hop.refuse import answer_of, refuse
from remit_broker.hop.request import request
from remit_broker.hop.resolve import resolve
from remit_broker.hop.transform import transform
from remit_broker.hop.vaulted import keep_answer
from remit_broker.hop.verify import verify
from remit_broker.ledger_port import LostRace
from remit_broker.ports import Ports, Recipient
from remit_schemas.envelope import Error, InputRequired, Result
from remit_schemas.errors import Code, ErrorBody, after_effect, refusal
from remit_schemas.records import HopClosed, HopOpened, HopParked

T = TypeVar("T")
Stage = Callable[[Hop, Ports], Awaitable[Hop]]

DECIDE: Final[tuple[Stage, ...]] = (admit, verify, resolve, narrow, inspect, authorize, transform, approve)
"""Nothing has happened yet; a refusal here is a ``hop.refused``."""

AGAIN: Final[tuple[Stage, ...]] = (verify, narrow, inspect, authorize, transform, approve)
"""After the txn grew under a decision: the same questions on the new fold."""

EFFECT: Final[tuple[Stage, ...]] = (dispatch, inspect_result)
"""The hop exists and will be closed, or parked until its caller resumes it: then the stages run again, up to its end."""


STAGES: Final = (*DECIDE, open_, *EFFECT, close)
"""All twelve, in order."""


async def govern(ask: Ask, ports: Ports) -> Closed | Refused:
    """One hop, from the request on the bus to its close record. The only place that turns an exception into an answer."""
    trail = Trail(Hop(ask=ask, id=ports.ids.hop()))
    ABOUT.set(About(ask.txn, trail.hop.id))
    try:
        await trail.through(DECIDE, ports)
        await append_intent(trail, ports)
    except Demanded:
        return await refuse(trail.hop, trail.stage, await request(trail.hop, ports), ports)
    except (Exception, asyncio.CancelledError) as error:
        return await refuse(trail.hop, trail.stage, error, ports)
    # INVARIANT: from here a hop.opened record (or hop.resumed) is durable, so exactly one hop.closed follows in the end
    # (test_a_broker_killed_at_any_point_loses_and_repeats_nothing).
    body: ErrorBody | None = None
    try:
        await trail.through(EFFECT, ports)
    except (Exception, asyncio.CancelledError) as error:
        body = answer_of(error, ports, "unknown")
        if trail.hop.final is not None:
            # INVARIANT: work that was done is charged as reported and not done again, whatever keeps its result back
            # (test_a_result_that_cannot_be_inspected_is_charged_and_not_to_be_retried).
            body = after_effect(body, "happened")
    try:
        return await _close(trail.hop, ports, body)
    finally:
        ports.room.give_back(trail.hop.id)


class Trail:
    """Where a hop is: the value as the last completed stage left it, and the stage it is in, for the record of a refusal."""

    def __init__(self, hop: Hop) -> None:
        self.hop = hop
        self.stage = "admit"

    async def through(self, stages: tuple[Stage, ...], ports: Ports) -> None:
        """Run ``stages`` in order."""
        for stage in stages:
            self.stage = stage.__name__
            try:
                self.hop = await stage(self.hop, ports)
            except Denied as no:
                # INVARIANT: the record of a denial names the decision, its revision and what was asked
                # (test_an_edit_is_taken_while_the_broker_runs_and_the_revision_is_in_every_record).
                self.hop = no.hop
                raise
            ports.failpoints.hit(self.stage)


async def append_intent(trail: Trail, ports: Ports) -> None:
    """Append the intent; whenever the txn has grown since the decision, decide again first, in this replica's turn."""
    async with ports.ledger.turn(trail.hop.ask.tenant, trail.hop.ask.txn) as turn:
        while True:
            if turn.fold.hash != trail.hop.past.hash:
                trail.hop = trail.hop.with_(fold=turn.fold)
                await trail.through(AGAIN, ports)
            trail.stage = "open"
            opened = await open_(trail.hop, ports, turn)
            if not isinstance(opened, LostRace):
                trail.hop = opened
                break
            trail.hop = trail.hop.with_(rated=True)
    ports.observer.opened(trail.hop.resource.kind, ports.clock.monotonic() - trail.hop.ask.mono)
    ports.failpoints.hit("open" if trail.hop.parked is None else "resume")


async def _close(hop: Hop, ports: Ports, body: ErrorBody | None) -> Closed:
    """Close (or park), then release: the caller hears the end of its hop only after that end is durable."""
    record: HopClosed | HopParked | None
    # An input that nobody heard is not lost with the work: the hop waits for another attempt.
    unheard = body if hop.parked is not None and body is not None and body.effect == "none" else None
    try:
        record = await _shielded(_end(hop, ports, body, unheard))
    except (Exception, asyncio.CancelledError) as error:
        # The record is missing, so the result is not released; the scan closes the hop later and charges what it held.
        ports.observer.fault("close", error)
        record, body = None, answer_of(error, ports, "unknown")
    else:
        if record is None:
            body = _closed_by_another()
    ports.failpoints.hit("park" if isinstance(record, HopParked) else "close")
    frame = _final(hop, body, record)
    if isinstance(record, HopClosed):
        _observe(hop, record, ports)
    if isinstance(hop.final, InputRequired) and not isinstance(record, HopParked):
        # It waits for an input that will not come (test_a_request_that_is_not_released_ends_the_hop_and_tells_the_callee).
        await stop(hop, ports, hop.connection)
    await _release(hop, ports, frame)
    return Closed(hop=hop, record=record, frame=frame)


async def _end(
    hop: Hop, ports: Ports, body: ErrorBody | None, unheard: ErrorBody | None
) -> HopClosed | HopParked | None:
    if body is None:
        await keep_answer(hop, ports)
    if unheard is not None or (body is None and isinstance(hop.final, InputRequired)):
        return await park(hop, ports, unheard)
    if not hop.request.keep:
        return await close(hop, ports, body)
    if body is None:
        await keep(hop, ports)
    ports.failpoints.hit("keep")
    record = await close(hop, ports, body)
    # Somebody may wait for it at any replica.
    await ports.bus.ended(hop.ask.tenant, hop.ask.txn, hop.id)
    return record


def _observe(hop: Hop, record: HopClosed, ports: Ports) -> None:
    """One span per hop: of one that was parked, the opening is known from the fold."""
    if isinstance(hop.intent, HopOpened):
        ports.observer.closed(hop.intent, record, hop.past)
    else:
        ports.observer.swept(hop.past.nodes[hop.id], record, hop.past, hop.intent)


async def _release(hop: Hop, ports: Ports, frame: Result | Error | InputRequired) -> None:
    if hop.request.parts and isinstance(frame, Result):
        await ports.bus.release(Recipient(hop.ask.reply, hop.ask.caller, hop.ask.txn, hop.id), frame)
    else:
        await ports.bus.answer(hop.ask.reply, frame)


async def _shielded(work: Coroutine[Any, Any, T]) -> T:
    """Finish ``work`` even when the task that waits for it is cancelled meanwhile."""
    task = asyncio.get_running_loop().create_task(work)
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise
    return task.result()


def _final(hop: Hop, body: ErrorBody | None, record: HopClosed | HopParked | None) -> Result | Error | InputRequired:
    spent = record.spent if record else None
    if body is not None:
        return Error(error=msgspec.structs.replace(body, txn=hop.ask.txn, hop=hop.id), cost=spent)
    if hop.result is None:
        raise RuntimeError("a hop without a result and without a reason")
    frame = hop.result.frame
    if isinstance(frame, Error):
        return msgspec.structs.replace(
            frame, cost=spent, error=msgspec.structs.replace(frame.error, txn=hop.ask.txn, hop=hop.id)
        )
    return msgspec.structs.replace(frame, cost=spent)


def _closed_by_another() -> ErrorBody:
    return refusal(
        Code.CANCELLED, "the hop was closed while it ran: it, or one above it, had ended or run out of time",
        rule="close.by-another", ask="look at the chain; ask for more time if it was the deadline", effect="unknown",
    ).body  # fmt: skip
