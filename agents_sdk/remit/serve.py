"""An agent's side of a dispatch: from the message on the bus to exactly one final frame."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

import msgspec

from remit.caller import worst
from remit.errors import InputNeeded, Refused, ToolFailed, as_refused, refused
from remit.flow import Flow
from remit.hop import Hop
from remit.link import Link
from remit.parked import LAST_WORD, Parked
from remit.plain import plain
from remit.renewal import keep, needed
from remit.schema import Skill
from remit_schemas.callee import Seen, answer_subject, check_dispatch
from remit_schemas.control import goes_on, parse_control
from remit_schemas.envelope import (
    MAX_ENVELOPE,
    Dispatch,
    Error,
    Result,
    Started,
    encode,
    parse_dispatch,
)
from remit_schemas.errors import Code, Effect, ErrorBody, Refusal, refusal
from remit_schemas.grant import Grant, parse, verify
from remit_schemas.keys import KeySet
from remit_schemas.model_prices import ModelPrices
from remit_schemas.names import parse_resource
from remit_schemas.parts import split
from remit_schemas.subjects import parse_service

log: Final = logging.getLogger("remit")

_SPARE: Final = 256
"""Bytes of an envelope that the broker may add to a result."""


class Trust:
    """Whose grants count: the keys may be read again when a grant names one that is not known yet."""

    def __init__(self, me: str, issuer: str, keys: KeySet, reload: Callable[[], KeySet]) -> None:
        self.me: Final = me
        self.issuer: Final = issuer
        self.keys = keys
        self._reload = reload
        self._reloaded = float("-inf")
        self._seen = Seen()

    def take(self, dispatch: Dispatch, now: float) -> Grant:
        """The grant of a dispatch that may be served at ``now`` (Unix seconds), once. Raises a refusal."""
        try:
            grant = self._check(dispatch, now)
        except Refusal as no:
            # Keys are rotated; at most one reading a second, or unknown kids would be a way to keep us busy.
            if no.body.rule != "grant.kid" or now - self._reloaded < 1.0:
                raise
            self._reloaded, self.keys = now, self._reload()
            grant = self._check(dispatch, now)
        self._seen.take(dispatch, now * 1000)
        return grant

    def verified(self, token: str) -> Grant:
        """A grant for this agent. Raises :class:`~remit.errors.Refused`."""
        with as_refused():
            return verify(parse(token), self.keys, issuer=self.issuer, audience=self.me, now=time.time())

    def _check(self, dispatch: Dispatch, now: float) -> Grant:
        return check_dispatch(
            dispatch, me=self.me, kind="agent", keys=self.keys, issuer=self.issuer, now=now, seen=self._seen
        )


class Worker:
    """The hops that an agent has in hand. They run side by side."""

    def __init__(
        self, link: Link, trust: Trust, skills: Mapping[str, Skill], concurrency: int, prices: ModelPrices | None = None
    ) -> None:
        self._link, self._trust, self._skills, self._concurrency = link, trust, skills, concurrency
        self._hops: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._working: dict[tuple[str, str], Hop] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._renewing: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._cancelled: set[tuple[str, str]] = set()
        self.prices = prices or ModelPrices({})
        """Of models, as the broker says them."""
        self._flows: dict[tuple[str, str], Flow] = {}

    def __len__(self) -> int:
        return len(self._hops)

    def take(self, subject: str, data: bytes) -> None:
        """Begin what a message asks for, or refuse it. Never waits, never raises."""
        self._receive(subject, data, lambda dispatch, where: self._run(subject, dispatch, where))

    def _receive(self, subject: str, data: bytes, begin: Callable[[Dispatch, str], None]) -> None:
        try:
            dispatch = parse_dispatch(data)
            where = answer_subject(self._trust.me, dispatch)
        except Refusal as no:
            log.warning("%s dropped a message on %s that is no dispatch: %s", self._trust.me, subject, no.body.message)
            return
        if where is None:
            return
        try:
            begin(dispatch, where)
        except (Refusal, Refused) as no:
            log.warning("%s refused a dispatch on %s: %s", self._trust.me, subject, no.body.message)
            if no.body.code not in (Code.DUPLICATE, Code.DEADLINE_EXCEEDED):
                self._answer(where, Error(error=no.body))

    def _run(self, subject: str, dispatch: Dispatch, where: str) -> None:
        _same_target(subject, dispatch)
        grant = self._trust.take(dispatch, time.time())
        self._room()
        skill = self._skill(dispatch)
        arguments = skill.bind(dispatch.args)
        hop = Hop(self._link, grant, dispatch, where, self.prices)
        hop._free = not skill.models
        key = (dispatch.txn, dispatch.hop)
        self._flows[key], self._working[key] = hop._flow, hop
        task = asyncio.get_running_loop().create_task(self._serve(hop, skill, arguments), name=f"hop {hop.id}")
        self._hops[key] = task

        def done(task: asyncio.Task[None]) -> None:
            # It may have been resumed meanwhile, and run anew.
            if self._hops.get(key) is task:
                del self._hops[key], self._working[key]
            if task.cancelled():
                # Cancelled before its first step, it could not answer for itself.
                self._flows.pop(key, None)
                self._answer(where, Error(error=_cancelled(key in self._cancelled, "none")), LAST_WORD)
                self._cancelled.discard(key)

        task.add_done_callback(done)

    def control(self, subject: str, data: bytes) -> None:
        """What the broker says of a hop in hand. The subject is our own inbox, where only the broker writes."""
        *_, txn, hop = subject.split(".")
        if goes_on(data):
            self._receive(subject, data, lambda dispatch, where: self._resume(subject, dispatch, where))
            return
        said = parse_control(data)
        flow = self._flows.get((txn, hop))
        if flow is not None:
            flow.hear(said)
        if said.cancel:
            self._stop((txn, hop))

    def _stop(self, key: tuple[str, str]) -> None:
        task = self._hops.get(key)
        if task is not None:
            self._cancelled.add(key)
            task.cancel()

    def _resume(self, subject: str, dispatch: Dispatch, where: str) -> None:
        """An input has come to this very connection: for a skill that waits for it, or to run it again."""
        if dispatch.resumed is None or subject.split(".")[-2:] != [dispatch.txn, dispatch.hop]:
            raise refusal(
                Code.MALFORMED,
                "only what goes on is dispatched so",
                rule="dispatch.subject",
                ask="send to svc.<resource>",
            )
        key = (dispatch.txn, dispatch.hop)
        hop = self._working.get(key)
        if hop is None or not hop._waits:
            self._run(f"svc.{dispatch.resource.replace('/', '.')}", dispatch, where)
            return
        hop._go_on(self._trust.take(dispatch, time.time()), dispatch, where)
        self._flows[key] = hop._flow
        self._begin(self._start(where))
        self._keep(hop)

    async def finish(self, seconds: float) -> None:
        """Wait for the hops in hand, then cancel those that remain; each sends its final frame all the same. What waits for an input
        is let go at once: it stays parked, for another process.
        """
        for key, hop in tuple(self._working.items()):
            if hop.parked:
                self._hops[key].cancel()
        if self._hops:
            await asyncio.wait(set(self._hops.values()), timeout=seconds)
        for task in tuple(self._hops.values()):
            task.cancel()
        # Not for ever: a skill may ignore its cancellation, and the bus may stay away.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORD):
                while self._hops or self._answering:
                    await asyncio.gather(*self._hops.values(), *self._answering, return_exceptions=True)

    def _room(self) -> None:
        if sum(not hop.parked for hop in self._working.values()) >= self._concurrency:
            raise refusal(
                Code.TARGET_UNAVAILABLE, f"{self._trust.me} works on {self._concurrency} calls already",
                rule="agent.concurrency", ask="call again shortly", retry_after=1.0,
            )  # fmt: skip

    def _skill(self, dispatch: Dispatch) -> Skill:
        op = parse_resource(dispatch.resource).op
        skill = self._skills.get(op)
        if skill is None:
            has = ", ".join(sorted(self._skills)[:16])
            raise refusal(
                Code.UNKNOWN_TARGET, f"{self._trust.me} has no skill {op!r}", rule="agent.skill", ask=f"it has {has}"
            )
        return skill

    def _answer(self, where: str, frame: Result | Error, seconds: float = 0) -> None:
        async def tell() -> None:
            with contextlib.suppress(Refused):
                await self._link.tell(where, encode(frame), seconds)

        self._begin(tell())

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _finish(self, hop: Hop, frame: Result | Error) -> None:
        """The final frame of a hop, in parts where it has to be."""
        seconds = max(hop.remaining, LAST_WORD)
        try:
            with contextlib.suppress(Refused, TimeoutError):
                if isinstance(frame, Result) and len(encode(frame)) > MAX_ENVELOPE:
                    async with asyncio.timeout(seconds):
                        frame = await self._parts(hop, frame)
                await self._link.tell(hop._where, encode(frame), seconds)
        finally:
            if self._flows.get((hop.txn, hop.id)) is hop._flow:
                del self._flows[hop.txn, hop.id]

    async def _parts(self, hop: Hop, whole: Result) -> Result:
        """Send the value in parts, no faster than the broker takes them; what then ends the hop."""
        count = 0
        for part in split(whole.value):
            if not await hop._flow.part():
                break
            await self._link.tell(hop._where, encode(part))
            count += 1
        return msgspec.structs.replace(whole, value=None, parts=count)

    async def _start(self, where: str) -> None:
        await self._link.tell(where, encode(Started(connection=self._link.connection)))

    def _keep(self, hop: Hop) -> None:
        """Renew the grant of a hop that may last longer than it, for as long as this works on it."""
        key = (hop.txn, hop.id)
        self._keep_no_more(hop)
        if needed(hop):
            work = asyncio.get_running_loop().create_task(keep(hop, self._trust.verified, lambda: self._stop(key)))
            self._renewing[key] = hop._renewing = work

    def _keep_no_more(self, hop: Hop) -> None:
        work, hop._renewing = hop._renewing, None
        if work is not None:
            work.cancel()
            if self._renewing.get((hop.txn, hop.id)) is work:
                del self._renewing[hop.txn, hop.id]

    async def _serve(self, hop: Hop, skill: Skill, arguments: dict[str, Any]) -> None:
        key = (hop.txn, hop.id)
        final: Result | Error | None = Error(error=_failed("it ended without an answer", "unknown"))
        try:
            await self._start(hop._where)
            self._keep(hop)
            async with asyncio.timeout(hop.remaining) as hop._clock:
                value = await skill.function(hop, **arguments)
            final = result_of(value, hop)
        except Parked:
            # It has asked for an input, which was its last word for now.
            final = None
        except asyncio.CancelledError:
            final = Error(error=_cancelled(key in self._cancelled))
        except TimeoutError as error:
            late = hop.remaining <= 0
            final = Error(error=_late() if late else _crashed(error, skill, hop))
        except (Exception, SystemExit) as error:
            final = Error(error=_body(error, skill, hop))
        finally:
            self._cancelled.discard(key)
            self._keep_no_more(hop)
            if hop.parked:
                # However it ended: the request for an input was its last word, and what it would say now is for nobody.
                final = None
            # INVARIANT: one final frame, whatever happened above (test_a_cancelled_hop_ends_with_exactly_one_final_frame). It
            # is sent by a task of its own, since this one may be cancelled once more while it waits.
            if final is not None:
                hop.settle()
                self._begin(self._finish(hop, msgspec.structs.replace(final, cost=hop.reported)))
            elif self._flows.get(key) is hop._flow:
                del self._flows[key]
            await hop._end()


def result_of(value: Any, hop: Hop) -> Result:
    """The frame of a skill's result. Raises :class:`~remit.errors.Refused` with RESULT_INVALID for what cannot be sent."""
    done = worst("happened", hop.effect)
    frame = Result(value=plain(value, "the result", Code.RESULT_INVALID, done))
    size, largest = len(encode(frame)), max(MAX_ENVELOPE - _SPARE, hop._largest)
    if size > largest:
        raise refused(
            Code.RESULT_INVALID, f"the result has {size} bytes, at most {largest} can be sent", rule="result.size",
            ask="ask for less, or for a reference", effect=done,
        )  # fmt: skip
    return frame


