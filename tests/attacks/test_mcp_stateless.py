"""Hostile clients of the generation 2026-07-28: states, claims and headers are of use to nobody but whoever they belong to."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio

from remit_broker.edges.attach.source import source
from tests.support.attach_fixture import SERVERS, free_port
from tests.support.cli import until
from tests.support.mcp_client import Front, Raw, front_of

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]
ASK = {
    "name": "ask", "arguments": {"text": "who?"}, "_meta": {"io.modelcontextprotocol/clientCapabilities": {"elicitation": {}}},
}  # fmt: skip
SAID = {"1": {"action": "accept", "content": {"name": "ann"}}}


@pytest.fixture(scope="module")
def talkative() -> Iterator[str]:
    """The server over HTTP: there a question comes on the stream of its call, so that several can be open at once."""
    port = free_port()
    server = subprocess.Popen([sys.executable, str(SERVERS / "talkative.py"), "http", str(port)])
    until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
    yield f"http://127.0.0.1:{port}/mcp"
    server.kill()
    server.wait()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(tmp_path_factory: pytest.TempPathFactory, talkative: str) -> AsyncIterator[Front]:
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(front_of(tmp_path_factory.mktemp("front")))
        for name in ("talkative", "other"):
            await running.attach(name, source(url=talkative), stack)
        yield running


async def asked(raw: Raw) -> str:
    """The state of a request that waits for its client."""
    result = (await raw.once("tools/call", ASK)).json()["result"]
    assert result["resultType"] == "input_required" and result["inputRequests"]["1"]["method"] == "elicitation/create"
    state: str = result["requestState"]
    return state


async def granted(front: Front, agent: str) -> Raw:
    if front.lab.broker.registry.principal(agent) is None:
        await front.lab.agent(agent)
    opened = await front.lab.grant(agent, "mcp/**", user="bob")
    return front.raw("/mcp/talkative", opened.grant)


async def test_a_state_of_a_request_is_of_use_to_nobody_else_and_only_once(front: Front) -> None:
    mine, thief, elsewhere = front.raw("/mcp/talkative"), await granted(front, "thief"), front.raw("/mcp/other")
    state = await asked(mine)
    again: dict[str, Any] = {**ASK, "requestState": state, "inputResponses": SAID}
    for raw in (thief, elsewhere):
        response = await raw.once("tools/call", again)
        assert (response.status_code, response.json()["error"]["code"]) == (400, -32602)
        assert response.json()["error"]["data"] == {"reason": "invalid_request_state"}
    # For its own client it is worth what was asked for, and then nothing any more.
    answer = (await mine.once("tools/call", again)).json()["result"]
    assert answer["resultType"] == "complete" and "ann" in answer["content"][0]["text"]
    assert (await mine.once("tools/call", again)).json()["error"]["code"] == -32602


@pytest.mark.parametrize("changed", [{"arguments": {"text": "other"}}, {"name": "touch"}])
async def test_answers_are_of_use_to_no_other_call(front: Front, changed: dict[str, Any]) -> None:
    raw = front.raw("/mcp/talkative")
    state = await asked(raw)
    answer = (await raw.once("tools/call", {**ASK, **changed, "requestState": state, "inputResponses": SAID})).json()
    assert answer["error"]["data"] == {"reason": "invalid_request_state"}
    # Nor is the state then of use to the call it was given for: whoever tries has had their turn.
    again = (await raw.once("tools/call", {**ASK, "requestState": state, "inputResponses": SAID})).json()
    assert again["error"]["data"] == {"reason": "invalid_request_state"}


async def test_a_state_that_was_made_up_is_refused(front: Front) -> None:
    raw = front.raw("/mcp/talkative")
    state = await asked(raw)
    wishes: list[Any] = [
        "",
        "x",
        state[:-2] + ("AA" if state[-2:] != "AA" else "BB"),
        "A" * 64,
        "é" * 64,
        7,
        {"a": 1},
        ["x"],
        "A" * 5000,
    ]
    for wish in wishes:
        response = await raw.once("tools/call", {**ASK, "requestState": wish, "inputResponses": SAID})
        assert response.json()["error"]["code"] == -32602, wish
    # A read is no call.
    response = await raw.once("resources/read", {"uri": "note://one", "requestState": state})
    assert response.json()["error"]["code"] == -32602


async def test_a_claimed_session_is_its_users_alone(front: Front) -> None:
    claim = {"name": "touch", "arguments": {"text": "note://one"}, "_meta": {"dev.remit/session": "shared"}}
    mine, theirs = front.raw("/mcp/talkative"), await granted(front, "reader")
    txns = [
        (await raw.once("tools/call", claim)).json()["result"]["_meta"]["dev.remit/txn"] for raw in (mine, mine, theirs)
    ]
    assert txns[0] == txns[1] != txns[2]
    records = [await front.lab.records(txn) for txn in (txns[0], txns[2])]
    assert records[0][0]["user"] != records[1][0]["user"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Mcp-Name": "touch"}, {"Mcp-Method": "tools/list"}, {"Mcp-Protocol-Version": "2025-11-25"}, {"Mcp-Name": ""},
        {"Mcp-Name": "=?base64?YXNr"}, {"Mcp-Name": "=?base64?////?="}, {"Mcp-Method": "TOOLS/CALL"},
    ],
)  # fmt: skip
async def test_a_header_that_disagrees_with_the_body_is_refused(front: Front, headers: dict[str, str]) -> None:
    response = await front.raw("/mcp/talkative").once("tools/call", ASK, headers)
    assert (response.status_code, response.json()["error"]["code"]) == (400, -32020), response.text


async def test_a_header_that_is_missing_or_stands_there_twice_is_refused(front: Front) -> None:
    raw = front.raw("/mcp/talkative")
    message, headers = raw.stateless("tools/call", ASK)
    for left_out in ("Mcp-Name", "Mcp-Method", "Mcp-Protocol-Version"):
        kept = {name: value for name, value in headers.items() if name != left_out}
        response = await front.http.post(front.url + raw.path, json=message, headers=kept)
        assert (response.status_code, response.json()["error"]["code"]) == (400, -32020), left_out
    twice = [*headers.items(), ("Mcp-Name", "ask")]
    response = await front.http.post(front.url + raw.path, json=message, headers=twice)
    assert (response.status_code, response.json()["error"]["code"]) == (400, -32020)


@pytest.mark.parametrize(
    "meta",
    [
        {"io.modelcontextprotocol/protocolVersion": None}, {"io.modelcontextprotocol/protocolVersion": 7},
        {"io.modelcontextprotocol/clientCapabilities": None}, {"io.modelcontextprotocol/clientCapabilities": "all"},
    ],
)  # fmt: skip
async def test_a_request_that_says_nothing_of_its_client_is_refused(front: Front, meta: dict[str, Any]) -> None:
    response = await front.raw("/mcp/talkative").once("tools/list", {"_meta": meta})
    assert response.status_code == 400 and response.json()["error"]["code"] in (-32602, -32020)


async def test_nobody_without_a_session_cancels_anothers_call(front: Front) -> None:
    raw = front.raw("/mcp/talkative")
    state = await asked(raw)
    message = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
    assert (await raw.post(message, {"Mcp-Protocol-Version": "2026-07-28"})).status_code == 202
    answer = (await raw.once("tools/call", {**ASK, "requestState": state, "inputResponses": SAID})).json()
    assert "ann" in answer["result"]["content"][0]["text"]


async def test_a_cursor_of_another_client_is_refused(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remit_broker.edges.mcp.catalogue.PAGE", 2)
    mine, theirs = front.raw("/mcp/talkative"), await granted(front, "lister")
    cursor = (await mine.once("tools/list")).json()["result"]["nextCursor"]
    assert (await theirs.once("tools/list", {"cursor": cursor})).json()["error"]["code"] == -32602
    assert (await mine.once("tools/list", {"cursor": cursor})).json()["result"]["tools"]


async def test_one_client_that_never_answers_takes_no_room_from_another(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remit_broker.edges.mcp.rounds.MAX_WAITING", 2)
    patient, greedy = front.raw("/mcp/talkative"), await granted(front, "greedy")
    state = await asked(patient)
    states = [await asked(greedy) for _ in range(3)]
    again: dict[str, Any] = {**ASK, "inputResponses": SAID}
    assert "ann" in str((await patient.once("tools/call", {**again, "requestState": state})).json()["result"])
    answers = [(await greedy.once("tools/call", {**again, "requestState": one})).json() for one in states]
    assert ["error" in answer for answer in answers] == [True, False, False]
