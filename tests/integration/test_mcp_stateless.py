"""Clients of the generation 2026-07-28 at a running broker: the MCP library's own, and one that says what it likes."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import mcp_types as types
import pytest
import pytest_asyncio
from mcp.shared.exceptions import MCPError

from remit_broker.edges.attach.source import source
from tests.support.attach_fixture import SERVERS, eventually
from tests.support.mcp_client import BOTH, Front, front_of

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]
REVISION = "2026-07-28"
SAMPLED = types.CreateMessageResult(role="assistant", model="m", content=types.TextContent(type="text", text="sampled"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(front_of(tmp_path_factory.mktemp("front")))
        for name in ("conformance", "talkative"):
            await running.attach(name, source([sys.executable, str(SERVERS / f"{name}.py")]), stack)
        # A server that knows no generation with sessions.
        await running.attach("alone", source([sys.executable, str(SERVERS / "conformance.py"), "alone"]), stack)
        yield running


@pytest.mark.parametrize("mode", ["legacy", REVISION])
async def test_a_server_without_sessions_is_used_by_clients_of_both_generations(front: Front, mode: str) -> None:
    async def sample(_: Any, params: types.CreateMessageRequestParams) -> types.CreateMessageResult:
        return SAMPLED

    async with front.client("/mcp/alone", mode=mode, sampling_callback=sample) as client:
        assert (await client.call_tool("test_simple_text", {})).content[0].text
        assert (await client.read_resource("test://static-text")).contents
        answer = await client.call_tool("test_input_required_result_sampling", {})
        assert "sampled" in answer.content[0].text
        # What the client cannot be asked, the server hears it cannot.
        assert (await client.call_tool("test_missing_capability", {})).content[0].text == "The client can"
    async with front.client("/mcp/alone", mode=mode) as client:
        with pytest.raises(MCPError) as refused:
            await client.call_tool("test_missing_capability", {})
    assert refused.value.error.code == -32021 and refused.value.error.data["requiredCapabilities"] == {"sampling": {}}


async def test_a_server_without_sessions_tells_clients_with_one_of_their_resources(front: Front) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()

    async def on_message(message: Any) -> None:
        if isinstance(message, types.ResourceUpdatedNotification):
            told.put_nowait(str(message.params.uri))

    async with front.client("/mcp/alone", mode="legacy", message_handler=on_message) as client:
        await client.subscribe_resource("test://watched-resource")
        await client.call_tool("test_touch", {})
        assert await asyncio.wait_for(told.get(), 30) == "test://watched-resource"


async def test_a_client_without_a_session_sees_and_calls_what_others_do(front: Front) -> None:
    async with front.client("/mcp/conformance", mode=REVISION) as client:
        assert client.protocol_version == REVISION
        assert "test_simple_text" in [tool.name for tool in (await client.list_tools()).tools]
        answer = await client.call_tool("test_simple_text", {})
        assert answer.content[0].text == "This is a simple text response for testing."
        assert '"id":"7"' in (await client.read_resource("test://template/7/data")).contents[0].text
        assert (await client.get_prompt("test_simple_prompt")).messages
        ref = types.PromptReference(name="test_prompt_with_arguments")
        assert (await client.complete(ref, {"name": "arg1", "value": "par"})).completion.values
    async with front.client("/mcp", mode="auto") as client:
        assert client.protocol_version == REVISION and client.server_info.name == "remit"
        assert (await client.call_tool("files__echo", {"text": "hi"})).structured_content == {"result": "hi"}


async def test_a_request_without_a_session_is_a_task_of_its_own(front: Front) -> None:
    async with front.client("/mcp/files", mode=REVISION) as client:
        metas: list[Any] = [(await client.call_tool("echo", {"text": "x"})).meta for _ in range(2)]
    txns = {meta["dev.remit/txn"] for meta in metas}
    assert len(txns) == 2
    for txn in txns:
        async with asyncio.timeout(20):
            while (await front.lab.records(txn))[-1]["kind"] != "txn.closed":
                await asyncio.sleep(0.05)


async def test_requests_that_a_client_says_belong_together_are_one_task(front: Front) -> None:
    async with front.client("/mcp/files", mode=REVISION) as client:
        meta = {"dev.remit/session": "prompt-1"}
        metas: list[Any] = [(await client.call_tool("echo", {"text": "x"}, meta=meta)).meta for _ in range(2)]
    assert len({meta["dev.remit/txn"] for meta in metas}) == 1


async def test_what_a_server_asks_is_a_round_of_its_client(front: Front) -> None:
    """The server is of the generation with sessions, and asks by a request of its own; the client is of the one without."""

    async def sample(_: Any, params: types.CreateMessageRequestParams) -> types.CreateMessageResult:
        return SAMPLED

    async with front.client("/mcp/conformance", mode=REVISION, sampling_callback=sample) as client:
        answer = await client.call_tool("test_sampling", {"prompt": "say it"})
    assert answer.content[0].text == "LLM response: sampled"
    kinds = [record["kind"] for record in await front.lab.records(answer.meta["dev.remit/txn"])]
    assert kinds[:5] == ["txn.opened", "hop.opened", "hop.parked", "hop.resumed", "hop.closed"]


async def test_a_client_without_a_session_is_asked_only_what_it_can_be_asked(front: Front) -> None:
    async with front.client("/mcp/talkative", mode=REVISION) as client:
        answer = await client.call_tool("ask", {"text": "who?"})
    assert answer.is_error


async def test_what_is_listed_is_cached_for_its_principal_alone(front: Front) -> None:
    raw = front.raw("/mcp/files")
    for method in ("server/discover", "tools/list", "resources/list", "prompts/list", "resources/templates/list"):
        answer = (await raw.once(method)).json()
        assert answer["result"]["cacheScope"] == "private" and answer["result"]["resultType"] == "complete", answer
    raw.path = "/mcp/talkative"
    assert (await raw.once("resources/read", {"uri": "note://one"})).json()["result"]["ttlMs"] == 0


async def test_a_client_is_told_of_changes_on_the_stream_it_asked_for(front: Front) -> None:
    async with (
        front.client("/mcp/talkative", mode=REVISION) as client,
        client.listen(resource_subscriptions=["note://one"], tools_list_changed=True) as changes,
    ):
        assert list(changes.honored.resource_subscriptions) == ["note://one"]
        for uri in ("note://two", "note://one"):
            await client.call_tool("touch", {"text": uri})
        async with asyncio.timeout(30):
            assert str((await anext(changes)).uri) == "note://one"
        front.clients.changed("default", "talkative")
        async with asyncio.timeout(30):
            assert "Tools" in type(await anext(changes)).__name__
    await eventually(lambda: not front.clients._stateless.listening())


@pytest.mark.parametrize("meta", [{}, {"progressToken": "p"}])
async def test_a_client_that_hangs_up_has_cancelled(front: Front, meta: dict[str, Any]) -> None:
    raw = front.raw("/mcp/files")
    call = {"name": "slow", "arguments": {"seconds": 60}, "_meta": meta}
    before = set(await front.txns())
    message, headers = raw.stateless("tools/call", call)
    request = asyncio.create_task(front.http.post(front.url + raw.path, json=message, headers=headers))
    async with asyncio.timeout(30):
        while not (new := set(await front.txns()) - before):
            await asyncio.sleep(0.05)
        txn = new.pop()
        while (await front.lab.records(txn))[-1]["kind"] != "hop.opened":
            await asyncio.sleep(0.05)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        while (await front.lab.records(txn))[-1]["kind"] != "txn.closed":
            await asyncio.sleep(0.05)
    closed = next(record for record in await front.lab.records(txn) if record["kind"] == "hop.closed")
    assert closed["code"] == "CANCELLED", closed


async def test_logs_come_only_where_a_request_asks_for_them(front: Front) -> None:
    raw = front.raw("/mcp/conformance")
    call = {"name": "test_tool_with_logging", "arguments": {}}
    assert [one.get("method") for one in raw.messages(await raw.once("tools/call", call))] == [None]
    call["_meta"] = {"io.modelcontextprotocol/logLevel": "info"}
    heard = raw.messages(await raw.once("tools/call", call))
    assert [one.get("method") for one in heard] == ["notifications/message"] * 3 + [None]


async def test_progress_comes_on_the_stream_of_its_request(front: Front) -> None:
    raw = front.raw("/mcp/conformance")
    call = {"name": "test_tool_with_progress", "arguments": {}, "_meta": {"progressToken": "p"}}
    heard = raw.messages(await raw.once("tools/call", call))
    assert len(heard) > 1 and all(one["params"]["progressToken"] == "p" for one in heard[:-1])


@pytest.mark.parametrize("method", ["ping", "logging/setLevel", "resources/subscribe", "tasks/list", "nothing/at/all"])
async def test_what_this_generation_has_not_is_not_found(front: Front, method: str) -> None:
    response = await front.raw("/mcp/files").once(method, {})
    assert (response.status_code, response.json()["error"]["code"]) == (404, -32601)


async def test_another_revision_is_told_which_are_spoken(front: Front) -> None:
    raw = front.raw("/mcp/files")
    meta = {"io.modelcontextprotocol/protocolVersion": "2099-01-01"}
    response = await raw.once("tools/list", {"_meta": meta}, {"Mcp-Protocol-Version": "2099-01-01"})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, -32022)
    assert error["data"]["requested"] == "2099-01-01" and "2025-11-25" in error["data"]["supported"]


@pytest.mark.parametrize("verb", ["GET", "DELETE"])
async def test_without_sessions_there_is_nothing_to_get_or_delete(front: Front, verb: str) -> None:
    headers = {"Authorization": f"Bearer {front.token}", "Accept": BOTH, "Mcp-Protocol-Version": REVISION}
    response: httpx.Response = await front.http.request(verb, front.url + "/mcp/files", headers=headers)
    assert response.status_code == 405 and response.headers["allow"] == "POST"
    message = json.dumps({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}})
    told = await front.http.post(
        front.url + "/mcp/files", content=message, headers=headers | {"Content-Type": "application/json"}
    )
    assert told.status_code == 202
