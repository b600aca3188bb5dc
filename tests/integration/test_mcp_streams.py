"""Streams that broke are taken up again: by clients at ``/mcp``, and by Remit at the servers behind it."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import pytest_asyncio

from remit_broker.edges.attach.source import source
from tests.support.attach_fixture import SERVERS, eventually
from tests.support.mcp_client import Front, Raw, front_of

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]


class Breaking(BaseHTTPRequestHandler):
    """A server whose streams break off, and go on for whoever names the last event that came."""

    protocol_version = "HTTP/1.1"
    calls: list[str]
    gets: list[str | None]
    away = 0

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        method, ident = message.get("method"), message.get("id")
        if ident is None:
            return self.answered(202, b"")
        if method == "tools/call":
            type(self).calls.append(json.dumps(ident))
            return self.stream([b"id: call-7\nretry: 10\ndata: \n\n"])  # and no answer
        results: dict[str, Any] = {
            "initialize": {
                "protocolVersion": "2025-11-25", "capabilities": {"tools": {"listChanged": True}},
                "serverInfo": {"name": "breaking", "version": "1"},
            },
            "tools/list": {"tools": [{"name": "act", "inputSchema": {"type": "object"}}]},
        }  # fmt: skip
        body = {"jsonrpc": "2.0", "id": ident, "result": results.get(method, {})}
        self.answered(200, json.dumps(body).encode())

    def do_GET(self) -> None:
        last = self.headers.get("Last-Event-ID")
        type(self).gets.append(last)
        if last == "call-7":
            said = {"content": [{"type": "text", "text": "after the break"}]}
            ident = json.loads(type(self).calls[-1])
            return self.stream([self.event("call-8", {"jsonrpc": "2.0", "id": ident, "result": said})])
        if last is None:
            return self.stream([self.event("own-1", {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})])
        if type(self).away < 4:  # more than the library has patience for
            type(self).away += 1
            return self.answered(503, b"")
        return self.answered(405, b"")

    def event(self, name: str, message: dict[str, Any]) -> bytes:
        return f"id: {name}\nretry: 10\nevent: message\ndata: {json.dumps(message)}\n\n".encode()

    def stream(self, events: list[bytes]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for one in events:
            self.wfile.write(one)
        self.close_connection = True

    def answered(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if body else "text/plain")
        self.send_header("Mcp-Session-Id", "a-session")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def breaking() -> Iterator[str]:
    Breaking.calls, Breaking.gets = [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Breaking)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/mcp"
    server.shutdown()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(tmp_path_factory: pytest.TempPathFactory, breaking: str) -> AsyncIterator[Front]:
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(front_of(tmp_path_factory.mktemp("front"), servers=()))
        await running.attach("talkative", source([sys.executable, str(SERVERS / "talkative.py")]), stack)
        await running.attach("breaking", source(url=breaking), stack)
        yield running


class Events:
    """The events of a stream, as they come: ``(id, message)``, with None as the message of one that is an id alone."""

    def __init__(self, front: Front, raw: Raw) -> None:
        self._front, self._raw = front, raw
        self.last = ""

    async def of(
        self, verb: str, last: str | None = None, message: dict[str, Any] | None = None
    ) -> AsyncIterator[dict[str, Any] | None]:
        headers = {
            "Authorization": f"Bearer {self._raw.token}", "Accept": "application/json, text/event-stream",
            "Mcp-Session-Id": self._raw.session, **({} if last is None else {"Last-Event-ID": last}),
        }  # fmt: skip
        url = self._front.url + self._raw.path
        async with self._front.http.stream(verb, url, headers=headers, json=message) as response:
            assert response.status_code == 200, await response.aread()
            async for line in response.aiter_lines():
                if line.startswith("id:"):
                    self.last = line[3:].strip()
                elif line.startswith("data:"):
                    yield json.loads(line[5:]) if line[5:].strip() else None


async def begun(front: Front, path: str = "/mcp/talkative", **changes: Any) -> Raw:
    raw = front.raw(path)
    await raw.begin(**changes)
    return raw


CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "ask", "arguments": {"text": "who?"}}}


async def broken_off(front: Front, raw: Raw) -> tuple[Events, int | str]:
    """A call whose stream was left after its question, and the id of that."""
    events = Events(front, raw)
    async for message in events.of("POST", message=CALL):
        if message is not None and message.get("method") == "elicitation/create":
            return events, message["id"]
    raise AssertionError("nothing was asked")


async def test_a_call_whose_stream_broke_is_answered_on_another(front: Front) -> None:
    raw = await begun(front, capabilities={"elicitation": {}})
    events, question = await broken_off(front, raw)
    said = {"action": "accept", "content": {"name": "ann"}}
    await raw.post({"jsonrpc": "2.0", "id": question, "result": said})
    (answer,) = [one async for one in events.of("GET", events.last) if one is not None]
    assert answer["id"] == 1 and "accept" in answer["result"]["content"][0]["text"]
    # And once more, from its beginning: that it was sent does not mean that it came.
    number = events.last.partition("-")[0]
    again = [one async for one in events.of("GET", f"{number}-0") if one is not None]
    assert [one.get("method", "answer") for one in again] == ["elicitation/create", "answer"]


async def test_a_stream_begins_with_an_id_for_clients_that_know_such_events(front: Front) -> None:
    for version, primes in (("2025-11-25", True), ("2025-06-18", False)):
        raw = await begun(front, protocolVersion=version)
        message = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        text = (await raw.post(message)).text
        assert (": \n\n" in text and "retry:" in text) == primes
        assert "id: 1-1" in text


async def test_what_a_client_was_told_while_it_did_not_listen_is_told_when_it_comes_back(front: Front) -> None:
    raw = await begun(front)
    events, heard = Events(front, raw), asyncio.Event()
    session = next(one for one in front.clients._sessions.all() if one.id == raw.session)

    async def listen() -> None:
        async for message in events.of("GET"):
            if message is not None:
                heard.set()

    listening = asyncio.create_task(listen())
    session.tell({"jsonrpc": "2.0", "method": "notifications/one"})
    await heard.wait()
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    session.tell({"jsonrpc": "2.0", "method": "notifications/two"})
    async for message in events.of("GET", events.last):
        if message is not None:
            assert message["method"] == "notifications/two"
            break


async def test_a_call_whose_stream_broke_at_the_server_is_taken_up_there(front: Front) -> None:
    raw = await begun(front, "/mcp/breaking")
    answer = await raw.ask("tools/call", {"name": "act", "arguments": {}})
    assert answer["result"]["content"][0]["text"] == "after the break"
    assert len(Breaking.calls) == 1 and "call-7" in Breaking.gets


async def test_a_stream_of_a_server_that_was_away_is_taken_up_again(front: Front) -> None:
    own = lambda: [last for last in Breaking.gets if last != "call-7"]  # noqa: E731
    await eventually(lambda: len(own()) > 5)
    assert own()[:6] == [None, *["own-1"] * 5]
