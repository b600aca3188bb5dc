"""The end of a hop kept for its caller, who may not be there to hear it; and found again by whoever holds that caller's grant."""

from __future__ import annotations

from typing import Any, Final, NamedTuple, NoReturn

import msgspec

from remit_broker.core.tree import Fold, Node
from remit_broker.hop.hop import Hop
from remit_broker.hop.open import idempotency_of
from remit_broker.hop.verify import standing
from remit_broker.ports import Ports
from remit_schemas.budget import Budget
from remit_schemas.envelope import Error, InputRequired, Result
from remit_schemas.errors import Code, Effect, refusal
from remit_schemas.names import parse_resource
from remit_schemas.records import HopClosed

LOOK: Final = 1.0
"""Seconds between two looks at a hop that still runs, where nobody says that it has ended."""

_SPEND: Final = 0.25
"""Seconds of a request's time that are left for its answer."""


class Kept(msgspec.Struct, frozen=True):
    """What is kept: the final frame as it was released, and the digest by which its closing record names it."""

    digest: str
    frame: Result | Error


class Found(NamedTuple):
    """The answer of ``result.get``: the end of ``hop``."""

    hop: str
    frame: Result | Error


_decode = msgspec.json.Decoder(Kept).decode


async def keep(hop: Hop, ports: Ports) -> None:
    """Store the end of a hop before the hop is closed.

    Before, since what is stored after the close would be lost with a broker that dies between the two. What is stored and never
    closed so is never given out: :func:`find` gives out only what the closing record names by its digest.
    """
    seen = hop.result
    if seen is None:
        return
    frame = msgspec.structs.replace(seen.frame, cost=None)
    if isinstance(frame, InputRequired):
        return
    if isinstance(frame, Result):
        frame = msgspec.structs.replace(frame, parts=0)
    await ports.results.put((hop.ask.tenant, hop.ask.txn, hop.id), msgspec.json.encode(Kept(seen.digest, frame)))


async def find(hop: Hop, ports: Ports) -> Found:
    """The service ``result.get``: how a call ended that was made with this very grant, as soon as it has ended.

    Refuses MALFORMED, UNKNOWN_TARGET for what is no call under this grant, and DEADLINE_EXCEEDED where it runs on.
    """
    tenant, txn = hop.ask.tenant, hop.ask.txn
    # INVARIANT: what was kept is given out to whoever may have it by now, by the ledger itself: a replica that is behind does not
    # know what another one revoked (test_a_replica_that_is_behind_gives_out_nothing_for_what_was_revoked).
    hop = await standing(hop, ports)
    node = _node(hop, ports)
    while node.state != "closed":
        left = hop.mono_deadline - ports.clock.monotonic() - _SPEND
        if left <= 0 or node.state == "parked":
            _runs_on(node)
        await ports.bus.until_ended((txn, node.hop), min(left, LOOK))
        hop = await standing(hop, ports)
        node = hop.past.nodes[node.hop]
    closing = await ports.ledger.closing(tenant, txn, node.hop)
    stored = await ports.results.get((tenant, txn, node.hop))
    if stored is not None:
        ports.room.take(hop.id, hop.ask.caller, len(stored))
        kept = _decode(stored)
        # INVARIANT: nothing is given out that its closing record does not name
        # (test_a_broker_that_dies_around_the_close_loses_no_closed_result_and_gives_out_no_other).
        if closing.result_digest == kept.digest:
            return Found(node.hop, _charged(kept.frame, txn, node.hop, closing.spent))
    return Found(node.hop, _not_kept(closing))


def _node(hop: Hop, ports: Ports) -> Node:
    found = _look(hop, ports, hop.request.args, hop.past)
    if found is None:
        # INVARIANT: one answer, whatever is there: a stranger's call, another grant's, none
        # (test_nobody_else_finds_a_result_or_learns_that_there_is_one).
        raise refusal(
            Code.UNKNOWN_TARGET, "no such call was made with this grant", rule="result.unknown",
            ask="name the hop, or the resource and the key, of a call that was made with this very grant",
        )  # fmt: skip
    return found


def _look(hop: Hop, ports: Ports, args: dict[str, Any], fold: Fold) -> Node | None:
    match args:
        case {"hop": str(wanted)} if len(args) == 1:
            name: str | None = wanted
        case {"resource": str(resource), "key": str(key)} if len(args) == 2:
            name = fold.idem.get(idempotency_of(hop, ports, str(parse_resource(resource)), key))
        case _:
            raise refusal(
                Code.MALFORMED, "it is not said which call is meant", rule="result.args",
                ask='send {"hop": …} or {"resource": …, "key": …}',
            )  # fmt: skip
    node = fold.nodes.get(name or "")
    return node if node is not None and node.parent == hop.held.jti.hop else None


def _runs_on(node: Node) -> NoReturn:
    what = "waits for an input" if node.state == "parked" else "still runs"
    raise refusal(
        Code.DEADLINE_EXCEEDED, f"hop {node.hop} {what}", rule=f"result.{'parked' if node.state == 'parked' else 'running'}",
        ask="ask again" if node.state != "parked" else "resume it with its input",
    )  # fmt: skip


def _charged(frame: Result | Error, txn: str, hop: str, spent: Budget) -> Result | Error:
    if isinstance(frame, Error):
        return Error(error=msgspec.structs.replace(frame.error, txn=txn, hop=hop), cost=spent)
    return msgspec.structs.replace(frame, cost=spent)


def _not_kept(closing: HopClosed) -> Error:
    """How a hop ended whose result is not there: its own error, or that its result was not kept or no longer is."""
    effect: Effect = closing.effect
    if closing.code is not None:
        no = refusal(closing.code, closing.reason, rule=closing.rule, ask="look at the chain", effect=effect)
    else:
        no = refusal(
            Code.UNKNOWN_TARGET, f"hop {closing.hop} ended {closing.outcome}; its result was not kept, or no longer is",
            rule="result.not-kept", ask="look at the chain; call with keep, and ask in time", effect=effect,
        )  # fmt: skip
    return Error(error=msgspec.structs.replace(no.body, txn=closing.txn, hop=closing.hop), cost=closing.spent)
