"""Stage 10. Is it still right, and still in time? Then hand it over, once, and relay frames until it ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from remit_broker.core.policy import Verdict
from remit_broker.core.times import seconds_of
from remit_broker.hop.authorize import authorize
from remit_broker.hop.between import after
from remit_broker.hop.detach import detach
from remit_broker.hop.hop import Hop
from remit_broker.hop.inspect_result import release, spoken
from remit_broker.hop.parts import Gathering
from remit_broker.hop.resolve import resolve
from remit_broker.hop.revoked import nothing_stops
from remit_broker.hop.vaulted import keep_arguments
from remit_broker.ports import MAX_FRAMES, CallerCancelled, Channel, Parties, Ports, Withdrawn
from remit_schemas.envelope import (
    Accepted,
    Dispatch,
    Error,
    Event,
    Frame,
    InputRequired,
    Part,
    Progress,
    Result,
    Resumed,
    Started,
    parse_frame,
)
from remit_schemas.errors import Code, Effect, Refusal, after_effect, refusal
from remit_schemas.names import is_connection

LAG = 2.0
"""Seconds from the beginning of the opening to the dispatch after which the ledger is asked again."""
MAX_BEFORE_END = 4 * 1024 * 1024
"""Bytes of all output of one hop before its end: each frame is read, searched and judged, which the other hops wait for."""


async def dispatch(hop: Hop, ports: Ports) -> Hop:
    """The hop with its callee's final frame, not yet inspected.

    Refuses TARGET_UNAVAILABLE (nobody heard it: effect none) or DEADLINE_EXCEEDED (effect unknown once it was sent).
    """
    await same_world(hop, ports, resolve)
    if ports.clock.monotonic() >= hop.mono_deadline:
        raise _late("none")
    aim, record = hop.aim, hop.intent
    parties = Parties(
        hop.ask.caller, aim.callee, (*hop.chain, aim.callee), hop.held.claims.sub, hop.resource, record.tenant
    )
    await keep_arguments(hop, ports)
    if hop.request.detach:
        return await detach(hop, ports)
    async with ports.bus.channel(parties, record.txn, hop.id) as channel:
        await ports.bus.answer(hop.ask.reply, Accepted(txn=record.txn, hop=hop.id, replica=ports.bus.replica))
        call = Dispatch(
            txn=record.txn,
            hop=hop.id,
            replica=ports.bus.replica,
            resource=str(hop.resource),
            grant=hop.token,
            args=hop.args,
            deadline=hop.deadline,
            resumed=None if hop.parked is None else Resumed(n=hop.parked.n + 1, input=hop.input),
            parts=ports.room.largest if hop.request.parts else 0,
            window=hop.request.window,
            meta=hop.meta,
        )
        waiting = hop.parked.connection if hop.parked is not None else ""
        await _still_open(hop, ports)
        await _send(hop, ports, call, waiting)
        ports.failpoints.hit("sent")
        try:
            return await _relay(hop, ports, channel, otherwise=call if waiting else None)
        except _Unheard:
            raise
        except Refusal as no:
            # INVARIANT: what was sent is not said to have had no effect (test_a_refusal_after_the_dispatch_is_not_to_be_retried).
            raise Refusal(after_effect(no.body, "unknown"), no.cause) from None


class _Unheard(Refusal):
    """Nobody listened to what was sent, or nobody began with it."""


async def _send(hop: Hop, ports: Ports, call: Dispatch, waiting: str = "") -> None:
    """To the connection that waits for it, or to any of the callee's."""
    # INVARIANT: what was revoked after the opening is not sent (test_what_is_revoked_between_opening_and_dispatch_is_not_sent).
    nothing_stops(hop, ports)
    if waiting:
        await ports.bus.resume(hop.aim.callee, waiting, call)
    else:
        await ports.bus.dispatch(hop.resource, hop.aim.callee, call)


async def same_world(hop: Hop, ports: Ports, resolving: Callable[[Hop, Ports], Awaitable[Hop]]) -> None:
    """Policy or registry changed since the decision: decide again; what would now be otherwise is not sent.

    ``resolving`` is the stage that found the target.
    """
    decided = hop.intent.epochs
    if (decided.policy, decided.registry) == (ports.policy.revision, ports.registry.revision):
        return
    again = await authorize(await resolving(hop, ports), ports)
    # INVARIANT: an approval is for the policies under which it was given
    # (test_policies_that_change_between_opening_and_dispatch_void_an_approval).
    void = hop.approval is not None and decided.policy != ports.policy.revision
    if void or (again.aim.definition, _obligations(again.judged)) != (hop.aim.definition, _obligations(hop.judged)):
        raise refusal(
            Code.POLICY_DENIED, "policy or the target's definition changed while this call was opening",
            rule="dispatch.epoch", ask="repeat the call",
        )  # fmt: skip


def _obligations(verdict: Verdict) -> tuple[object, ...]:
    return verdict.approvals, verdict.approve, verdict.redact, verdict.cap, verdict.label


