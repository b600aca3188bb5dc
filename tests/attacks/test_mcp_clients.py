"""Hostile clients of ``/mcp``: what one client has is of no use to another, and no message keeps the broker from answering."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.support.attach_fixture import eventually
from tests.support.mcp_client import HELLO, Front, Raw, front_of, said

pytestmark = pytest.mark.asyncio(loop_scope="module")
CALL = {"name": "echo", "arguments": {"text": "x"}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    async with front_of(tmp_path_factory.mktemp("front"), servers=("files", "other")) as running:
        yield running


async def begun(front: Front, path: str = "/mcp/files", token: str | None = None) -> Raw:
    raw = front.raw(path, token)
    await raw.begin()
    return raw


async def granted(front: Front, agent: str, user: str = "bob") -> Raw:
    if front.lab.broker.registry.principal(agent) is None:
        await front.lab.agent(agent)
    return await begun(front, token=(await front.lab.grant(agent, "mcp/files/*", user=user)).grant)


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "eyJ0eXAiOiJkbGcrand0In0.e30.AAAA"])
@pytest.mark.parametrize("verb", ["POST", "GET", "DELETE"])
async def test_nobody_gets_in_without_being_known(front: Front, verb: str, token: str) -> None:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    response = await front.http.request(verb, f"{front.url}/mcp/files", headers=headers, content=b"{}")
    assert response.status_code == 401 and "WWW-Authenticate" in response.headers
    assert response.json()["error"]["ask"]


async def test_a_stolen_session_is_of_no_use(front: Front) -> None:
    mine, theirs = await begun(front), await granted(front, "thief")
    theirs.session, own = mine.session, theirs.session
    for message in (
        {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": CALL},
        {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}},
    ):
        assert (await theirs.post(message)).status_code == 404
    headers = {"Authorization": f"Bearer {theirs.token}", "Mcp-Session-Id": mine.session, "Accept": "text/event-stream"}
    for verb in ("GET", "DELETE"):
        assert (await front.http.request(verb, front.url + "/mcp/files", headers=headers)).status_code == 404
    # The owner's goes on, and the thief's own does too.
    theirs.session = own
    assert "result" in await mine.ask("tools/call", CALL) and "result" in await theirs.ask("tools/call", CALL)


async def test_a_session_of_one_server_is_none_of_another(front: Front) -> None:
    raw = await begun(front)
    raw.path = "/mcp/other"
    assert (await raw.post({"jsonrpc": "2.0", "id": 1, "method": "ping"})).status_code == 404


async def test_a_client_cannot_choose_the_id_of_a_session(front: Front) -> None:
    raw = front.raw()
    raw.session = "f" * 64
    await raw.begin()
    assert raw.session != "f" * 64


async def test_equal_ids_of_two_sessions_are_two_calls(front: Front) -> None:
    one, other = await begun(front), await begun(front)
    answers = await asyncio.gather(
        one.ask("tools/call", {"name": "echo", "arguments": {"text": "one"}}, id=7),
        other.ask("tools/call", {"name": "echo", "arguments": {"text": "other"}}, id=7),
    )
    assert [answer["result"]["structuredContent"]["result"] for answer in answers] == ["one", "other"]
    assert [answer["id"] for answer in answers] == [7, 7]


async def test_an_id_that_is_in_use_is_refused(front: Front) -> None:
    raw = await begun(front)
    slow = asyncio.create_task(raw.ask("tools/call", {"name": "slow", "arguments": {"seconds": 30}}, id=1))
    await eventually(lambda: any(1 in one.running for one in front.clients._sessions.all()))
    again = await raw.ask("tools/call", CALL, id=1)
    assert again["result"]["_meta"]["dev.remit/error"]["rule"] == "mcp.id"
    await raw.tell("notifications/cancelled", {"requestId": 1})
    assert (await slow)["result"]["isError"]


async def test_nobody_cancels_anothers_call(front: Front) -> None:
    mine, other = await begun(front), await begun(front)
    slow = asyncio.create_task(mine.ask("tools/call", {"name": "slow", "arguments": {"seconds": 2}}, id="job"))
    await eventually(lambda: any("job" in one.running for one in front.clients._sessions.all()))
    wishes: list[Any] = ["job", 1, None, [], {"a": 1}]
    for wish in wishes:
        await other.tell("notifications/cancelled", {"requestId": wish})
    assert (await slow)["result"]["structuredContent"] == {"result": "done"}


async def test_a_foreign_cursor_is_refused(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remit_broker.edges.mcp.catalogue.PAGE", 2)
    mine, theirs = await begun(front), await granted(front, "reader")
    cursor = (await mine.ask("tools/list"))["result"]["nextCursor"]
    assert "result" in await mine.ask("tools/list", {"cursor": cursor})
    for wrong in (cursor, "0", "2.", f"4.{cursor.partition('.')[2]}", "", 7, {"a": 1}, "é.é", "9" * 70):
        answer = await theirs.ask("tools/list", {"cursor": wrong})
        assert answer["error"]["code"] == -32602, wrong


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../other/echo",
        "a/b",
        "*",
        "**",
        "$resource",
        "$prompt",
        "x" * 300,
        "echo\x00",
        "ech\u200bo",
        "\u202eohce",
        "Echo",
    ],
)
async def test_a_hostile_name_of_a_tool_is_an_unknown_tool(front: Front, name: str) -> None:
    for path in ("/mcp/files", "/mcp"):
        raw = await begun(front, path)
        answer = await raw.ask("tools/call", {"name": name, "arguments": {}})
        assert answer["error"]["code"] == -32602, answer


@pytest.mark.parametrize("server", ["none", "..", "FILES", "files%2Fecho", "remit", "mcp-client", "x" * 300])
async def test_a_hostile_name_of_a_server_is_nothing(front: Front, server: str) -> None:
    response = await front.raw(f"/mcp/{server}").post(
        {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": HELLO}
    )
    assert response.status_code == 404


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"{", b"null", b"7", b'"x"', b"\xff\xfe", b'{"jsonrpc":"2.0"}', b'{"jsonrpc":"1.0","id":1,"method":"ping"}',
        b'{"jsonrpc":"2.0","id":null,"method":"ping"}', b'{"jsonrpc":"2.0","id":true,"method":"ping"}',
        b'{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}', b'{"jsonrpc":"2.0","id":1,"method":5}',
        b'{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}', b'{"jsonrpc":"2.0","id":1,"method":"ping","params":NaN}',
        b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]', b'{"jsonrpc":"2.0","id":1,"result":{},"error":{}}',
        b'{"jsonrpc":"2.0","id":1,"method":"ping","params":' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)  # fmt: skip
async def test_what_is_no_message_is_answered_as_such(front: Front, data: bytes) -> None:
    raw = await begun(front)
    response = await raw.post(None, data=data)
    assert response.status_code == 400 and response.json()["error"]["code"] in (-32700, -32600)
    assert "result" in await raw.ask("ping")


async def test_a_message_that_is_too_large_is_not_read_to_its_end(front: Front) -> None:
    raw = await begun(front)
    response = await raw.post(
        None, data=b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":"' + b"x" * 1_100_000 + b'"}}'
    )
    assert response.status_code == 413
    assert "result" in await raw.ask("ping")


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Host": "127.0.0.1.evil.example"},
    ],
)
async def test_a_web_page_gets_nothing_of_the_local_endpoint(front: Front, headers: dict[str, str]) -> None:
    raw = await begun(front)
    assert (await raw.post({"jsonrpc": "2.0", "id": 1, "method": "ping"}, headers)).status_code == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415), ({"Accept": "text/html"}, 406),
        ({"Mcp-Protocol-Version": "1999-01-01"}, 400),
    ],
)  # fmt: skip
async def test_headers_that_do_not_fit_are_refused(front: Front, headers: dict[str, str], status: int) -> None:
    raw = await begun(front)
    assert (await raw.post({"jsonrpc": "2.0", "id": 1, "method": "ping"}, headers)).status_code == status


async def test_a_dead_grant_begins_no_session(front: Front) -> None:
    await front.lab.agent("late")
    opened = await front.lab.grant("late", "mcp/files/*")
    headers = {"Authorization": f"Bearer {front.token}"}
    assert (await front.http.post(f"{front.url}/api/chains/{opened.txn}/close", headers=headers)).status_code == 200
    hello = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": HELLO}
    assert (await front.raw(token=opened.grant).post(hello)).status_code == 403
    # And one that dies later is worth nothing from then on.
    opened = await front.lab.grant("late", "mcp/files/*")
    raw = await begun(front, token=opened.grant)
    assert "result" in await raw.ask("tools/call", CALL)
    assert (await front.http.post(f"{front.url}/api/chains/{opened.txn}/close", headers=headers)).status_code == 200
    assert (await raw.post({"jsonrpc": "2.0", "id": 9, "method": "tools/call", "params": CALL})).status_code == 403


async def test_a_grant_that_was_changed_is_nobodys(front: Front) -> None:
    await front.lab.agent("forger")
    opened = await front.lab.grant("forger", "mcp/files/*")
    head, body, signature = opened.grant.split(".")
    for token in (f"{head}.{body}.{signature[:-4]}AAAA", f"{head}.{body[:-4]}AAAA.{signature}"):
        hello = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": HELLO}
        assert (await front.raw(token=token).post(hello)).status_code in (400, 401)


async def test_one_client_with_many_sessions_takes_none_from_another(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remit_broker.edges.mcp.session.PER_PRINCIPAL", 3)
    other = await granted(front, "patient")
    greedy = [await begun(front) for _ in range(6)]
    assert "result" in await other.ask("ping")
    assert (await greedy[0].post({"jsonrpc": "2.0", "id": 1, "method": "ping"})).status_code == 404
    assert "result" in await greedy[-1].ask("ping")


async def test_the_calls_of_a_session_at_once_are_bounded(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remit_broker.edges.mcp.session.MAX_CALLS", 2)
    raw = await begun(front)
    running = [
        asyncio.create_task(raw.ask("tools/call", {"name": "slow", "arguments": {"seconds": 30}}, id=f"s{n}"))
        for n in range(2)
    ]
    await eventually(lambda: any(len(one.running) == 2 for one in front.clients._sessions.all()))
    answer = await raw.ask("tools/call", CALL, id="third")
    assert answer["result"]["_meta"]["dev.remit/error"]["code"] == "RATE_LIMITED"
    for n in range(2):
        await raw.tell("notifications/cancelled", {"requestId": f"s{n}"})
    assert all(answer["result"]["isError"] for answer in await asyncio.gather(*running))


async def test_a_revoked_user_is_no_client(front: Front) -> None:
    raw = await begun(front)
    user = (await front.lab.records((await raw.ask("tools/call", CALL))["result"]["_meta"]["dev.remit/txn"]))[0]["user"]
    headers = {"Authorization": f"Bearer {front.token}"}
    stop: dict[str, Any] = {"user": user, "why": "a test"}
    assert (await front.http.post(f"{front.url}/api/revocations", headers=headers, json=stop)).status_code == 200
    try:
        response = await raw.post({"jsonrpc": "2.0", "id": 1, "method": "ping"})
        assert response.status_code == 403, response.text
    finally:
        done = await front.http.post(f"{front.url}/api/revocations/reinstate", headers=headers, json=stop)
        assert done.status_code == 200


async def test_a_stream_holds_one_message_a_line(front: Front) -> None:
    raw = await begun(front)
    params: dict[str, Any] = {
        "name": "echo",
        "arguments": {"text": 'a\n\ndata: {"x":1}\r\n\u2028b'},
        "_meta": {"progressToken": "p"},
    }
    response = await raw.post({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
    (answer,) = said(response)
    assert json.loads(json.dumps(answer))["result"]["structuredContent"]["result"] == params["arguments"]["text"]


async def test_an_event_of_another_session_is_not_there(front: Front) -> None:
    mine, other, thief = await begun(front), await begun(front), await granted(front, "thief")
    for n in range(3):
        await mine.ask("tools/call", {"name": "echo", "arguments": {"text": f"mine {n}"}})
    await other.ask("tools/call", {"name": "echo", "arguments": {"text": "theirs"}})

    async def taken_up(raw: Raw, session: str, last: str) -> Any:
        headers = {"Authorization": f"Bearer {raw.token}", "Mcp-Session-Id": session, "Accept": "text/event-stream"}
        return await front.http.get(front.url + raw.path, headers={**headers, "Last-Event-ID": last})

    assert "mine 2" in (await taken_up(mine, mine.session, "3-0")).text
    # In another session the same id is that one's own event, or none.
    for last in ("3-0", "2-1", "3-1", "9-9", "", "x", "../1-0", "1-0, 3-0"):
        answer = await taken_up(other, other.session, last)
        assert answer.status_code == 400 and "mine" not in answer.text
    own = (await taken_up(other, other.session, "1-0")).text
    assert "theirs" in own and "mine" not in own
    # With the id of the session too it is of no use to another user.
    assert (await taken_up(thief, mine.session, "3-0")).status_code == 404
