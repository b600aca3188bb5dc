"""Whoever holds a grant can call with it: an agent inside a hop, and the holder of a task's root grant alike."""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Awaitable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from msgspec import UNSET

from remit.again import Again
from remit.approvals import Asked, Wait, asked_by, asked_in, decided
from remit.detached import Detached
from remit.errors import InputNeeded, Refused, as_refused, refused
from remit.link import Link
from remit.plain import budget_of, details, plain, seconds
from remit.run import Run
from remit_schemas import subjects
from remit_schemas.budget import ONE_CALL, ZERO, Budget
from remit_schemas.envelope import MAX_WINDOW, Request, Want
from remit_schemas.errors import Code, Effect
from remit_schemas.grant import parse
from remit_schemas.names import parse_resource
from remit_schemas.scope import Detail

CALL_SECONDS: Final = 60.0
"""How long a call may take where nothing is said (and the hop or task has that long)."""

_MARGIN: Final = 1.0
"""Seconds by which a detached call ends before its task."""

_PAUSE: Final = 0.1
"""First pause in seconds before a retry that names none; doubled each time."""

_WEIGHT: Final[dict[Effect, int]] = {"none": 0, "unknown": 1, "happened": 2}

Scopes = Sequence[str | Detail]


def worst(a: Effect, b: Effect) -> Effect:
    """What may have happened after both: anything that happened counts."""
    return max(a, b, key=_WEIGHT.__getitem__)


@dataclass(frozen=True, eq=False)
class Call:
    """A call that begins when it is awaited, so that :meth:`Caller.gather` can still share a budget among several."""

    caller: Caller
    resource: str
    args: dict[str, Any]
    budget: Budget | str | None = None
    scopes: Scopes | None = None
    ttl: str | float | None = None
    max_depth: int | None = None
    key: str | None = None
    approval: str | None = None
    retry: int = 0
    window: int | None = None
    keep: bool = False
    resume: str | None = None
    input: Any = None
    detach: bool = False
    wait: Wait = False
    labels: Sequence[str] | None = None
    _begun: list[bool] = field(default_factory=list, repr=False)

    def __await__(self) -> Generator[Any, None, Any]:
        self._begun.append(True)
        return self._result().__await__()

    def __del__(self) -> None:
        if not self._begun:
            warnings.warn(f"the call of {self.resource} was never awaited", RuntimeWarning, stacklevel=2)

    def within(self, budget: Budget) -> Call:
        """This call with a budget, where it has none of its own."""
        self._begun.append(True)
        return replace(self, budget=self.budget if self.budget is not None else budget, _begun=[])

    async def start(self) -> Run:
        """Start it, once, and return when it is open. Raises :class:`~remit.errors.Refused`."""
        self._begun.append(True)
        run = await self.caller._begin(self)
        try:
            await run.accepted()
        except Refused as no:
            if not self._made_before(no):
                raise
            return self.caller._find({"resource": self.resource, "key": self.key}, self)
        return run

    def _made_before(self, no: Refused) -> bool:
        """Whether this very call was made before, by whoever held the grant then, and its result is kept."""
        return self.keep and no.code is Code.DUPLICATE

    async def _result(self) -> Any:
        """The value; where the call is to wait for a person, it does, and then makes the identical call again."""
        call = self
        while True:
            try:
                return await call._attempts()
            except Refused as no:
                about = asked_by(no)
                if not self.wait or about is None:
                    raise
                await self.caller._decided(about, self.wait)
                call = replace(call, approval=about.id, _begun=[True])
            except InputNeeded as need:
                about = asked_in(need.request)
                if not self.wait or about is None:
                    raise
                await self.caller._decided(about, self.wait)
                wishes = {
                    "budget": self.budget,
                    "scopes": self.scopes,
                    "ttl": self.ttl,
                    "labels": self.labels,
                    "wait": self.wait,
                }
                call = need.answer(about.answer(), **wishes)
                call._begun.append(True)

    async def _attempts(self) -> Any:
        first: Refused | None = None
        for attempt in range(self.retry + 1):
            try:
                return await (await self.caller._begin(self)).result()
            except Refused as no:
                # The broker takes a key once, even for a call that came to nothing: then the first answer stands.
                if first is not None and no.code is Code.DUPLICATE:
                    raise first from None
                if self._made_before(no):
                    return await self.caller._find({"resource": self.resource, "key": self.key}, self).result()
                first = first or no
                pause = no.retry_after if no.retry_after is not None else _PAUSE * 2**attempt
                # INVARIANT: only what had no effect is repeated (test_a_call_with_an_unknown_effect_is_not_repeated).
                if not no.retryable or attempt == self.retry or self.caller.remaining <= pause:
                    raise
            await asyncio.sleep(pause)
        raise AssertionError("a loop without a turn")


