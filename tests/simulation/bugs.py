"""Planted bugs: each takes one guard out of the product, or does one step too early, while it lasts.

The simulation must find every one of them (``make simulate-bugs``). A name says what the product does wrong with it; the
comment says by which promise it is seen.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import msgspec

import remit.serve
from remit_broker.adapters import jetstream_ledger as ledger
from remit_broker.adapters import kv_accounts, ledger_memory, nats_bus, refusal_stream, revocations, sqlite_index
from remit_broker.adapters.index_queries import IndexQueries, OpenHop
from remit_broker.adapters.jetstream import IN_FLIGHT, Ack, Message
from remit_broker.adapters.ledger_append import Stored
from remit_broker.core import accounts, flow, fold, tree
from remit_broker.core.accounts import Account
from remit_broker.hop import close, dispatch, pipeline, txn, verify
from remit_broker.hop import open as opening
from remit_broker.hop.inspect import inspect
from remit_broker.ledger_port import LostRace
from remit_schemas.budget import ZERO
from remit_schemas.callee import check_dispatch
from remit_schemas.errors import Code, Refusal
from tests.simulation import bugs_of_consent
from tests.simulation.planting import BUGS, OF_THE_WHOLE, bug, bug_of_the_whole, planted, put

__all__ = ["BUGS", "OF_THE_WHOLE", "bugs_of_consent", "planted"]


async def nothing(*_: Any, **__: Any) -> None:
    """A step that is left out."""


# The ledger


@bug
def an_append_without_an_answer_counts_as_done(stack: ExitStack) -> None:
    before = ledger.JetStreamLedger._publish

    async def publish(self: Any, shot: Any, seconds: float, **more: Any) -> Any:
        stored = await before(self, shot, seconds, **more)
        seq = self._memory.high.seq
        return stored or Stored(Ack(ledger.STREAM, seq + 1), seq, self._memory.generation)

    put(stack, ledger.JetStreamLedger, "_publish", publish)


@bug
def a_lost_race_counts_as_won(stack: ExitStack) -> None:
    before = ledger.JetStreamLedger._lost

    async def lost(self: Any, key: Any, known: Any, record: Any) -> Any:
        outcome = await before(self, key, known, record)
        return outcome.fold if isinstance(outcome, LostRace) else outcome

    put(stack, ledger.JetStreamLedger, "_lost", lost)


@bug
def in_flight_counts_as_lost_without_reading(stack: ExitStack) -> None:
    before = ledger.JetStreamLedger._insist

    async def insist(self: Any, shot: Any, stored: Any) -> Any:
        if (
            stored is not None
            and stored.ack.error is not None
            and stored.ack.error.err_code == IN_FLIGHT
            and shot.known
        ):
            return LostRace(shot.known.fold)
        return await before(self, shot, stored)

    put(stack, ledger.JetStreamLedger, "_insist", insist)


@bug
def in_flight_counts_as_done(stack: ExitStack) -> None:
    before = ledger.JetStreamLedger._publish

    async def publish(self: Any, shot: Any, seconds: float, **more: Any) -> Any:
        stored = await before(self, shot, seconds, **more)
        if stored is not None and stored.ack.error is not None and stored.ack.error.err_code == IN_FLIGHT:
            return stored._replace(ack=Ack(ledger.STREAM, self._memory.high.seq + 1))
        return stored

    put(stack, ledger.JetStreamLedger, "_publish", publish)


@bug
def after_a_lost_race_only_the_append_is_repeated(stack: ExitStack) -> None:
    put(stack, pipeline, "AGAIN", ())


@bug
def what_was_acknowledged_is_never_read_back(stack: ExitStack) -> None:
    put(stack, ledger_memory.LedgerMemory, "generation", property(lambda self: 0))


@bug
def sequences_that_go_backwards_are_accepted(stack: ExitStack) -> None:
    def acknowledged(self: Any, shot: Any, stored: Any) -> None:
        self._memory.high = Message(stored.ack.seq, shot.subject, shot.ready.payload)

    put(stack, ledger.JetStreamLedger, "_acknowledged", acknowledged)
    for name in ("check_log", "check_known", "check_message"):
        put(stack, ledger_memory.LedgerMemory, name, nothing)
    put(stack, sqlite_index.SqliteIndex, "check", nothing)


# Budgets


@bug
def what_is_left_is_the_whole_limit(stack: ExitStack) -> None:
    put(stack, tree.Node, "left", property(lambda self: self.limit))


@bug
def a_hold_is_never_released(stack: ExitStack) -> None:
    before = fold._close_hop

    def close_hop(past: Any, record: Any) -> Any:
        after = before(past, record)
        parent = past.nodes[past.nodes[record.hop].parent]
        kept = msgspec.structs.replace(after.nodes[parent.hop], held=parent.held)
        return msgspec.structs.replace(after, nodes=after.nodes.set(parent.hop, kept))

    put(stack, fold, "_close_hop", close_hop)


@bug
def a_hop_is_settled_twice(stack: ExitStack) -> None:
    before = fold._close_hop

    def close_hop(past: Any, record: Any) -> Any:
        after = before(past, record)
        parent = after.nodes[past.nodes[record.hop].parent]
        twice = msgspec.structs.replace(parent, spent=(parent.spent + record.spent).meet(parent.limit))
        return msgspec.structs.replace(after, nodes=after.nodes.set(parent.hop, twice))

    put(stack, fold, "_close_hop", close_hop)


@bug
def an_orphan_is_charged_nothing(stack: ExitStack) -> None:
    put(stack, tree, "WHOLE_HOLD", frozenset())


# Caps


@bug
def a_call_is_reserved_after_it_is_opened(stack: ExitStack) -> None:
    before = opening.open_

    async def open_(hop: Any, ports: Any, turn: Any) -> Any:
        shared = ports.accounts

        class Later:
            async def reserve(self, *_: Any) -> Any:
                return hop.reserved

            def settle(self, *_: Any) -> None:
                pass

        opened = await before(hop, msgspec.structs.replace(ports, accounts=Later()), turn)
        if isinstance(opened, LostRace):
            return opened
        return opened.with_(reserved=await shared.reserve(opening.whose(opened), opening.own_hold(opened)))

    put(stack, pipeline, "open_", open_)


@bug
def a_reservation_is_never_settled(stack: ExitStack) -> None:
    put(stack, kv_accounts.KvAccounts, "settle", lambda self, reservation, spent: None)


@bug
def what_was_spent_goes_back_with_the_lease(stack: ExitStack) -> None:
    before = accounts.give_back

    def give_back(account: Account, who: str, part: Any) -> Account:
        after = before(account, who, part)
        return msgspec.structs.replace(after, used=account.used) if part.held == ZERO else after

    put(stack, kv_accounts, "give_back", give_back)


@bug
def a_lease_is_given_back_twice(stack: ExitStack) -> None:
    before = accounts.give_back

    def give_back(account: Account, who: str, part: Any) -> Account:
        after = before(account, who, part)
        lease = account.leases.get(who)
        return msgspec.structs.replace(after, used=after.used.minus(lease.granted.minus(part.busy))) if lease else after

    put(stack, kv_accounts, "give_back", give_back)


@bug
def a_lost_race_for_an_account_counts_as_won(stack: ExitStack) -> None:
    before = kv_accounts.KvAccounts._write

    async def write(self: Any, key: Any, account: Any, after: int) -> int:
        return await before(self, key, account, after) or after + 1

    put(stack, kv_accounts.KvAccounts, "_write", write)


# The order of a hop


@bug
def a_result_is_released_before_its_close_is_known(stack: ExitStack) -> None:
    before = pipeline._close

    async def early(hop: Any, ports: Any, body: Any) -> Any:
        if body is None:
            await ports.bus.answer(hop.ask.reply, pipeline._final(hop, body, None))
        return await before(hop, ports, body)

    put(stack, pipeline, "_close", early)


@bug
def a_hop_is_closed_without_its_children(stack: ExitStack) -> None:
    before = close._close

    async def shallow(hop: Any, ports: Any, body: Any) -> Any:
        async with ports.ledger.turn(hop.intent.tenant, hop.intent.txn) as turn:
            if turn.fold.is_open(hop.id):
                await turn.append(close.outcome(hop, ports, turn.fold, body), None)
        return await before(hop, ports, body)

    put(stack, close, "_close", shallow)


@bug
def a_txn_is_closed_with_open_hops(stack: ExitStack) -> None:
    put(stack, txn, "sweep", nothing)
    before = tree.Fold.descendants_open

    def none(self: Any, hop: str) -> Any:
        return () if hop == self.root else before(self, hop)

    put(stack, tree.Fold, "descendants_open", none)


@bug
def a_hop_is_dispatched_twice(stack: ExitStack) -> None:
    before = nats_bus.NatsBus.dispatch

    async def again(self: Any, resource: Any, callee: str, call: Any) -> None:
        await before(self, resource, callee, call)
        if call.hop.endswith("0"):
            await before(self, resource, callee, call)

    put(stack, nats_bus.NatsBus, "dispatch", again)


@bug
def a_key_that_was_used_meanwhile_is_not_noticed(stack: ExitStack) -> None:
    put(stack, opening, "_not_repeated", lambda *_: None)


@bug
def a_grant_outlives_its_hop(stack: ExitStack) -> None:
    before = verify.holder

    async def holder(hop: Any, ports: Any) -> Any:
        try:
            return await before(hop, ports)
        except Refusal as no:
            if no.body.code is not Code.GRANT_CLOSED:
                raise
        grant = ports.mint.verify(hop.request.grant, hop.ask.caller)
        past = await ports.ledger.newest(hop.ask.tenant, hop.ask.txn)
        return hop.with_(grant=grant, fold=past, parent=past.nodes[grant.jti.hop])

    put(stack, verify, "holder", holder)


# Long work


@bug
def a_grant_from_before_a_resumption_is_accepted(stack: ExitStack) -> None:
    put(stack, tree.Node, "counts", lambda self, n, rec: n <= self.n)


@bug
def a_parked_hop_keeps_its_hold(stack: ExitStack) -> None:
    before = fold._park

    def park(past: Any, record: Any) -> Any:
        after = before(past, record)
        parent = past.nodes[past.nodes[record.hop].parent]
        kept = msgspec.structs.replace(after.nodes[parent.hop], held=parent.held)
        return msgspec.structs.replace(after, nodes=after.nodes.set(parent.hop, kept))

    put(stack, fold, "_park", park)


@bug
def a_parked_hop_may_still_call(stack: ExitStack) -> None:
    before = tree.Fold.is_open

    def is_open(self: Any, hop: str) -> bool:
        return before(self, hop) or (hop in self.nodes and self.nodes[hop].state == "parked")

    put(stack, tree.Fold, "is_open", is_open)


# Labels


@bug
def labels_come_with_the_close_alone(stack: ExitStack) -> None:
    put(stack, fold, "spoken", lambda past, node: past)


@bug
def labels_stop_at_whoever_heard_first(stack: ExitStack) -> None:
    before = flow._spread

    def spread(past: Any, waiting: Any) -> Any:
        nodes = past.nodes
        for hop, node in past.nodes.items():
            nodes = nodes.set(hop, msgspec.structs.replace(node, parent=None))
        after = before(msgspec.structs.replace(past, nodes=nodes), waiting)
        if after.reached is past.reached:
            return past
        back = after.nodes
        for hop, node in after.nodes.items():
            back = back.set(hop, msgspec.structs.replace(node, parent=past.nodes[hop].parent))
        return msgspec.structs.replace(after, nodes=back)

    put(stack, flow, "_spread", spread)


@bug
def a_call_is_sent_without_what_its_caller_knows(stack: ExitStack) -> None:
    before = pipeline.AGAIN, pipeline.DECIDE

    async def forgetful(hop: Any, ports: Any) -> Any:
        hop = await inspect(hop, ports)
        return hop.with_(labels=())

    for name, stages in zip(("AGAIN", "DECIDE"), before, strict=True):
        put(stack, pipeline, name, tuple(forgetful if stage is inspect else stage for stage in stages))


# Revocations


@bug
def a_revoked_grant_is_forgotten(stack: ExitStack) -> None:
    put(stack, fold, "_revoke", lambda past, record: past)


@bug_of_the_whole
def what_is_revoked_after_the_opening_is_sent(stack: ExitStack) -> None:
    put(stack, dispatch, "nothing_stops", lambda *_: None)


@bug_of_the_whole
def a_replica_that_cannot_hear_goes_on(stack: ExitStack) -> None:
    put(stack, revocations.KvRevocations, "fresh", property(lambda self: self._beaten > float("-inf")))


@bug_of_the_whole
def a_revocation_is_not_heard_once_it_was_seen(stack: ExitStack) -> None:
    put(stack, revocations.KvRevocations, "_apply", lambda self, key, value: None)


# Time, callees, callers


@bug
def the_scan_closes_what_still_has_time(stack: ExitStack) -> None:
    async def overdue(self: Any, now_ms: int, grace_ms: int, limit: int = 500) -> list[OpenHop]:
        query = "SELECT tenant, txn, hop, deadline FROM hop WHERE closed_at IS NULL LIMIT ?"
        return [OpenHop(*row) for row in await self._all(query, (limit,))]

    put(stack, IndexQueries, "overdue", overdue)


@bug
def a_repeated_dispatch_is_served_again(stack: ExitStack) -> None:
    put(stack, remit.serve, "check_dispatch", lambda call, **about: check_dispatch(call, **{**about, "seen": ()}))


@bug
def a_dispatch_past_its_deadline_is_served(stack: ExitStack) -> None:
    def unhurried(call: Any, **about: Any) -> Any:
        return check_dispatch(call, **{**about, "now": min(about["now"], call.deadline / 1000 - 0.001)})

    put(stack, remit.serve, "check_dispatch", unhurried)


@bug
def a_cancellation_is_not_passed_on(stack: ExitStack) -> None:
    put(stack, nats_bus.NatsBus, "cancel", nothing)


@bug
def who_starts_late_never_hears_of_a_cancellation(stack: ExitStack) -> None:
    put(stack, nats_bus.NatsBus, "_late_start", nothing)


# Beside the hops


@bug
def a_refusal_is_counted_twice(stack: ExitStack) -> None:
    before = refusal_stream.RefusalStream.write

    async def write(self: Any, record: Any) -> None:
        await before(self, record)
        await before(self, record)

    put(stack, refusal_stream.RefusalStream, "write", write)


@bug
def the_index_moves_on_before_it_has_written(stack: ExitStack) -> None:
    before = sqlite_index.SqliteIndex.add

    async def add(self: Any, messages: Any) -> None:
        try:
            await before(self, messages)
        except Exception:
            self._position[ledger.STREAM] = messages[-1].seq
            raise

    put(stack, sqlite_index.SqliteIndex, "add", add)