async def _still_open(hop: Hop, ports: Ports) -> None:
    """Where time was lost since the opening, the ledger is asked whether the hop is open still. Refuses CANCELLED, or as the ledger.

    INVARIANT: a replica that was frozen between opening and dispatch causes nothing later than others believe. They close its
    hops once it has been silent *and* the newest grant has expired; when it goes on, it finds them closed here
    (test_a_replica_that_was_frozen_before_its_dispatch_sends_nothing_when_it_goes_on). If it is frozen again right after this
    look, what it sends then carries a grant that has expired, which the callee refuses
    (test_a_hostile_dispatch_never_runs_the_skill).
    """
    began, at = hop.began, seconds_of(hop.intent.at)
    # The wall clock too: the monotonic one stands still while a machine sleeps. If it jumps, one look more does no harm.
    while max(ports.clock.monotonic() - began, ports.clock.now() - at) > LAG:
        began, at = ports.clock.monotonic(), ports.clock.now()
        fold = await ports.ledger.newest(hop.intent.tenant, hop.intent.txn)
        if not fold.is_open(hop.id):
            raise refusal(
                Code.CANCELLED, "the call was closed before it could be sent: its broker had been silent for too long",
                rule="dispatch.closed", ask="call again", retry_after=1.0,
            )  # fmt: skip
        if began >= hop.mono_deadline:
            raise _late("none")


async def _relay(hop: Hop, ports: Ports, channel: Channel, otherwise: Dispatch | None = None) -> Hop:
    """``otherwise`` is what any connection of the callee gets, where the one that was asked first is gone."""
    started, room = "", MAX_BEFORE_END
    heard: tuple[str, ...] = ()
    gathering = Gathering(ports.room if hop.request.parts else None, hop.id, hop.aim.callee)
    try:
        for _ in range(MAX_FRAMES):
            try:
                data = await channel.next(hop.mono_deadline - ports.clock.monotonic())
            except TimeoutError:
                raise _late("unknown") from None
            except CallerCancelled:
                raise refusal(
                    Code.CANCELLED, "the caller does not wait for this call any more", rule="dispatch.cancelled",
                    ask="look at the chain before calling again", effect="unknown",
                ) from None  # fmt: skip
            except Withdrawn as word:
                raise refusal(
                    Code.CANCELLED, f"{word} while this call ran", rule=word.rule,
                    ask="look at the chain before doing anything again; an operator can lift it: remit reinstate", effect="unknown",
                ) from None  # fmt: skip
            if data is None:
                if started:
                    continue
                if otherwise is not None:
                    # INVARIANT: nobody has heard it yet, so it is still dispatched once
                    # (test_an_input_goes_to_another_connection_where_the_one_that_parked_is_gone).
                    await _send(hop, ports, otherwise)
                    otherwise = None
                    continue
                no = refusal(
                    Code.TARGET_UNAVAILABLE, f"{hop.aim.callee} is not connected", rule="dispatch.no-responders",
                    ask=f"start {hop.aim.callee}, then call again", retry_after=1.0,
                )  # fmt: skip
                raise _Unheard(no.body)
            try:
                frame = parse_frame(data)
            except Refusal as bad:
                raise refusal(
                    Code.RESULT_INVALID, f"{hop.aim.callee} answered with something that is no frame", rule="dispatch.frame",
                    ask="tell whoever runs it", effect="unknown", cause=str(bad),
                ) from None  # fmt: skip
            if isinstance(frame, InputRequired):
                return hop.with_(final=frame, final_size=len(data), connection=started, heard=heard)
            if _busy(hop, frame):
                no = refusal(
                    Code.TARGET_UNAVAILABLE, f"{hop.aim.callee} has no room for the input now", rule="dispatch.busy",
                    ask="send the input again shortly", retry_after=1.0,
                )  # fmt: skip
                raise _Unheard(no.body)
            if isinstance(frame, Result | Error):
                final = await gathering.end(frame, ports)
                return hop.with_(final=final, final_size=len(data) + gathering.size, heard=heard)
            if isinstance(frame, Part):
                said = gathering.take(frame)
                if said is not None:
                    await ports.bus.tell(hop.aim.callee, started, (hop.intent.txn, hop.id), said)
                continue
            # INVARIANT: what comes before the end is bounded (test_a_callee_that_pours_out_data_before_its_end_is_cut_off).
            room -= len(data)
            if room < 0:
                break
            if isinstance(frame, Progress | Event):
                await ports.bus.answer(hop.ask.reply, await release(hop, ports, frame, len(data), heard))
                heard = after(heard, spoken(frame))
            if isinstance(frame, Started) and not started and is_connection(frame.connection):
                started = frame.connection
                if hop.request.window is not None:
                    channel.worker = started
                ports.failpoints.hit("started")
        raise refusal(
            Code.RESULT_INVALID,
            f"{hop.aim.callee} sent more than {MAX_FRAMES} frames or {MAX_BEFORE_END} bytes before its end",
            rule="dispatch.frames", ask="have it send less, or a reference", effect="unknown",
        )  # fmt: skip
    except BaseException as why:
        # INVARIANT: whichever way this ends before the callee has ended, the callee hears that nobody waits
        # (test_a_callee_is_told_to_stop_whichever_way_its_call_ends).
        if not isinstance(why, _Unheard):
            await stop(hop, ports, started)
        raise


def _busy(hop: Hop, frame: Frame) -> bool:
    """Whether the callee says of an input that it has not begun.

    INVARIANT: an input that meets a busy agent is not lost with the work: the hop waits for another attempt
    (test_an_input_that_meets_a_busy_agent_leaves_the_hop_parked).
    """
    if hop.parked is None or not isinstance(frame, Error):
        return False
    return frame.error.code is Code.TARGET_UNAVAILABLE and frame.error.effect == "none"


async def stop(hop: Hop, ports: Ports, connection: str) -> None:
    """Nobody waits for the answer any more: tell whoever works on it, or will say that it does."""
    await ports.bus.cancel(hop.aim.callee, connection, hop.intent.txn, hop.id)


def _late(effect: Effect) -> Exception:
    return refusal(
        Code.DEADLINE_EXCEEDED, "the deadline passed before the answer came", rule="dispatch.deadline",
        ask="allow more time, or ask for less work in one call", effect=effect,
    )  # fmt: skip
