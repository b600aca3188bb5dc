"""The append protocol, one fault at a time: an append is done, lost, or refused, and never believed unknown."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from remit_broker.adapters.jetstream import IN_FLIGHT, Ack, Message, Unreachable
from remit_broker.adapters.jetstream_ledger import JetStreamLedger
from remit_broker.core.fold import Fold
from remit_broker.ledger_port import LostRace
from remit_schemas.errors import Code, Refusal
from remit_schemas.records import Record, plain
from tests.support.fake_jetstream import FakeJetStream, Trouble, ack_lost, answers, never_sent
from tests.support.story import TXN, Story, closing, hop_id, opened, opening

KEY = ("default", TXN)
SUBJECT = f"ledger.default.{TXN}"
A, B, C = map(hop_id, range(3))


@pytest.fixture
def js() -> FakeJetStream:
    return FakeJetStream()


@pytest.fixture
async def ledger(js: FakeJetStream) -> JetStreamLedger:
    """A ledger with one txn that has one record."""
    ledger = JetStreamLedger(js, patience=0.3, attempt=0.05)
    await ledger.create(opened(), "root-grant")
    return ledger


async def opens(ledger: JetStreamLedger, hop: str) -> Fold | LostRace:
    async with ledger.turn(*KEY) as turn:
        return await turn.append(opening(turn.fold, hop), "grant")


def records_of(js: FakeJetStream) -> list[dict[str, object]]:
    return [msgspec.json.decode(message.data)["record"] for _, message in sorted(js.stored.items())]


def put(js: FakeJetStream, record: Record) -> Ack:
    """Another replica appends."""
    payload = msgspec.json.encode({"record": plain(record)})
    return js.store(SUBJECT, payload, js._last(SUBJECT))


async def refusal_of(work: object) -> Refusal:
    with pytest.raises(Refusal) as no:
        await work  # type: ignore[misc]
    return no.value


@pytest.mark.parametrize(
    "troubles",
    [
        [ack_lost], [never_sent], [ack_lost, never_sent, never_sent], [never_sent, ack_lost, ack_lost],
        [answers(IN_FLIGHT)], [ack_lost, answers(IN_FLIGHT)], [never_sent, answers(IN_FLIGHT), ack_lost],
    ],
)  # fmt: skip
async def test_an_append_whose_ack_is_lost_is_stored_once(
    js: FakeJetStream, ledger: JetStreamLedger, troubles: list[Trouble]
) -> None:
    js.troubles = list(troubles)
    fold = await opens(ledger, A)
    assert isinstance(fold, Fold) and fold.is_open(A)
    assert [record["seq"] for record in records_of(js)] == [0, 1]
    assert await ledger.fold(*KEY) == fold


@pytest.mark.parametrize("trouble", [ack_lost, never_sent])
async def test_a_txn_whose_first_ack_is_lost_is_opened_once(js: FakeJetStream, trouble: Trouble) -> None:
    js.troubles = [trouble]
    fold = await JetStreamLedger(js, patience=0.3).create(opened(), "g")
    assert fold.seq == 0 and len(js.stored) == 1


async def test_a_txn_is_not_opened_over_another_one(js: FakeJetStream, ledger: JetStreamLedger) -> None:
    no = await refusal_of(ledger.create(opened(user="mallory"), "g"))
    assert no.body.code is Code.CONFLICT and len(js.stored) == 1


async def test_a_lost_race_gives_the_fold_of_who_won(js: FakeJetStream, ledger: JetStreamLedger) -> None:
    async with ledger.turn(*KEY) as turn:
        put(js, opening(turn.fold, B))
        lost = await turn.append(opening(turn.fold, A), "grant")
        assert isinstance(lost, LostRace) and lost.fold.is_open(B) and not lost.fold.is_open(A)
        assert turn.fold == lost.fold
        won = await turn.append(opening(turn.fold, A), "grant")
    assert isinstance(won, Fold) and won.is_open(A) and won.is_open(B)


async def test_a_race_lost_after_a_lost_ack_is_told_from_one_that_was_won(
    js: FakeJetStream, ledger: JetStreamLedger
) -> None:
    """The first attempt is not stored and another replica appends, before the second attempt."""
    other = opening(await ledger.fold(*KEY), B)

    def overtaken(stream: FakeJetStream, _: Callable[[], Ack]) -> Ack:
        put(stream, other)
        return never_sent(stream, _)

    js.troubles = [overtaken]
    lost = await opens(ledger, A)
    assert isinstance(lost, LostRace) and lost.fold.is_open(B) and not lost.fold.is_open(A)


async def test_a_race_won_before_a_lost_ack_counts_although_others_followed(
    js: FakeJetStream, ledger: JetStreamLedger
) -> None:
    """The first attempt is stored, its ack is lost, and another replica appends after it."""

    def followed(stream: FakeJetStream, act: Callable[[], Ack]) -> Ack:
        act()
        story = Story()
        story.open(A)
        put(stream, opening(story.fold, B))
        return never_sent(stream, act)

    js.troubles = [followed]
    fold = await opens(ledger, A)
    assert isinstance(fold, Fold) and fold.is_open(A) and fold.is_open(B)
    assert [record["seq"] for record in records_of(js)] == [0, 1, 2]


async def test_many_records_of_others_are_caught_up_with(js: FakeJetStream, ledger: JetStreamLedger) -> None:
    story = Story()
    await ledger.fold(*KEY)
    for number in range(12):
        record = opening(story.fold, hop_id(number))
        put(js, record)
        story.add(record)
    lost = await opens(ledger, "f" * 16)
    assert isinstance(lost, LostRace) and lost.fold == story.fold


async def test_an_append_that_cannot_be_known_refuses_and_forgets(js: FakeJetStream, ledger: JetStreamLedger) -> None:
    js.troubles = [ack_lost, *[never_sent] * 1000]
    no = await refusal_of(opens(ledger, A))
    assert (no.body.code, no.body.rule) == (Code.LEDGER_UNAVAILABLE, "ledger.unreachable")
    js.troubles = []
    fold = await ledger.fold(*KEY)
    assert fold.is_open(A), "what was stored is read back, not remembered"


@pytest.mark.parametrize("code", [10077, 10047, 10023])
async def test_a_full_disk_refuses(js: FakeJetStream, ledger: JetStreamLedger, code: int) -> None:
    js.troubles = [answers(code)]
    no = await refusal_of(opens(ledger, A))
    assert no.body.code is Code.LEDGER_UNAVAILABLE and str(code) in no.cause
    assert str(code) not in no.body.message
    assert isinstance(await opens(ledger, A), Fold)


async def test_a_cancelled_append_leaves_the_next_turn_right(js: FakeJetStream, ledger: JetStreamLedger) -> None:
    cut = asyncio.Event()

    async def hang(_: FakeJetStream) -> None:
        cut.set()
        await asyncio.sleep(60)

    real = js.publish

    async def stored_then_silent(*args: object, **kwargs: object) -> Ack:
        await real(*args, **kwargs)  # type: ignore[arg-type]
        await hang(js)
        raise AssertionError

    js.publish = stored_then_silent  # type: ignore[method-assign]
    task = asyncio.create_task(opens(ledger, A))
    await cut.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    js.publish = real  # type: ignore[method-assign]
    async with ledger.turn(*KEY) as turn:
        assert turn.fold.is_open(A)
        assert isinstance(await turn.append(opening(turn.fold, B), None), Fold)


async def test_a_stream_whose_sequence_goes_backwards_halts_the_ledger(
    js: FakeJetStream, ledger: JetStreamLedger
) -> None:
    await ledger.create(opened("b" * 32), "g")

    def regressed(stream: FakeJetStream, act: Callable[[], Ack]) -> Ack:
        del stream.stored[2]
        stream.end = 1
        return act()

    js.troubles = [regressed]
    no = await refusal_of(opens(ledger, A))
    assert no.body.rule == "ledger.halted" and ledger.halted is not None and "after 2" in ledger.halted
    assert (await refusal_of(ledger.fold(*KEY))).body.rule == "ledger.halted"
    assert (await refusal_of(ledger.create(opened("c" * 32), "g"))).body.rule == "ledger.halted"


def lose_end(js: FakeJetStream) -> None:
    js.stored.pop(js.end)
    js.end -= 1


def replace_end(js: FakeJetStream) -> None:
    """Another record where an acknowledged one stood: what a lost tail looks like once others have appended."""
    story = Story()
    payload = msgspec.json.encode({"record": plain(opening(story.fold, C))})
    js.stored[js.end] = Message(js.end, SUBJECT, payload)


@pytest.mark.parametrize("fault", [lose_end, replace_end])
@pytest.mark.parametrize("call", ["fold", "append", "newest"])
async def test_a_txn_that_was_replaced_after_a_reconnect_halts_the_ledger(
    js: FakeJetStream, ledger: JetStreamLedger, fault: Callable[[FakeJetStream], None], call: str
) -> None:
    assert isinstance(await opens(ledger, A), Fold)
    fault(js)
    js.connections += 1
    work = opens(ledger, B) if call == "append" else getattr(ledger, call)(*KEY)
    assert (await refusal_of(work)).body.rule == "ledger.halted"


async def test_another_txn_that_was_replaced_halts_the_ledger_when_it_is_used(
    js: FakeJetStream, ledger: JetStreamLedger
) -> None:
    """The newest message is as it was; the loss is further back, in a txn that is remembered."""
    await opens(ledger, A)
    await ledger.create(opened("b" * 32), "g")
    js.stored[2] = Message(2, SUBJECT, msgspec.json.encode({"record": plain(opening(Story().fold, C))}))
    js.connections += 1
    assert (await ledger.fold("default", "b" * 32)).seq == 0
    assert (await refusal_of(ledger.fold(*KEY))).body.rule == "ledger.halted"


async def test_a_prefix_that_was_replaced_while_an_append_was_under_way_halts_the_ledger(
    js: FakeJetStream, ledger: JetStreamLedger
) -> None:
    """Compare-and-set compares numbers: the append succeeds on top of another record."""
    await opens(ledger, A)

    def restarted(stream: FakeJetStream, act: Callable[[], Ack]) -> Ack:
        replace_end(stream)
        stream.connections += 1
        return act()

    js.troubles = [restarted]
    assert (await refusal_of(opens(ledger, B))).body.rule == "ledger.halted"


async def test_what_is_acknowledged_after_a_loss_does_not_hide_it(js: FakeJetStream, ledger: JetStreamLedger) -> None:
    """A power cut took the end of the stream, others have filled it up again, and an append that was on its way is stored after."""
    await ledger.create(opened(txn="b" * 32), "g")

    def cut(stream: FakeJetStream, _: Callable[[], Ack]) -> Ack:
        stream.end = stream.end - 1
        stream.connections += 1
        for number in range(2):
            stream.store(f"ledger.default.{number:032x}", b"{}", 0)
        raise Unreachable("lost")

    js.troubles = [cut]
    no = await refusal_of(opens(ledger, A))
    assert no.body.rule == "ledger.halted"
    assert "acknowledged message 2" in no.cause


async def test_an_append_that_outlasts_the_halt_is_refused(js: FakeJetStream, ledger: JetStreamLedger) -> None:
    def halted(_: FakeJetStream, act: Callable[[], Ack]) -> Ack:
        ledger.halt("somebody else noticed a loss")
        return act()

    js.troubles = [halted]
    assert (await refusal_of(opens(ledger, A))).body.rule == "ledger.halted"


async def test_a_record_that_was_only_seen_and_then_lost_halts(js: FakeJetStream, ledger: JetStreamLedger) -> None:
    """Reading two records of others was cut short after the newest had been shown; then that one is gone."""
    first = put(js, opening(await ledger.fold(*KEY), A))
    assert first.error is None
    fold = await JetStreamLedger(js, patience=0.3).fold(*KEY)
    put(js, opening(fold, B))

    async def cut(*_: object) -> None:
        raise Unreachable("the server is gone")

    reading, js.next = js.next, cut  # type: ignore[method-assign,assignment]
    assert (await refusal_of(ledger.newest(*KEY))).body.code is Code.LEDGER_UNAVAILABLE
    js.next = reading  # type: ignore[method-assign]
    del js.stored[js.end]
    js.connections += 1
    assert (await refusal_of(ledger.newest(*KEY))).body.rule == "ledger.halted"


async def test_a_continuation_of_another_past_halts_the_ledger(js: FakeJetStream, ledger: JetStreamLedger) -> None:
    await opens(ledger, A)
    story = Story()
    story.open(C)
    put(js, opening(story.fold, B))
    assert (await refusal_of(opens(ledger, B))).body.rule == "ledger.halted"


async def test_a_reconnect_without_loss_costs_a_read_and_changes_nothing(
    js: FakeJetStream, ledger: JetStreamLedger
) -> None:
    await opens(ledger, A)
    js.connections += 1
    reads = js.reads
    assert (await ledger.fold(*KEY)).is_open(A)
    assert js.reads == reads + 2, "the newest message, and the last record of the txn"
    await ledger.fold(*KEY)
    assert js.reads == reads + 2


async def test_a_txn_with_a_gap_is_refused_and_others_are_not(js: FakeJetStream, ledger: JetStreamLedger) -> None:
    await opens(ledger, A)
    await opens(ledger, B)
    await ledger.create(opened("b" * 32), "g")
    del js.stored[2]
    fresh = JetStreamLedger(js, patience=0.3)
    assert (await refusal_of(fresh.fold(*KEY))).body.rule == "ledger.corrupt"
    assert (await fresh.fold("default", "b" * 32)).seq == 0
    assert fresh.halted is None


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"null", b'{"record":{}}', b'{"record":{"seq":1,"hash":"x"},"more":1}', b"\xff"]
)
async def test_what_is_no_entry_is_refused_not_a_traceback(js: FakeJetStream, data: bytes) -> None:
    js.stored[1] = Message(1, SUBJECT, data)
    assert (await refusal_of(JetStreamLedger(js).fold(*KEY))).body.rule == "ledger.corrupt"


@pytest.mark.parametrize("name", [("default", "b" * 32), ("*", TXN), ("default", "*"), ("default", ">"), ("a.b", TXN)])
async def test_an_unknown_txn_is_refused(ledger: JetStreamLedger, name: tuple[str, str]) -> None:
    no = await refusal_of(ledger.fold(*name))
    assert (no.body.code, no.body.rule) == (Code.GRANT_INVALID, "ledger.unknown-txn")


async def test_turns_of_one_txn_come_in_the_order_they_were_asked_for(js: FakeJetStream) -> None:
    ledger = JetStreamLedger(js, patience=30)
    await ledger.create(opened(), "root-grant")
    order: list[int] = []

    async def take(number: int) -> None:
        async with ledger.turn(*KEY) as turn:
            order.append(number)
            assert isinstance(await turn.append(opening(turn.fold, hop_id(number)), None), Fold)

    await asyncio.gather(*(take(number) for number in range(20)))
    assert order == list(range(20))
    assert not ledger._locks


async def test_a_turn_that_does_not_come_in_time_is_refused(ledger: JetStreamLedger) -> None:
    async with ledger.turn(*KEY):
        no = await refusal_of(_enter(ledger))
    assert no.body.code is Code.LEDGER_UNAVAILABLE
    await _enter(ledger)
    assert not ledger._locks


async def _enter(ledger: JetStreamLedger) -> None:
    async with ledger.turn(*KEY, patience=0.02):
        pass


async def test_a_record_that_does_not_fit_is_never_published(js: FakeJetStream, ledger: JetStreamLedger) -> None:
    async with ledger.turn(*KEY) as turn:
        await turn.append(opening(turn.fold, A), None)
        published = js.published
        no = await refusal_of(turn.append(closing(turn.fold, A, seq=9), None))
    assert (no.body.code, no.body.rule) == (Code.INTERNAL, "ledger.unfit") and js.published == published


async def test_nothing_new_is_opened_past_the_soft_mark_and_what_is_open_can_close(js: FakeJetStream) -> None:
    ledger = JetStreamLedger(js, soft_mark=3000)
    await ledger.create(opened(), "g")
    for number in range(20):
        try:
            await opens(ledger, hop_id(number))
        except Refusal as no:
            assert no.body.rule == "ledger.soft-mark"
            break
    else:
        pytest.fail("the soft mark was never reached")
    assert (await refusal_of(ledger.create(opened("b" * 32), "g"))).body.rule == "ledger.soft-mark"
    async with ledger.turn(*KEY) as turn:
        assert isinstance(await turn.append(closing(turn.fold, A), None), Fold)


async def test_folds_beyond_what_is_remembered_are_read_again(js: FakeJetStream) -> None:
    ledger = JetStreamLedger(js, remembered=2)
    for letter in "abcd":
        await ledger.create(opened(letter * 32), "g")
    assert len(ledger._memory) == 2
    assert (await ledger.fold("default", "a" * 32)).txn == "a" * 32


async def _seen(tenant: str, txn: str) -> tuple[int, str, int] | None:
    """What an index saw: record 1 of the txn, at the second place of the stream."""
    story = Story()
    story.open(A)
    return (1, str(story.records[1]["hash"]), 2) if txn == TXN else None


@pytest.mark.parametrize("left", [0, 1])
async def test_a_txn_shorter_than_its_witness_halts_the_ledger(js: FakeJetStream, left: int) -> None:
    """Its end is lost, and nothing that this replica remembers says so."""
    writer = JetStreamLedger(js)
    await writer.create(opened(), "g")
    await opens(writer, A)
    for seq in range(left + 1, 3):
        del js.stored[seq]
    ledger = JetStreamLedger(js, patience=0.3)
    ledger.witnessed(_seen)
    assert (await refusal_of(ledger.fold(*KEY))).body.rule == "ledger.halted"
    assert ledger.halted is not None


async def test_a_txn_longer_than_its_witness_is_read(js: FakeJetStream, ledger: JetStreamLedger) -> None:
    await opens(ledger, A)
    await opens(ledger, B)
    fresh = JetStreamLedger(js)
    fresh.witnessed(_seen)
    assert (await fresh.fold(*KEY)).seq == 2


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


async def test_an_old_leaders_answer_is_no_loss(js: FakeJetStream) -> None:
    ledger = JetStreamLedger(js, patience=0.3, certain=30.0)
    await ledger.create(opened(), "g")
    await opens(ledger, A)
    newer, js.end = js.stored.pop(2), 1
    js.connections += 1
    assert (await refusal_of(opens(ledger, B))).body.rule == "ledger.suspect"
    assert (await refusal_of(ledger.create(opened("b" * 32), "g"))).body.rule == "ledger.suspect", "nothing goes on"
    js.stored[2], js.end = newer, 2
    await _until(lambda: ledger.trouble is None)
    assert isinstance(await opens(ledger, B), Fold)
    assert ledger.halted is None


async def test_a_loss_on_a_cluster_halts_the_ledger_once_it_is_certain(js: FakeJetStream) -> None:
    ledger = JetStreamLedger(js, patience=0.3, certain=0.6)
    await ledger.create(opened(), "g")
    await opens(ledger, A)
    lose_end(js)
    js.connections += 1
    assert (await refusal_of(opens(ledger, B))).body.rule == "ledger.suspect"
    await _until(lambda: ledger.halted is not None)
    assert (await refusal_of(opens(ledger, B))).body.rule == "ledger.halted"


async def test_the_end_of_a_hop_that_was_seen_is_one_message(
    js: FakeJetStream, ledger: JetStreamLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    await opens(ledger, A)
    behind = JetStreamLedger(js, patience=0.3, attempt=0.05)
    await behind.fold(*KEY)
    async with ledger.turn(*KEY) as turn:
        await turn.append(closing(turn.fold, A), None)
    await behind.newest(*KEY)
    read = js.read

    async def whole(*_: object) -> object:
        raise AssertionError("the whole task is read")

    monkeypatch.setattr(js, "read", whole)
    for one in (ledger, behind):
        assert (await one.closing(*KEY, A)).hop == A
    monkeypatch.setattr(js, "read", read)
    fresh = JetStreamLedger(js, patience=0.3, attempt=0.05)
    assert (await fresh.closing(*KEY, A)).hop == A, "who has not seen it looks for it"
