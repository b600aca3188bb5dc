"""The inbound half of a NATS connection: the same messages however the bytes are cut, and nothing that ends the reading."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import ProtocolError, SlowConsumerError, UnexpectedEOF

from remit_broker.adapters.nats_client import HardenedClient
from remit_broker.adapters.nats_wire import Reading, read_headers
from remit_broker.ports import at_once

WIRE = (
    b'INFO {"server_name":"x"}\r\nPING\r\n'
    b"MSG a.b 1 5\r\nhello\r\n"
    b"MSG a.b 1 reply.to 0\r\n\r\n"
    b"+OK\r\nHMSG a.b 1 reply 16 16\r\nNATS/1.0 503\r\n\r\n\r\n"
    b"HMSG a.b 1 21 26\r\nNATS/1.0\r\nname: v\r\n\r\n\x00\r\nMS\r\n"
    b"MSG a\x0bb\x0c 1 3\r\nMSG\r\n"
    b"MSG a.b 9 1\r\nx\r\nPONG\r\n"
)


class Seen:
    """A client with one subscription, and what reached it."""

    def __init__(self, **limits: Any) -> None:
        self.messages: list[tuple[str, str, bytes, dict[str, str] | None]] = []
        self.client = HardenedClient()
        self.pings = 0
        self.reading = Reading(self.client, asyncio.Protocol(), self._ping)
        self.subscription = Subscription(self.client, 1, "a.b", cb=self.heard, **limits)
        self.client._subs[1] = self.subscription

    def _ping(self) -> None:
        self.pings += 1

    @at_once
    async def heard(self, message: Msg) -> None:
        self.messages.append((message.subject, message.reply, message.data, message.headers))

    async def reported(self) -> list[Exception]:
        """What went to ``error_cb``, or ended the reading."""
        found: list[Exception] = []

        async def error(problem: Exception) -> None:
            found.append(problem)

        self.client._error_cb = error
        while not self.reading.later.empty():
            task = self.reading.later.get_nowait()
            if isinstance(task, Exception):
                found.append(task)
            else:
                await task()
        return found


EXPECTED = [
    ("a.b", "", b"hello", None),
    ("a.b", "reply.to", b"", None),
    ("a.b", "reply", b"", {"Status": "503"}),
    ("a.b", "", b"\x00\r\nMS", {"name": "v"}),
    ("a\x0bb\x0c", "", b"MSG", None),
]


@given(st.lists(st.integers(0, len(WIRE)), max_size=12))
def test_the_messages_are_the_same_however_the_bytes_are_cut(cuts: list[int]) -> None:
    async def read() -> Seen:
        seen = Seen()
        places = [0, *sorted(cuts), len(WIRE)]
        for start, stop in itertools.pairwise(places):
            if start < stop:
                seen.reading.data_received(WIRE[start:stop])
        return seen

    seen = asyncio.run(read())
    assert (seen.messages, seen.pings) == (EXPECTED, 1)
    assert seen.reading.later.qsize() == 2  # the INFO and the PONG


@pytest.mark.parametrize(
    "line",
    [b"MSG a.b 1\r\n", b"MSG a.b 1 x y z 3\r\n", b"MSG a.b +1 3\r\n", b"MSG a.b 1 1_0\r\n", b"HMSG a.b 1 9 3\r\n",
     b"MSG\ta.b\t1\t0\r\n\r\n", b"NONSENSE\r\n", b"x" * 2_000_000],
)  # fmt: skip
async def test_what_is_not_the_protocol_ends_the_connection(line: bytes) -> None:
    seen = Seen()
    seen.reading.data_received(line)
    seen.reading.data_received(b"MSG a.b 1 0\r\n\r\n")
    assert seen.messages == []
    [why] = await seen.reported()
    assert isinstance(why, ProtocolError)


async def test_what_cannot_be_decoded_is_dropped_and_read_past() -> None:
    seen = Seen()
    seen.reading.data_received(b"MSG \xff\xfe 1 1\r\nx\r\nHMSG a.b 1 10 10\r\nnonsense\r\n\r\nMSG a.b 1 1\r\nx\r\n")
    assert seen.messages == [("a.b", "", b"", None), ("a.b", "", b"x", None)]
    assert await seen.reported() == []


async def test_a_callback_that_fails_or_waits_is_reported_and_the_next_message_read() -> None:
    seen = Seen()

    @at_once
    async def fails(message: Msg) -> None:
        raise RuntimeError("no")

    @at_once
    async def waits(message: Msg) -> None:
        await asyncio.sleep(0)

    for callback in (fails, waits):
        seen.subscription._cb = callback
        seen.reading.data_received(b"MSG a.b 1 0\r\n\r\n")
    seen.subscription._cb = seen.heard
    seen.reading.data_received(b"MSG a.b 1 0\r\n\r\n")
    first, second = await seen.reported()
    assert str(first) == "no"
    assert "waits" in str(second)
    assert len(seen.messages) == 1


async def test_a_subscription_that_does_not_keep_up_loses_messages_and_says_so() -> None:
    seen = Seen(pending_msgs_limit=2)
    seen.subscription._cb = None
    seen.reading.data_received(b"MSG a.b 1 1\r\nx\r\n" * 3)
    assert seen.subscription.pending_msgs == 2
    [slow] = await seen.reported()
    assert isinstance(slow, SlowConsumerError)


async def test_the_end_of_a_connection_is_told_once_and_nothing_follows() -> None:
    seen = Seen()
    seen.reading.eof_received()
    seen.reading.connection_lost(None)
    seen.reading.data_received(b"MSG a.b 1 0\r\n\r\n")
    assert seen.messages == []
    [end] = await seen.reported()
    assert isinstance(end, UnexpectedEOF)


@given(st.binary(max_size=60), st.booleans())
def test_any_bytes_are_headers_or_none(block: bytes, begins_well: bool) -> None:
    found = read_headers((b"NATS/1.0" if begins_well else b"") + block)
    assert found is None or all(isinstance(part, str) for pair in found.items() for part in pair)


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=30).filter(lambda line: b"\r\n" not in line),
            st.builds(
                lambda name, gap, value: f"{name}:{gap}{value}".encode(),
                st.text("Nats- \tié\x1c\x0b", max_size=8), st.sampled_from(["", " ", "\t"]), st.text(max_size=8),
            ),
        ),
        max_size=6,
    )
)  # fmt: skip
def test_headers_are_read_as_the_library_reads_them(lines: list[bytes]) -> None:
    block = b"".join(line + b"\r\n" for line in lines) + b"\r\n"
    theirs = Client._parse_header_lines(block)
    theirs.pop("", None)
    assert read_headers(b"NATS/1.0\r\n" + block) == (theirs or None)


def test_a_client_of_the_library_has_what_is_used_of_it() -> None:
    """The fields of nats-py that the reading relies on; another version that lacks one is noticed here."""
    assert {"_subs", "stats", "_pending", "_pending_data_size", "_transport", "_status"} <= set(vars(Client()))
    assert {"_jsi", "_cb", "_received", "_max_msgs", "_pending_queue", "_pending_size", "_future"} <= set(
        vars(Subscription(Client()))
    )
    assert all(hasattr(Client, name) for name in ("_attempt_reconnect", "_close", "_process_op_err", "_send_ping"))
