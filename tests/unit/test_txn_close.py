"""Closing a txn while another replica does the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

from remit_broker.core.fold import Fold, apply
from remit_broker.hop.txn import close_txn
from remit_broker.ledger_port import LostRace
from tests.support.story import as_stored, closing, ending, opened, opening


class _Turn:
    """A turn in which another replica's append always comes first, as long as there is one."""

    def __init__(self, fold: Fold, others: list[Fold]) -> None:
        self.fold, self._others = fold, others
        self.appended: list[str] = []

    async def append(self, record: Any, grant: str | None) -> Fold | LostRace:
        if self._others:
            self.fold = self._others.pop(0)
            return LostRace(self.fold)
        raw = as_stored(record)
        self.fold = apply(self.fold, raw)
        self.appended.append(raw["kind"])
        return self.fold


def _ports(turn: _Turn) -> Any:
    @asynccontextmanager
    async def entered(tenant: str, txn: str) -> AsyncIterator[_Turn]:
        yield turn

    async def ended(*_: str) -> None:
        return None

    return SimpleNamespace(
        ledger=SimpleNamespace(turn=entered), clock=SimpleNamespace(now=lambda: 1_800_000_000.0),
        bus=SimpleNamespace(replica="r2", ended=ended), registry=SimpleNamespace(target=lambda _: None),
        observer=SimpleNamespace(swept=lambda *_: None), ids=SimpleNamespace(blind=lambda: "f" * 32),
    )  # fmt: skip


async def test_a_txn_that_another_replica_closed_meanwhile_is_closed_and_nothing_is_appended():
    first = apply(None, as_stored(opened()))
    running = apply(first, as_stored(opening(first, "2" * 16)))
    swept = apply(running, as_stored(closing(running, "2" * 16, outcome="cancelled")))
    closed = apply(swept, as_stored(ending(swept)))
    turn = _Turn(running, [closed])
    fold = await close_txn(running.tenant, running.txn, "ops", "closed", _ports(turn))
    assert fold.state == "closed"
    assert turn.appended == []


async def test_a_hop_that_another_replica_opened_meanwhile_is_closed_first():
    first = apply(None, as_stored(opened()))
    running = apply(first, as_stored(opening(first, "2" * 16)))
    turn = _Turn(first, [running])
    fold = await close_txn(first.tenant, first.txn, "ops", "closed", _ports(turn))
    assert fold.state == "closed"
    assert turn.appended == ["hop.closed", "txn.closed"]
