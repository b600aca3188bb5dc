"""Streams towards clients: what is kept of them, for whom, and for how long."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from remit_broker.edges.mcp.streams import BYTES, ENDED, MESSAGES, Stream, Streams

pytestmark = pytest.mark.asyncio


async def whole(stream: Stream, after: int | None = None) -> str:
    """What is read of a stream that has ended."""
    return b"".join([piece async for piece in stream.read(after)]).decode()


def streams() -> Streams:
    return Streams(outbox=4, named=True, primes=False)


async def test_what_is_kept_of_streams_is_bounded() -> None:
    mine = streams()
    for _ in range(ENDED + 10):
        stream = mine.open()
        stream.put({"n": "x" * (BYTES // 8)})
        stream.close()
    kept = [number for number in range(1, ENDED + 11) if mine.find(f"{number}-0") is not None]
    assert len(kept) <= 9 and kept[-1] == ENDED + 10  # the newest, within so many bytes
    stream = mine.open()
    for n in range(MESSAGES + 5):
        stream.put({"n": n})
    assert mine.find(f"{stream.number}-4") is None and mine.find(f"{stream.number}-5") is not None


async def test_what_is_too_large_to_be_kept_is_sent_and_no_longer_there() -> None:
    mine = streams()
    stream = mine.open()
    stream.put({"n": "x" * BYTES})
    stream.close()
    assert len(await whole(stream)) > BYTES
    assert mine.find("1-0") is None and stream.size == 0


async def test_a_stream_that_is_open_is_kept_whatever_ends_beside_it() -> None:
    mine = streams()
    first = mine.open()
    for _ in range(ENDED + 10):
        mine.open().close()
    assert mine.find(f"{first.number}-0") == (first, 0)


async def test_a_stream_that_is_taken_up_has_nothing_of_another() -> None:
    mine = streams()
    one, other = mine.open(), mine.open()
    for n in range(3):
        one.put({"one": n})
        other.put({"other": n})
    one.close()
    # Whoever reads the other comes to an end as well.
    other.close()
    found = mine.find("1-1")
    assert found is not None
    text = await whole(*found)
    assert '{"one":1}' in text and '{"one":2}' in text and '{"one":0}' not in text and "other" not in text


@pytest.mark.parametrize("name", ["", "1", "1-", "-1", "1-9", "9-0", "1-0\n", "1-0-0", "٣-0", "1-" + "9" * 40, "a-b"])
async def test_what_is_no_event_is_not_found(name: str) -> None:
    mine = streams()
    mine.open()
    assert mine.find(name) is None


async def test_whoever_takes_a_stream_up_reads_it_alone() -> None:
    mine = streams()
    stream = mine.open()
    stream.put({"n": 1})
    first: AsyncIterator[bytes] = stream.read()
    assert b'{"n":1}' in await anext(first)
    second: AsyncIterator[bytes] = stream.read(0)
    assert b'{"n":1}' in await anext(second)
    stream.put({"n": 2})
    with pytest.raises(StopAsyncIteration):
        await anext(first)
    assert b'{"n":2}' in await anext(second)


async def test_a_listener_that_comes_back_without_an_id_misses_nothing_and_hears_nothing_twice() -> None:
    mine = streams()
    mine.outbox.put({"n": 1})
    reading = mine.outbox.read()
    assert b'{"n":1}' in await anext(reading)
    await reading.aclose()  # type: ignore[attr-defined]
    mine.outbox.put({"n": 2})
    mine.outbox.close()
    assert '{"n":1}' not in await whole(mine.outbox)
