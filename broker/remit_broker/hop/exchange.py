"""A grant handed on without a call (RFC 8693): the holder names another agent, which gets a child grant of its own.

It is a hop like any other, to ``agent/<agent>/$delegate``: the same stages decide, the same record is durable before anybody has
the grant, and the hop is open until one of its holders ends it, its deadline passes, or something above it ends. What is missing
is the dispatch: the new holder hears of its work from whoever handed it on, in a language and over a wire of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import msgspec

from remit_broker.core.fold import Fold, Node
from remit_broker.core.registry import Annotations, Attachment, Principal, Target, ceiling_of
from remit_broker.core.tree import DELEGATE
from remit_broker.hop.approve import Demanded, approve
from remit_broker.hop.authorize import authorize
from remit_broker.hop.close import abandon, unreported
from remit_broker.hop.dispatch import same_world
from remit_broker.hop.hop import Ask, Hop, Refused
from remit_broker.hop.inspect import inspect
from remit_broker.hop.narrow import narrow
from remit_broker.hop.pipeline import Stage, Trail, append_intent
from remit_broker.hop.refuse import refuse
from remit_broker.hop.request import request
from remit_broker.hop.revoked import nothing_stops
from remit_broker.hop.transform import transform
from remit_broker.hop.verify import verify
from remit_broker.ledger_port import LostRace
from remit_broker.ports import Ports
from remit_schemas.budget import ONE_CALL
from remit_schemas.canonical import canonical, digest
from remit_schemas.envelope import Request, Want
from remit_schemas.errors import Code, ErrorBody, refusal
from remit_schemas.names import Resource
from remit_schemas.records import HopClosed
from remit_schemas.scope import Scope

__all__ = ["DELEGATE", "Exchanged", "asked", "exchange", "finish", "to"]


class Exchanged(msgspec.Struct, frozen=True):
    """What was handed on. ``exp`` is Unix seconds."""

    grant: str
    exp: int
    scope: Scope


def to(agent: str) -> Resource:
    """What a grant must cover to be handed on to ``agent``."""
    return Resource("agent", agent, DELEGATE)


async def exchange(ask: Ask, wish: Request, ports: Ports, serves: Attachment | None) -> Exchanged | Refused:
    """A child grant of ``wish.grant`` for the agent that ``ask.resource`` names, held there by ``ask.caller``.

    ``serves`` is what that agent attached, if anything: its ceiling. Every refusal has its record, as on the bus.
    """
    trail = Trail(Hop(ask=ask, id=ports.ids.hop(), request=wish))
    work = asyncio.get_running_loop().create_task(_exchange(trail, ports, serves))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError as cancelled:
        # INVARIANT: nothing stays handed on to nobody: whoever asked went away, and what was made for them is taken back
        # (test_an_exchange_whose_caller_goes_away_leaves_nothing_handed_on).
        await _although_cancelled(work)
        if isinstance(work.result(), Exchanged):
            await _although_cancelled(asyncio.ensure_future(_take_back(trail.hop, cancelled, ports)))
        raise


async def _although_cancelled(work: asyncio.Task[Any]) -> None:
    """Wait until ``work`` is done, however often this is cancelled meanwhile."""
    while not work.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({work})


async def _exchange(trail: Trail, ports: Ports, serves: Attachment | None) -> Exchanged | Refused:
    decide, resolve = _decide(serves)
    try:
        await trail.through(decide, ports)
        await append_intent(trail, ports)
    except Demanded:
        return await refuse(trail.hop, trail.stage, await request(trail.hop, ports), ports)
    except Exception as error:
        return await refuse(trail.hop, trail.stage, error, ports)
    hop = trail.hop
    ports.accounts.settle(hop.reserved, ONE_CALL)
    try:
        # INVARIANT: nor where policy, or who the agent is, changed while the record was appended
        # (test_nothing_is_handed_on_that_policy_forbids_by_then).
        await same_world(hop, ports, resolve)
        # INVARIANT: nothing is handed on for what was revoked after the opening (test_nothing_is_handed_on_for_what_is_revoked).
        nothing_stops(hop, ports)
    except Exception as error:
        return await _take_back(hop, error, ports)
    return Exchanged(hop.token, hop.given.exp, hop.given.scope)


async def _take_back(hop: Hop, error: BaseException, ports: Ports) -> Refused:
    """Refuse a hop whose grant nobody was given, and end it. What cannot be ended now ends with its deadline."""
    no = await refuse(hop, "dispatch", error, ports)
    try:
        await _end(hop.ask.tenant, hop.ask.txn, hop.id, ports, no.body)
    except Exception as fault:
        ports.observer.fault("exchange", fault)
    return no


def _decide(serves: Attachment | None) -> tuple[tuple[Stage, ...], Stage]:
    """The stages up to the opening, and of these the one that finds the target."""

    async def resolve(hop: Hop, ports: Ports) -> Hop:
        return _resolved(hop, ports, serves)

    return (arrive, verify, resolve, narrow, nothing_wider, inspect, authorize, transform, approve), resolve


async def arrive(hop: Hop, ports: Ports) -> Hop:
    """What ``admit`` is on the bus: whoever asks is somebody, does not ask too often, and asks for a hop with an end."""
    caller = hop.ask.caller
    if ports.registry.principal(caller) is None:
        raise refusal(
            Code.UNAUTHENTICATED, f"{caller} is not registered any more", rule="admit.caller",
            ask="ask an operator for: remit agents add " + caller,
        )  # fmt: skip
    if wait := ports.rates.admit(caller):
        raise refusal(
            Code.RATE_LIMITED, f"{caller} asks too often", rule="admit.rate",
            ask=f"wait {wait:.3f} s before the next call", retry_after=round(wait, 3),
        )  # fmt: skip
    wished = hop.request.want.ttl_ms
    life = ports.limits.hop_ttl if wished is None else min(wished / 1000, ports.limits.hop_ttl)
    return hop.with_(deadline=int((hop.ask.at + life) * 1000), mono_deadline=hop.ask.mono + life)


def _resolved(hop: Hop, ports: Ports, serves: Attachment | None) -> Hop:
    callee: Principal | None = ports.registry.principal(hop.resource.name)
    # INVARIANT: a grant is handed on to agents that are registered, and to nobody else (test_a_grant_for_nobody_known_is_refused).
    if callee is None or callee.kind != "agent":
        raise refusal(
            Code.UNKNOWN_TARGET, f"no agent is called {hop.resource.name!r}", rule="exchange.audience",
            ask="name a registered agent as audience: remit agents list",
        )  # fmt: skip
    target = Target(
        kind="agent", callee=callee.name, op=DELEGATE, tier=callee.tier, definition=_definition(callee), input_schema={},
        output_schema=None, annotations=Annotations(), ceiling=_ceiling(serves),
    )  # fmt: skip
    return hop.with_(target=target, registry=ports.registry.revision, args={})


def _definition(callee: Principal) -> str:
    """Pins who that is: another key under the name is another agent."""
    return digest(canonical(["delegate", callee.tenant, callee.name, callee.nkey]))


def _ceiling(serves: Attachment | None) -> Scope | None:
    """All that the skills of the agent say they need; None where there are none, or one does not say."""
    ceilings = [ceiling_of("agent", one) for one in serves.definitions] if serves is not None else []
    if not ceilings or None in ceilings:
        return None
    return Scope.of(detail for ceiling in ceilings if ceiling is not None for detail in ceiling.details)


async def nothing_wider(hop: Hop, ports: Ports) -> Hop:
    """Refuses OUT_OF_SCOPE where more is wished than is held: over OAuth, what is asked for is what is given, or nothing.

    INVARIANT: asking for more than is held brings nothing (test_a_wider_scope_is_refused_and_not_cut).
    """
    wish, held = hop.request.want, hop.held
    if wish.scopes is not None and not Scope.of(wish.scopes) <= held.scope:
        raise refusal(
            Code.OUT_OF_SCOPE, "the scope that is asked for is not within the grant", rule="exchange.scope",
            ask="ask for a part of: " + " ".join(detail.resource for detail in held.scope.details[:8]),
        )  # fmt: skip
    if wish.budget is not None and not wish.budget.within(held.claims.budget):
        raise refusal(
            Code.BUDGET_EXCEEDED, f"the grant has {held.claims.budget} in all", rule="exchange.budget", ask="ask for less"
        )  # fmt: skip
    if wish.max_depth is not None and wish.max_depth > held.claims.max_depth:
        raise refusal(
            Code.DEPTH_EXCEEDED, f"at most {held.claims.max_depth} is granted", rule="exchange.depth", ask="ask for less"
        )  # fmt: skip
    return hop


def asked(grant: str, want: Want) -> Request:
    """The request of an exchange."""
    return Request(grant=grant, want=want)


async def finish(tenant: str, txn: str, hop: str, ports: Ports) -> bool:
    """End a hop that was handed on, at what its descendants used; whether it was open. What still runs below it ends first."""
    return await _end(tenant, txn, hop, ports)


async def _end(tenant: str, txn: str, hop: str, ports: Ports, why: ErrorBody | None = None) -> bool:
    async with ports.ledger.turn(tenant, txn) as turn:
        while turn.fold.is_open(hop):
            if below := turn.fold.descendants_open(hop):
                await abandon(below[0], ports, turn, ("an ancestor ended", "cancelled"))
                continue
            fold, node = turn.fold, turn.fold.nodes[hop]
            record = _ending(fold, node, ports, why)
            if not isinstance(await turn.append(record, None), LostRace):
                ports.observer.swept(node, record, fold)
                await ports.bus.ended(tenant, txn, hop)
                return True
    return False


def _ending(fold: Fold, node: Node, ports: Ports, why: ErrorBody | None) -> HopClosed:
    """``why`` is the refusal of what was given to nobody: then nothing happened, and only the call itself is charged."""
    if why is not None:
        said = {"code": why.code, "rule": why.rule[:256], "reason": why.message[:1024]}
        return unreported(fold, node.hop, ports, "error", effect="none", **said)
    # What its holder did beside calls that were governed, nobody measured.
    return unreported(fold, node.hop, ports, "ok", effect="happened", unmetered=True)