def _body(error: BaseException, skill: Skill, hop: Hop) -> ErrorBody:
    """What the caller is told. A refusal says what it says; of any other exception only its type, never its text."""
    if isinstance(error, Refused):
        # What the skill did before counts as well: with an effect, the whole must not be called again.
        effect = worst(error.effect, hop.effect)
        retryable = error.body.retryable and effect == "none"
        return msgspec.structs.replace(error.body, effect=effect, retryable=retryable)
    if isinstance(error, InputNeeded):
        return _failed(f"{error.resource} asks for an input", worst("happened", hop.effect))
    if isinstance(error, ToolFailed):
        return _failed(f"{error.resource} failed", worst("happened", hop.effect))
    return _crashed(error, skill, hop)


def _crashed(error: BaseException, skill: Skill, hop: Hop) -> ErrorBody:
    log.error("the skill %s failed in hop %s of txn %s", skill.name, hop.id, hop.txn, exc_info=error)
    return _failed(type(error).__name__, worst(skill.effect, hop.effect))


def _failed(what: str, effect: Effect) -> ErrorBody:
    return refusal(
        Code.INTERNAL, f"the skill failed: {what}", rule="skill.failed", ask="see the log of the agent", effect=effect
    ).body


def _late() -> ErrorBody:
    return refusal(
        Code.DEADLINE_EXCEEDED, "the skill did not end before the deadline", rule="skill.deadline", effect="unknown",
        ask="allow more time, or ask for less work in one call",
    ).body  # fmt: skip


def _cancelled(asked: bool, effect: Effect = "unknown") -> ErrorBody:
    why = "the call was cancelled" if asked else "the agent stopped while it worked"
    return refusal(
        Code.CANCELLED, why, rule="skill.cancelled", ask="call again if it is still wanted", effect=effect
    ).body


def _same_target(subject: str, dispatch: Dispatch) -> None:
    at, resource = parse_service(subject), parse_resource(dispatch.resource)
    if at != (resource.kind, resource.name, resource.op):
        raise refusal(
            Code.MALFORMED, "the subject and the resource differ", rule="dispatch.subject", ask="send to svc.<resource>"
        )
