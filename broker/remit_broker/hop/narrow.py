"""Stage 4. The child's grant: the meet of what the caller holds, what it asks for and what the callee accepts."""

from __future__ import annotations

from remit_broker.core.fold import Node
from remit_broker.core.labels import ceiling
from remit_broker.hop.hop import Child, Hop
from remit_broker.ports import Ports
from remit_schemas.budget import ONE_CALL, Budget
from remit_schemas.claims import meet_labels
from remit_schemas.errors import Code, refusal
from remit_schemas.grant import parse
from remit_schemas.names import Resource
from remit_schemas.scope import Detail, Scope

GRANT_TTL = 60
"""Longest life of a callee's grant in seconds: what works longer has it renewed while its hop is open."""

MAX_PAIRS = 1024
"""Most pairs of details that are compared to narrow one scope by another: some hundredths of a second."""


async def narrow(hop: Hop, ports: Ports) -> Hop:
    """What the callee is to be given (RFC 9396 details, budget, lifetime, depth): in nothing more than the caller holds."""
    held, claims, node = hop.held.scope, hop.held.claims, hop.above
    if not held.covers(str(hop.resource), hop.request.args):
        raise refusal(
            Code.OUT_OF_SCOPE, f"the grant does not cover {hop.resource}: {held.explain(str(hop.resource), hop.request.args)}",
            rule="narrow.scope", ask=f"ask your caller for the scope {hop.resource}",
        )  # fmt: skip
    wish = hop.request.want.max_depth
    depth, max_depth = node.depth + 1, claims.max_depth if wish is None else min(claims.max_depth, wish)
    if hop.parked is not None:
        max_depth = min(max_depth, hop.parked.max_depth)
    if depth > max_depth:
        raise refusal(
            Code.DEPTH_EXCEEDED, f"this call would be at depth {depth}, at most {max_depth} is granted",
            rule="narrow.depth", ask="do the work at this level, or ask the user for a deeper grant",
        )  # fmt: skip
    _no_cycle(hop, ports)
    hop = _within_caller(hop, node)
    return hop.with_(
        child=Child(
            scope=_not_wider(_scope(hop, held), hop.parked),
            budget=_budget(hop, node),
            # Rounded down, so that no grant outlives its hop by a fraction, but never to nothing.
            exp=min(claims.exp, int(hop.ask.at) + GRANT_TTL, max(hop.deadline // 1000, int(hop.ask.at) + 1)),
            depth=depth,
            max_depth=max_depth,
            labels=await _ceiling(hop, ports),
        )
    )


async def _ceiling(hop: Hop, ports: Ports) -> tuple[str, ...]:
    """Which labels may reach the callee: those that may reach the caller, and that it wishes for it.

    INVARIANT: a hop that goes on may be told no more than before it was parked, whatever its caller says or leaves out
    (test_a_resumption_that_says_nothing_of_labels_keeps_the_ceiling_of_the_hop). Its records do not say that ceiling: its grant does.
    """
    held, wish = hop.held.claims.labels, hop.request.want.labels
    labels = held if wish is None else meet_labels(held, ceiling(wish))
    if hop.parked is None:
        return labels
    had = parse(await ports.ledger.grant(hop.ask.tenant, hop.ask.txn, hop.parked.rec))
    return meet_labels(labels, had.claims.labels)


def _within_caller(hop: Hop, node: Node) -> Hop:
    """The hop with a deadline no later than its caller's own.

    INVARIANT: no hop outlives the one it was opened under (test_a_child_does_not_outlive_its_parent).
    """
    late = hop.deadline - node.deadline
    if late <= 0:
        return hop
    if node.deadline <= hop.ask.at * 1000:
        raise refusal(
            Code.DEADLINE_EXCEEDED, "the deadline of the caller's own hop has passed", rule="narrow.deadline",
            ask="return what there is; ask for more time when this is called",
        )  # fmt: skip
    return hop.with_(deadline=node.deadline, mono_deadline=hop.mono_deadline - late / 1000)


def _no_cycle(hop: Hop, ports: Ports) -> None:
    callee = hop.aim.callee
    if callee in hop.chain and (hop.ask.caller, callee) not in ports.limits.allowed_cycles:
        raise refusal(
            Code.CYCLE, f"{callee} is already in the chain {' → '.join(reversed(hop.chain))}", rule="narrow.cycle",
            ask="return to it with your result instead of calling it, or have the pair allowed in limits.allow_cycles",
        )  # fmt: skip


def _scope(hop: Hop, held: Scope) -> Scope:
    """A tool gets exactly the resource it serves; an agent the meet of all three sides."""
    if hop.aim.kind == "mcp":
        return held & exactly(hop.resource)
    wish = hop.request.want.scopes
    scope = held if wish is None else _meet(held, Scope.of(wish))
    if wish and not scope:
        raise refusal(
            Code.OUT_OF_SCOPE, "nothing of what is asked for the callee is in the grant", rule="narrow.wish",
            ask="ask for a part of: " + " ".join(detail.resource for detail in held.details[:8]),
        )  # fmt: skip
    ceiling = hop.aim.ceiling
    return scope if ceiling is None else _meet(scope, ceiling)


def _not_wider(scope: Scope, parked: Node | None) -> Scope:
    """A hop that is resumed is given no more than it had."""
    return scope if parked is None else _meet(Scope.of(parked.scope), scope)


def _meet(held: Scope, other: Scope) -> Scope:
    """Both, where that is soon known.

    INVARIANT: nobody keeps the broker busy with scopes of many details
    (test_two_scopes_that_are_slow_to_narrow_are_refused).
    """
    pairs = len(held.details) * len(other.details)
    if pairs > MAX_PAIRS and held != other:
        raise refusal(
            Code.TOO_LARGE, f"{len(other.details)} details within {len(held.details)} are too many to compare",
            rule="narrow.size", ask=f"ask for at most {MAX_PAIRS // len(held.details)} scopes",
        )  # fmt: skip
    return held & other


def exactly(resource: Resource) -> Scope:
    """The scope of one resource and nothing else."""
    return Scope.of((Detail(resource=str(resource)),))


def _budget(hop: Hop, node: Node) -> Budget:
    """The caller's wish; without one a tool gets its price and an agent half of what is left. Never less than the price.

    INVARIANT: what is charged where nothing is reported is held before, whatever was wished
    (test_wishing_for_less_than_a_price_does_not_buy_at_less).
    """
    wish, price = hop.request.want.budget, hop.aim.price.join(ONE_CALL)
    if wish is None:
        wish = price if hop.aim.kind == "mcp" else node.left.half()
    return wish.join(price)
