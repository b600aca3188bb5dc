"""Appends that are committed together: each has its own answer, and no more is believed of any than if it had gone alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from remit_broker.adapters.commit_groups import BATCH_COMMIT, BATCH_ID, BATCH_SEQUENCE, LEAST, CommitGroups
from remit_broker.adapters.jetstream import EXPECT_SUBJECT, IN_FLIGHT, WRONG_LAST_SEQUENCE, Ack, Unreachable
from remit_broker.adapters.jetstream import _Fault as Fault
from remit_broker.adapters.jetstream_ledger import JetStreamLedger
from remit_broker.core.fold import Fold
from remit_broker.ledger_port import LostRace
from tests.support.fake_jetstream import FakeJetStream
from tests.support.story import hop_id, opened, opening

A = hop_id(0)
MANY = LEAST + 8


class Batching(FakeJetStream):
    """Atomic batches as the server commits them. ``commits`` says what becomes of the next ones; by default they work."""

    def __init__(self) -> None:
        super().__init__()
        self.staged: dict[str, list[tuple[str, bytes, dict[str, str]]]] = {}
        self.commits: list[Callable[[Callable[[], Ack]], Awaitable[Ack]]] = []
        self.sizes: list[int] = []

    async def hand_over(self, subject: str, payload: bytes, headers: dict[str, str]) -> None:
        staged = self.staged.setdefault(headers[BATCH_ID], [])
        staged.append((subject, payload, headers))
        assert headers[BATCH_SEQUENCE] == str(len(staged))

    async def publish(self, subject: str, payload: bytes, headers: dict[str, str], seconds: float | None = None) -> Ack:
        if BATCH_COMMIT not in headers:
            return await super().publish(subject, payload, headers, seconds)
        await self.hand_over(subject, payload, headers)
        await asyncio.sleep(0)
        batch = self.staged.pop(headers[BATCH_ID])
        self.sizes.append(len(batch))

        def act() -> Ack:
            for where, _, said in batch:
                if self._last(where) != int(said[EXPECT_SUBJECT]):
                    return Ack("LEDGER", 0, Fault(400, WRONG_LAST_SEQUENCE, "wrong last sequence"))
            for where, body, said in batch:
                self.store(where, body, int(said[EXPECT_SUBJECT]))
            return Ack("LEDGER", self.end, None, headers[BATCH_ID], len(batch))

        return await self.commits.pop(0)(act) if self.commits else act()


async def ack_lost(act: Callable[[], Ack]) -> Ack:
    act()
    raise Unreachable("the ack was lost")


async def never_arrived(act: Callable[[], Ack]) -> Ack:
    raise Unreachable("it never arrived")


async def refused(act: Callable[[], Ack]) -> Ack:
    return Ack("LEDGER", 0, Fault(400, IN_FLIGHT, "in flight"))


async def miscounted(act: Callable[[], Ack]) -> Ack:
    return Ack(act().stream, 10_000, None, "another", 3)


@pytest.fixture
def js() -> Batching:
    return Batching()


@pytest.fixture
async def ledger(js: Batching) -> JetStreamLedger:
    """A ledger with many txns of one record each, whose appends are grouped."""
    ledger = JetStreamLedger(js, patience=2.0, attempt=0.2)
    for number in range(MANY):
        await ledger.create(opened(txn(number)), "root-grant")
    ledger._groups = CommitGroups(js)
    return ledger


def txn(number: int) -> str:
    return f"{number + 1:032x}"


async def opens(ledger: JetStreamLedger, number: int) -> Fold | LostRace:
    async with ledger.turn("default", txn(number)) as turn:
        return await turn.append(opening(turn.fold, A), "grant")


async def all_open(ledger: JetStreamLedger) -> list[Fold | LostRace]:
    return await asyncio.gather(*(opens(ledger, number) for number in range(MANY)))


def stored(js: Batching) -> list[str]:
    return [message.subject.rpartition(".")[2] for message in js.stored.values()]


async def test_many_appends_that_are_ready_together_are_one_batch(js: Batching, ledger: JetStreamLedger) -> None:
    folds = await all_open(ledger)
    assert js.sizes == [MANY]
    assert all(isinstance(fold, Fold) and fold.is_open(A) for fold in folds)
    for number, fold in enumerate(folds):
        assert await ledger.newest("default", txn(number)) == fold
        assert stored(js).count(txn(number)) == 2


async def test_few_appends_go_alone(js: Batching, ledger: JetStreamLedger) -> None:
    await asyncio.gather(*(opens(ledger, number) for number in range(LEAST - 1)))
    assert js.sizes == []
    assert len(js.stored) == MANY + LEAST - 1


@pytest.mark.parametrize("trouble", [ack_lost, never_arrived, refused, miscounted])
async def test_a_batch_without_an_answer_is_made_sure_of_entry_by_entry(
    js: Batching, ledger: JetStreamLedger, trouble: Callable[[Callable[[], Ack]], Awaitable[Ack]]
) -> None:
    """Stored or not, each append of it is known in the end, and there once."""
    js.commits = [trouble]
    folds = await all_open(ledger)
    assert all(isinstance(fold, Fold) and fold.is_open(A) for fold in folds)
    assert sorted(stored(js)) == sorted([txn(number) for number in range(MANY)] * 2)
    assert ledger.halted is None


async def test_one_lost_race_in_a_batch_is_the_loss_of_one(js: Batching, ledger: JetStreamLedger) -> None:
    rival = JetStreamLedger(js, patience=2.0, attempt=0.2)
    async with rival.turn("default", txn(3)) as turn:
        assert isinstance(await turn.append(opening(turn.fold, hop_id(7)), None), Fold)
    outcomes = await all_open(ledger)
    assert js.sizes == [MANY]
    lost = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, LostRace)]
    assert lost == [3]
    assert stored(js).count(txn(3)) == 2


async def test_who_is_cancelled_while_it_waits_is_not_published(js: Batching, ledger: JetStreamLedger) -> None:
    holding = asyncio.Event()

    async def slow(act: Callable[[], Ack]) -> Ack:
        await holding.wait()
        return act()

    js.commits = [slow]
    first = asyncio.gather(*(opens(ledger, number) for number in range(LEAST)))
    while not js.sizes:
        await asyncio.sleep(0)
    late = asyncio.create_task(opens(ledger, LEAST))
    other = asyncio.create_task(opens(ledger, LEAST + 1))
    for _ in range(5):
        await asyncio.sleep(0)
    late.cancel()
    holding.set()
    await first
    assert isinstance(await other, Fold)
    assert late.cancelled() or isinstance(
        (await asyncio.gather(late, return_exceptions=True))[0], asyncio.CancelledError
    )
    assert stored(js).count(txn(LEAST)) == 1
    assert ledger._groups is not None and ledger._groups._alone == 0
