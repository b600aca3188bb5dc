"""Requests of agents and servers on one tenant's account: hops are governed, the broker's own services answered."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from remit_broker.core.registry import (
    MAX_REFUSED,
    Attachment,
    Definition,
    Principal,
    definitions_of,
    offers_of,
    refused_of,
)
from remit_broker.core.times import rfc3339
from remit_broker.hop.admit import admit
from remit_broker.hop.begin import begin
from remit_broker.hop.credential import Shows, shown
from remit_broker.hop.decide import wait
from remit_broker.hop.hop import Ask, Hop
from remit_broker.hop.keep import Found, find
from remit_broker.hop.park import unwanted
from remit_broker.hop.pipeline import govern
from remit_broker.hop.refuse import refuse
from remit_broker.hop.renew import renew
from remit_broker.hop.resume import called
from remit_broker.hop.revoked import withheld
from remit_broker.hop.txn import close_txn
from remit_broker.hop.verify import holder
from remit_broker.ports import Ports, Recipient, at_once
from remit_schemas import subjects
from remit_schemas.envelope import Accepted, Result
from remit_schemas.errors import Code, Refusal, refusal
from remit_schemas.names import Resource

Service = Callable[[Hop], Awaitable[Any]]
UNKNOWN: Final = Resource("agent", "remit", "unknown")
"""Stands for what a request is for where its subject does not say."""
OVERLOADED: Final = "the broker has as many calls in hand as it may have"
ANSWERED: Final = 64
"""Refusals for one caller on their way at once; what comes meanwhile is counted with them, and not answered."""
MAX_CHANGED: Final = 100
"""Resources of which one request says that they changed."""
SHARE: Final = 4
"""One caller may have a quarter of them."""


class BusEdge:
    """One replica's queue subscription. Every request is a task; what is too much is refused, never queued without end."""

    def __init__(
        self,
        nc: Client,
        tenant: str,
        ports: Ports,
        attach: Callable[[Attachment], Awaitable[None]],
        published: Mapping[str, Any],
        soon: Callable[[Callable[[], object]], object] = lambda begin: begin(),
        shows: Shows | None = None,
    ) -> None:
        """``soon`` says when what was taken in hand begins: much at once would keep the broker from hearing anything else.

        ``shows`` is what MCP servers are shown of the user at hand.
        """
        self._soon = soon
        self.tidings: Callable[[str, tuple[str, ...]], Awaitable[None]] = _untold
        """Told of resources of a server that changed."""
        self.traced: frozenset[str] = frozenset()
        """The MCP servers that are told the trace of each call."""
        self._to_begin = 0
        self._begun = asyncio.Event()
        self._nc, self._tenant, self._ports = nc, tenant, ports
        self._attach, self._published = attach, published
        self._running: set[asyncio.Task[Any]] = set()
        self._in_hand: collections.Counter[str] = collections.Counter()
        self._refusing: collections.Counter[str] = collections.Counter()
        self._unanswered: collections.Counter[str] = collections.Counter()
        self._attaching: set[str] = set()
        self._subscription: Subscription | None = None
        self._services: dict[tuple[str, str], Service] = {("attach", "put"): self._put, ("txn", "close"): self._close}
        self._services["result", "get"] = lambda hop: find(_granted(hop), ports)
        self._services["txn", "open"] = lambda hop: begin(hop, ports)
        self._services["approval", "wait"] = lambda hop: wait(_granted(hop), ports)
        self._shows = shows
        if shows is not None:
            self._services["credentials", "get"] = lambda hop: shown(hop, ports, shows)
        self._services["attach", "changed"] = self._changed
        self._services["grant", "renew"] = lambda hop: renew(hop, ports)

    @property
    def in_hand(self) -> int:
        """Calls that were taken and have not ended."""
        return self._in_hand.total()

    async def start(self) -> None:
        """Take requests, shared with the other replicas."""
        self._subscription = await self._nc.subscribe(
            "req.*.*.*.*.*", queue=subjects.BROKER_QUEUE, cb=self._on_request, pending_msgs_limit=-1
        )
        # Twice: nats-py writes its PING past what is still buffered, so only the second answer says that the server knows.
        await self._nc.flush()
        await self._nc.flush()

    async def stop(self, seconds: float) -> None:
        """Take no more requests, give running hops ``seconds`` to end, then cancel them (each is closed all the same)."""
        if self._subscription is not None and not self._nc.is_closed:
            await self._subscription.unsubscribe()
        # INVARIANT: what was taken in hand is answered (test_what_waits_to_begin_when_a_broker_stops_is_answered).
        while self._to_begin:
            await self._begun.wait()
        if self._running:
            await asyncio.wait(self._running, timeout=seconds)
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=seconds)

    @at_once
    async def _on_request(self, message: Msg) -> None:
        now, mono = self._ports.clock.now(), self._ports.clock.monotonic()
        at = subjects.parse_request(message.subject)
        if at is None:
            # A subject that is no request still names its caller: the NATS server let nobody else publish there.
            self._malformed(message, now, mono)
            return
        kind = at.kind if at.kind != "remit" else "agent"
        ask = Ask(
            tenant=self._tenant,
            caller=at.caller,
            txn=at.txn,
            resource=Resource(kind, at.name, at.op),  # type: ignore[arg-type]
            reply=message.reply,
            data=message.data,
            at=now,
            mono=mono,
        )
        if (full := self._full(at.caller)) is not None:
            # Without its content: a flood of large calls must not be kept while it waits to be refused.
            self._turn_away(msgspec.structs.replace(ask, data=b""), full)
        elif at.kind == "remit":
            self._take(at.caller, self._serve(ask, at.name, at.op))
        else:
            self._take(at.caller, govern(ask, self._ports))

    def take(self, ask: Ask) -> None:
        """A call that came another way than by this account, for a caller whom that way knows; the same pipeline, the same room.

        Raises RATE_LIMITED where there is no room: of a flood not everybody is answered by a frame.

        INVARIANT: whichever way a call comes in, one pipeline decides (test_a_tool_call_over_http_is_a_hop_like_any_other).
        """
        if (full := self._full(ask.caller)) is not None:
            self._turn_away(msgspec.structs.replace(ask, data=b""), full)
            raise full
        self._take(ask.caller, govern(ask, self._ports))

    def on_input(self, at: subjects.Reply, message: Msg) -> None:
        """What the caller of a hop says on ``ctl.…`` beside a cancellation: the input of a parked hop, as a request."""
        ask = Ask(
            tenant=self._tenant, caller=at.principal, txn=at.txn, resource=UNKNOWN, reply=message.reply, data=message.data,
            at=self._ports.clock.now(), mono=self._ports.clock.monotonic(), hop=at.hop,
        )  # fmt: skip
        if (full := self._full(ask.caller)) is not None:
            self._turn_away(msgspec.structs.replace(ask, data=b""), full)
        else:
            self._take(ask.caller, self._go_on(ask))

    def on_unwanted(self, at: subjects.Reply) -> None:
        """A caller cancels a hop that does not run at this replica. Too often, and nobody listens: what is parked can wait."""
        if not self._full(at.principal) and not self._ports.rates.admit(at.principal):
            self._take(at.principal, unwanted(at.principal, self._tenant, at.txn, at.hop, self._ports))

    async def _go_on(self, ask: Ask) -> None:
        try:
            # Before the ledger is asked for a txn that anybody can name.
            if wait := self._ports.rates.admit(ask.caller):
                raise _overloaded(f"{ask.caller} asks too often", wait)
            resource = await called(ask.hop, ask.tenant, ask.txn, self._ports)
        except Exception as error:
            await refuse(Hop(ask=ask, id=self._ports.ids.hop()), "admit", error, self._ports, "ctl")
            return
        await govern(msgspec.structs.replace(ask, resource=resource), self._ports)

    def _full(self, caller: str) -> Exception | None:
        """Why nothing more is taken in hand for ``caller``, or None.

        INVARIANT: one caller whose calls never end leaves room for the others
        (test_one_caller_with_calls_that_never_end_leaves_room_for_the_others).
        """
        room = self._ports.limits.concurrency
        if self._in_hand[caller] >= max(1, room // SHARE):
            return _overloaded(f"the broker has {self._in_hand[caller]} calls of {caller} in hand, its whole share")
        return _overloaded(OVERLOADED) if self._in_hand.total() >= room else None

    def _turn_away(self, ask: Ask, error: Exception, resource: str = "") -> None:
        """Refuse what never gets a task of its own kind; of a flood all are counted, and only the first are answered.

        INVARIANT: saying no does not keep the broker busy (test_of_a_flood_all_are_counted_and_few_are_answered).
        """
        if self._refusing[ask.caller] >= ANSWERED:
            self._unanswered[ask.caller] += 1
            return
        self._refusing[ask.caller] += 1
        self._spawn(self._refuse_all(ask, error, resource))

    async def _refuse_all(self, ask: Ask, error: Exception, resource: str) -> None:
        try:
            refused = await refuse(Hop(ask=ask, id=self._ports.ids.hop()), "admit", error, self._ports, resource)
            while more := self._unanswered.pop(ask.caller, 0):
                await self._ports.refusals.write(msgspec.structs.replace(refused.record, count=more))
        finally:
            self._refusing[ask.caller] -= 1
            if not self._refusing[ask.caller]:
                del self._refusing[ask.caller]

    def _take(self, caller: str, work: Coroutine[Any, Any, Any]) -> None:
        self._in_hand[caller] += 1
        self._to_begin += 1
        self._begun.clear()
        self._soon(lambda: self._begin(caller, work))

    def _begin(self, caller: str, work: Coroutine[Any, Any, Any]) -> None:
        self._to_begin -= 1
        if not self._to_begin:
            self._begun.set()
        self._spawn(work).add_done_callback(lambda _: self._give_back(caller))

    def _give_back(self, caller: str) -> None:
        self._in_hand[caller] -= 1
        if not self._in_hand[caller]:
            del self._in_hand[caller]

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._ports.observer.fault("bus", error)

    def _malformed(self, message: Msg, now: float, mono: float) -> None:
        caller = message.subject.split(".")[1]
        ask = Ask(
            tenant=self._tenant, caller=caller, txn=subjects.NEW, resource=UNKNOWN,
            reply=message.reply, data=b"", at=now, mono=mono,
        )  # fmt: skip
        error = refusal(
            Code.MALFORMED, "the subject is no request", rule="admit.subject",
            ask="publish on req.<caller>.<txn or new>.<agent|mcp|remit>.<name>.<op>, each one token",
        )  # fmt: skip
        self._turn_away(ask, error, message.subject[:256])

    async def _serve(self, ask: Ask, service: str, op: str) -> None:
        """One call of a service of the broker's own: the same admission and the same refusals as a hop."""
        hop, stage = Hop(ask=ask, id=self._ports.ids.hop()), "admit"
        try:
            hop = await admit(hop, self._ports)
            stage = "resolve"
            handler = self._services.get((service, op))
            if handler is None:
                raise refusal(
                    Code.UNKNOWN_TARGET, f"the broker has no service {service}.{op}", rule="service.unknown",
                    ask="it has " + ", ".join(".".join(name) for name in self._services),
                )  # fmt: skip
            if ask.txn != subjects.NEW:
                # Closing a task lets go of authority, so it goes on while everything is paused.
                hop = await holder(hop, self._ports)
            if found := self._ports.revocations.check((ask.caller,), ""):
                raise withheld(found)
            value = await handler(hop)
            if isinstance(value, Found):
                await self._hand_over(hop, value)
                return
        except (Exception, asyncio.CancelledError) as error:
            await refuse(hop, stage, error, self._ports, f"remit/{service}/{op}")
            return
        finally:
            self._ports.room.give_back(hop.id)
        await self._ports.bus.answer(ask.reply, Result(value=value))

    async def _hand_over(self, hop: Hop, found: Found) -> None:
        """The end of another hop, as that hop's caller would have heard it: with its id, and in parts where that is asked for."""
        ask, bus = hop.ask, self._ports.bus
        await bus.answer(ask.reply, Accepted(txn=ask.txn, hop=found.hop, replica=bus.replica))
        if hop.request.parts and isinstance(found.frame, Result):
            await bus.release(Recipient(ask.reply, ask.caller, ask.txn, found.hop), found.frame)
        else:
            await bus.answer(ask.reply, found.frame)

    async def _put(self, hop: Hop) -> dict[str, Any]:
        """``attach.put``: what the caller serves from now on."""
        principal: Principal | None = self._ports.registry.principal(hop.ask.caller)
        if principal is None:
            raise refusal(Code.UNAUTHENTICATED, "not registered", rule="attach.principal", ask="remit agents add")
        if found := self._ports.revocations.tenant(principal.tenant):
            raise withheld(found)
        server = hop.request.args.get("server")
        definitions = definitions_of(principal.kind, hop.request.args)
        partly = principal.kind == "mcp" and hop.request.args.get("partly") is True
        definitions, unusable = await self._usable(principal.name, definitions, partly=partly)
        refused = (*refused_of(hop.request.args), *unusable) if principal.kind == "mcp" else ()
        await self._attach(
            Attachment(
                name=principal.name,
                kind=principal.kind,
                server={k: str(v)[:256] for k, v in server.items()} if isinstance(server, dict) else {},
                definitions=definitions,
                at=rfc3339(self._ports.clock.now()),
                offers=offers_of(hop.request.args) if principal.kind == "mcp" else {},
                refused=refused[:MAX_REFUSED],
            )
        )
        told = {"principal": principal.name, "replica": self._ports.bus.replica, **self._published}
        if principal.kind == "mcp":
            told["trace"] = principal.name in self.traced
        if unusable:
            told["refused"] = [*unusable[:MAX_REFUSED]]
        return told if self._shows is None else told | {"credentials": self._shows.kind(principal.name)}

    async def _changed(self, hop: Hop) -> dict[str, Any]:
        """``attach.changed``: resources of the caller's that are not what they were; clients that asked are told."""
        uris = hop.request.args.get("uris")
        good = (
            isinstance(uris, list)
            and len(uris) <= MAX_CHANGED
            and all(isinstance(u, str) and len(u) <= 4096 for u in uris)
        )
        if not good or uris is None:
            raise refusal(
                Code.MALFORMED, "no list of URIs", rule="attach.changed", ask=f"send uris, at most {MAX_CHANGED}"
            )
        await self.tidings(hop.ask.caller, tuple(uris))
        return {}

    async def _usable(
        self, name: str, definitions: tuple[Definition, ...], *, partly: bool
    ) -> tuple[tuple[Definition, ...], tuple[str, ...]]:
        """The definitions whose schemas can be used, and a line for each that cannot.

        Without ``partly`` the whole request is refused for one: MALFORMED or TOO_LARGE. Whoever writes an agent can mend it; a worker
        of a server that it cannot change asks for what can be had. RATE_LIMITED while another of the same caller is checked.

        INVARIANT: one tool keeps no other tool of its MCP server away
        (test_one_malformed_tool_keeps_no_other_away_and_is_shown_with_its_reason).

        INVARIANT: whatever is attached, the broker's calls go on meanwhile: compiling the schemas of one large request takes
        seconds, so it is done schema by schema, one request of a caller at a time, with most of the time left to others
        (test_attaching_what_is_hard_to_check_stops_nobody).
        """
        good: list[Definition] = []
        lines: list[str] = []
        if name in self._attaching:
            raise refusal(
                Code.RATE_LIMITED, f"{name} is being attached already", rule="attach.busy",
                ask="wait for the answer to the first request", retry_after=1.0,
            )  # fmt: skip
        self._attaching.add(name)
        clock = self._ports.clock
        try:
            for definition in definitions:
                began = clock.monotonic()
                try:
                    self._ports.schemas.check(definition.input_schema)
                    if definition.output_schema is not None:
                        self._ports.schemas.check(definition.output_schema)
                    good.append(definition)
                except Refusal as refused:
                    if not partly:
                        raise
                    lines.append(f"{definition.op!r}: {refused.body.message} ({refused.body.rule}); {refused.body.ask}")
                await asyncio.sleep(2 * (clock.monotonic() - began))
        finally:
            self._attaching.discard(name)
        return tuple(good), tuple(lines)

    async def _close(self, hop: Hop) -> dict[str, Any]:
        """``txn.close``: the holder of the root grant says that the task is done."""
        if hop.grant is None or hop.fold is None or hop.held.jti.hop != hop.past.root:
            raise refusal(
                Code.OUT_OF_SCOPE, "only the holder of the root grant closes a txn", rule="txn.close",
                ask="return from the skill; the first agent closes the task",
            )  # fmt: skip
        fold = await close_txn(hop.ask.tenant, hop.ask.txn, hop.ask.caller, "closed", self._ports)
        return {"txn": fold.txn, "spent": fold.nodes[fold.root].spent}


async def _untold(_: str, __: tuple[str, ...]) -> None:
    return None


def _granted(hop: Hop) -> Hop:
    if hop.grant is None:
        raise refusal(
            Code.GRANT_INVALID, "this is answered to the holder of a grant", rule="grant.missing",
            ask="publish on req.<caller>.<txn of the grant>.…, with the grant",
        )  # fmt: skip
    return hop


def _overloaded(why: str, wait: float = 0.1) -> Exception:
    return refusal(Code.RATE_LIMITED, why, rule="admit.load", ask="call again shortly", retry_after=round(wait, 3))