class Caller:
    """Calls under one grant. ``txn`` is the task's id; ``left`` is a local estimate, the ledger decides."""

    def __init__(self, link: Link, grant: str, txn: str, limit: Budget, until: float) -> None:
        """``until`` is the Unix second at which every call under this grant must have ended."""
        self.txn: Final = txn
        self.until = until
        self.effect: Effect = "none"
        self._link, self._grant = link, grant
        self._limit, self._spent, self._held = limit, ZERO, ZERO
        self._runs: set[Run] = set()
        # Calls that have asked for an input, each with what it was charged until then.
        self._asking: dict[str, tuple[Call, Budget]] = {}
        self._ended = False

    @property
    def remaining(self) -> float:
        """Seconds until the deadline."""
        return max(self.until - time.time(), 0.0)

    @property
    def left(self) -> Budget:
        """What is left of the budget, as far as it can be known here: what others spend under the same grant is not seen."""
        return self._limit.minus(self._spent).minus(self._held)

    def call(
        self, resource: str, /, *, args: dict[str, Any] | None = None, budget: Budget | str | None = None,
        scopes: Scopes | None = None, ttl: str | float | None = None, max_depth: int | None = None, key: str | None = None,
        approval: str | None = None, wait_for_approval: Wait = False, retry: int = 0, window: int | None = None,
        keep: bool = False, labels: Sequence[str] | None = None, **arguments: Any,
    ) -> Call:  # fmt: skip
        """Call ``agent/<agent>/<skill>`` or ``mcp/<server>/<tool>``; await it for the value.

        Arguments are given by keyword, or in ``args`` where a name is one of the wishes: ``budget`` (``"0.05usd 3calls"``, a share
        such as ``"1/4"``, or a Budget), ``scopes`` for the callee, ``labels`` of data that may reach it, ``ttl`` (``"30s"``),
        ``max_depth``, an idempotency ``key``, the id of an ``approval``, how often to ``retry`` what was refused without effect and may
        succeed later, and a ``window``: how many frames of output the callee may be ahead of what is read here (1 to 1024; left out,
        what is not read in time gets lost).
        With ``wait_for_approval`` a call that a person has to approve waits for that, and is then made again, the same: a task waits
        as long as it lives, a hop parks meanwhile; given a time (``"10m"``), either waits here, at most so long.
        With ``keep`` (and a ``key``) the broker keeps the result for a while: the same call, made again after a crash, gives it.
        Awaited, it raises :class:`~remit.errors.Refused` and :class:`~remit.errors.ToolFailed`.
        """
        return Call(
            self, resource, {**(args or {}), **arguments}, budget, scopes, ttl, max_depth, key, approval, retry, window,
            keep, wait=wait_for_approval, labels=labels,
        )  # fmt: skip

    async def approved(self, no: Refused, wait: str | float = "10m") -> str:
        """Wait until a person has decided on a call that was refused with ``no`` for want of an approval; its id.

        The identical call may then be made again: it goes through, or is refused with the reason. Raises ``no`` where it is about
        nothing that a person decides, and a refusal by the rule ``client.approval`` when nobody has decided in time.
        """
        about = asked_by(no)
        if about is None:
            raise no
        await decided(self, about, wait)
        return about.id

    async def _decided(self, about: Asked, wait: Wait) -> None:
        """Wait until a person has decided."""
        await decided(self, about, wait)

    async def start(self, resource: str, /, **wishes_and_arguments: Any) -> Run:
        """Like :meth:`call`, but return as soon as the call is open, for its progress. It is not retried."""
        return await self.call(resource, **wishes_and_arguments).start()

    async def resume(
        self, run_id: str, resource: str = "", /, *, input: Any = UNSET, args: dict[str, Any] | None = None,
        budget: Budget | str | None = None, scopes: Scopes | None = None, ttl: str | float | None = None, retry: int = 0,
        window: int | None = None, labels: Sequence[str] | None = None, **arguments: Any,
    ) -> Run:  # fmt: skip
        """Take up a call that was made before, by its id (:attr:`Run.id <remit.run.Run.id>`): its run, whose result can be awaited.

        With an ``input``, a call that asks for one goes on. One that was made elsewhere, before a crash perhaps, has to be named in
        full: its ``resource`` and its very arguments; the wishes are those of any call.

        Without, a call that was made with ``keep``: it may still run, or have ended while nobody was here to hear it.
        :meth:`~remit.run.Run.result` says how a call ended whose result was not kept, or is not any more.
        """
        if input is UNSET:
            return self._find({"hop": run_id}, None)
        given = {**(args or {}), **arguments}
        call = self._resumption(
            run_id,
            resource,
            input=input,
            args=given,
            budget=budget,
            scopes=scopes,
            ttl=ttl,
            retry=retry,
            window=window,
            labels=labels,
        )
        return await call.start()

    def _resumption(
        self, run_id: str, resource: str = "", *, input: Any, args: dict[str, Any] | None = None, **wishes: Any
    ) -> Call:
        """The call that goes on with ``input``."""
        call, _ = self._asking.get(run_id, (None, ZERO))
        if call is None and not resource:
            raise refused(
                Code.MALFORMED, f"{run_id} is no call that was made here and asks for an input", rule="call.resume",
                ask="name its resource and its arguments as well",
            )  # fmt: skip
        if call is not None and wishes.get("labels") is None:
            # What was not to reach the callee at first is not to reach it later.
            wishes["labels"] = call.labels
        return Call(
            self, resource or (call.resource if call else ""), args or (call.args if call else {}), resume=run_id, input=input,
            **wishes,
        )  # fmt: skip

    async def detach(
        self, resource: str, /, *, args: dict[str, Any] | None = None, budget: Budget | str | None = None,
        scopes: Scopes | None = None, ttl: str | float | None = None, labels: Sequence[str] | None = None, **arguments: Any,
    ) -> Detached:  # fmt: skip
        """Make a call that outlives this hop or task, in a task of its own; policy has to permit it. It is started when this returns.

        ``budget`` (at least two calls: one for leaving, one for the call) is moved there for good, and ``ttl`` is how long the
        new task lives, at most 8 h. Raises :class:`~remit.errors.Refused`.
        """
        call = Call(self, resource, {**(args or {}), **arguments}, budget, scopes, ttl, labels=labels, detach=True)
        call._begun.append(True)
        told = await (await self._begin(call)).result()
        with as_refused():
            claims = parse(told["grant"]).claims
        task = Caller(self._link, told["grant"], told["txn"], claims.budget, float(told["exp"]))
        lasts = told["exp"] - time.time() - _MARGIN if ttl is None else ttl
        wishes: dict[str, Any] = {"budget": claims.budget, "scopes": scopes, "ttl": lasts, "labels": labels}
        run = await task.call(resource, args=call.args, **wishes).start()
        return Detached(task, run)

    def _find(self, which: dict[str, Any], call: Call | None) -> Run:
        def ended(cost: Budget | None, effect: Effect) -> None:
            self._runs.discard(run)
            self._spent = self._spent + (cost or ZERO)
            self.effect = worst(self.effect, effect)

        resource = call.resource if call is not None else f"hop {which['hop']}"
        run = Run(self._link, resource, Again(self._link, self.txn, lambda: self._grant, which, self.until), ended)
        run.id = which.get("hop", "")
        self._runs.add(run)
        return run

    async def gather(self, *calls: Awaitable[Any], each: Budget | str | None = None) -> list[Any]:
        """Await calls side by side and return their values in order. ``each`` is the budget of those that name none.

        Should one fail, the others are cancelled and its exception is raised: nothing outlives this.
        """
        if each is not None:
            share = budget_of(each, self.left)
            calls = tuple(call.within(share) if isinstance(call, Call) else call for call in calls)
        for call in calls:
            if isinstance(call, Call):
                call._begun.append(True)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_awaited(call)) for call in calls]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _begin(self, call: Call) -> Run:
        if self._ended:
            raise refused(
                Code.GRANT_CLOSED,
                "the hop of this grant has ended",
                rule="client.ended",
                ask="call before the skill returns",
            )
        with as_refused():
            resource = parse_resource(call.resource)
        request = self._request(call)
        hold = request.want.budget or ONE_CALL
        _, before = self._asking.pop(call.resume or "", (None, ZERO))
        frames = await self._link.ask(
            subjects.request(self._link.name, self.txn, resource.kind, resource.name, resource.op), request
        )
        self._held = self._held + hold

        def ended(cost: Budget | None, effect: Effect) -> None:
            self._runs.discard(run)
            self._held = self._held.minus(hold)
            if effect != "none" or cost is not None:
                # What it was charged before it asked for an input counts already.
                self._spent = self._spent + (cost.minus(before) if cost is not None else hold)
            self.effect = worst(self.effect, effect)
            if run.asks:
                self._asking[run.id] = (call, cost or ZERO)
            elif call.resume is not None and effect == "none":
                # Nobody heard the input: it may be given again.
                self._asking[call.resume] = (call, before)

        run = Run(self._link, call.resource, frames, ended, call.window)
        run.resume = lambda run_id, value, **wishes: self._resumption(run_id, input=value, **wishes)
        self._runs.add(run)
        return run

    def _request(self, call: Call) -> Request:
        wished = CALL_SECONDS if call.ttl is None else seconds(call.ttl)
        now = time.time()
        # The life of a detached task is not that of the request for it.
        deadline = min(self.until, now + (CALL_SECONDS if call.detach else wished))
        if deadline <= now:
            raise refused(
                Code.DEADLINE_EXCEEDED, "the deadline has passed, so nothing was called", rule="client.late",
                ask="ask for more time when this is called",
            )  # fmt: skip
        if call.max_depth is not None and not 0 <= call.max_depth <= 16:
            raise refused(
                Code.MALFORMED, "a depth is between 0 and 16", rule="call.depth", ask="choose another max_depth"
            )
        if call.keep and not call.key:
            raise refused(
                Code.MALFORMED, "a result is kept for a call that has a key", rule="call.keep",
                ask='give it one, such as key="job-81"',
            )  # fmt: skip
        if call.window is not None and not 1 <= call.window <= MAX_WINDOW:
            raise refused(
                Code.MALFORMED, f"a window is between 1 and {MAX_WINDOW}", rule="call.window",
                ask="choose another window",
            )  # fmt: skip
        return Request(
            grant=self._grant,
            args=plain(call.args, f"an argument of {call.resource}", Code.ARGUMENTS_INVALID),
            want=Want(
                scopes=None if call.scopes is None else details(tuple(call.scopes)),
                budget=None if call.budget is None else budget_of(call.budget, self.left),
                ttl_ms=None if call.ttl is None else max(1, int(wished * 1000)),
                max_depth=call.max_depth,
                labels=None if call.labels is None else tuple(call.labels),
            ),
            key=call.key,
            deadline=int(deadline * 1000),
            approval=call.approval,
            parts=not call.detach,
            window=call.window,
            resume=call.resume,
            input=None if call.resume is None else plain(call.input, "the input", Code.ARGUMENTS_INVALID),
            detach=call.detach,
            keep=call.keep,
        )

    async def _end(self) -> None:
        """No more calls; those in flight are cancelled."""
        self._ended = True
        for run in tuple(self._runs):
            await run.cancel()
            run.abandon()


async def _awaited(call: Awaitable[Any]) -> Any:
    return await call
