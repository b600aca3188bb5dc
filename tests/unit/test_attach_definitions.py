"""What is registered of a server, and how a message is read that a parser refuses as a whole."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from remit_broker.edges.attach.child import MAX_LINE
from remit_broker.edges.attach.definitions import Offered, offer
from remit_broker.edges.attach.lenient import DEPTH, readable
from remit_broker.edges.attach.session import ServerIdentity
from remit_broker.edges.attach.streamable import _Readable
from remit_schemas.envelope import MAX_ENVELOPE, encode

SERVER = ServerIdentity("files", "1", "2025-11-25")


def tool(name: str, size: int = 0) -> dict[str, Any]:
    return {"name": name, "description": "x" * size, "inputSchema": {"type": "object"}}


def test_tools_that_do_not_fit_into_one_registration_keep_the_others_in_it() -> None:
    large = [tool(f"large_{n}", 60_000) for n in range(20)]
    found = offer(Offered([*large, tool("small")]), SERVER)
    kept = {one["name"] for one in found.args["tools"]}
    assert "small" in kept and "large_0" in kept and len(kept) + len(found.left_out) == 21
    assert len(encode(found.args)) < MAX_ENVELOPE
    assert all("large" in line for line in found.left_out)


def test_of_many_left_out_the_first_are_told_and_how_many_more_there_are() -> None:
    found = offer(Offered([tool(f"a/{n}") for n in range(150)]), SERVER)
    assert len(found.left_out) == 101 and found.left_out[-1] == "and 50 more"


def nested(levels: int) -> bytes:
    return b'{"x":' + b"[" * levels + b"]" * levels + b',"y":"{[\\"[{"}'


@pytest.mark.parametrize("levels", [0, 1, DEPTH - 1])
def test_what_can_be_read_is_left_as_it_is(levels: int) -> None:
    line = b'{"x":' + b"[" * levels + b"1" + b"]" * levels + b"}"
    assert readable(line) is line


@pytest.mark.parametrize("levels", [250, 5_000, 100_000])
def test_what_is_nested_too_deeply_is_none_and_the_rest_is_what_it_was(levels: int) -> None:
    found = json.loads(readable(nested(levels)))
    assert found["y"] == '{["[{'
    for _ in range(DEPTH - 1):
        (found["x"],) = found["x"]
    assert math.isnan(found["x"])


def test_half_a_character_is_none_wherever_it_stands() -> None:
    found = json.loads(readable(rb'{"a":["\ud800","b"],"\udc00":1}'))
    assert math.isnan(found["a"][0]) and found["a"][1] == "b" and len(found) == 2


@pytest.mark.parametrize("line", [b"", b"Starting", b"[1]", b"{", b'{"a":' + b"[" * 300, b"{]}", b'{"a":tru}'])
def test_what_is_no_message_stays_none(line: bytes) -> None:
    assert readable(line) == line


@pytest.mark.parametrize("whole", [False, True])
async def test_a_line_of_a_listing_that_never_ends_is_given_up(whole: bool) -> None:
    sent = [0]

    class Endless(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            while sent[0] < 4 * MAX_LINE:
                sent[0] += 1 << 20
                yield b"x" * (1 << 20)

    with pytest.raises(httpx2.StreamError, match="an event of more than"):
        async for _ in _Readable(Endless(), whole=whole):
            pass
    assert sent[0] <= MAX_LINE + (2 << 20)
