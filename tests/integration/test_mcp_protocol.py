"""What of the protocol goes through beside tools: resources, prompts, completion, logs, and what servers ask their callers."""

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

from remit_broker.edges.attach.source import source
from tests.support.attach_fixture import SERVERS, eventually
from tests.support.mcp_client import BOTH, Front, Raw, front_of

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(front_of(tmp_path_factory.mktemp("front"), servers=()))
        for name in ("conformance", "talkative"):
            await running.attach(name, source([sys.executable, str(SERVERS / f"{name}.py")]), stack)
        yield running


async def asked(
    front: Front, raw: Raw, name: str, args: dict[str, Any], answer: dict[str, Any]
) -> list[dict[str, Any]]:
    """The messages of a call; each question in it is answered with ``answer``."""
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "arguments": args}}
    headers = {"Authorization": f"Bearer {raw.token}", "Accept": BOTH, "Mcp-Session-Id": raw.session}
    heard = []
    async with front.http.stream("POST", front.url + raw.path, json=message, headers=headers) as response:
        async for line in response.aiter_lines():
            if not line.startswith("data:") or not line[5:].strip():
                continue
            heard.append(json.loads(line[5:]))
            if "method" in heard[-1] and "id" in heard[-1]:
                await raw.post({"jsonrpc": "2.0", "id": heard[-1]["id"], **answer})
    return heard


async def test_resources_and_prompts_are_read_as_hops(front: Front) -> None:
    async with front.client("/mcp/conformance") as client:
        uris = [str(one.uri) for one in (await client.list_resources()).resources]
        assert uris == ["test://static-text", "test://static-binary", "test://watched-resource"]
        assert [one.uri_template for one in (await client.list_resource_templates()).resource_templates] == [
            "test://template/{id}/data"
        ]
        read = await client.read_resource("test://template/7/data")
        assert '"id":"7"' in read.contents[0].text
        names = [one.name for one in (await client.list_prompts()).prompts]
        assert "test_prompt_with_arguments" in names
        got = await client.get_prompt("test_prompt_with_arguments", {"arg1": "a", "arg2": "b"})
        assert "arg1='a'" in got.messages[0].content.text
        ref = types.PromptReference(name="test_prompt_with_arguments")
        assert (await client.complete(ref, {"name": "arg1", "value": "par"})).completion.values == [
            "paris",
            "park",
            "party",
        ]
    (txn, *_) = await front.txns()
    opened = [record["resource"] for record in await front.lab.records(txn) if record["kind"] == "hop.opened"]
    assert opened == ["mcp/conformance/$resource", "mcp/conformance/$prompt", "mcp/conformance/$complete"]


async def test_all_servers_together_have_their_resources_and_prompts(front: Front) -> None:
    async with front.client("/mcp") as client:
        assert {"note://one", "test://static-text"} <= {
            str(one.uri) for one in (await client.list_resources()).resources
        }
        assert (await client.read_resource("note://two")).contents[0].text == "content of note://two"
        got = await client.get_prompt("conformance__test_simple_prompt")
        assert got.messages[0].content.text == "This is a simple prompt for testing."


async def test_what_nobody_has_is_an_error_of_the_protocol(front: Front) -> None:
    raw = front.raw("/mcp")
    await raw.begin()
    assert (await raw.ask("resources/read", {"uri": "file:///etc/passwd"}))["error"]["code"] == -32002
    assert (await raw.ask("prompts/get", {"name": "none"}))["error"]["code"] == -32602
    assert (await raw.ask("completion/complete", {"ref": {"type": "ref/prompt", "name": "x"}, "argument": {}}))["error"]
    assert (await raw.ask("tasks/list"))["error"]["code"] == -32601


async def test_a_grant_without_resources_reads_and_sees_none(front: Front) -> None:
    await front.lab.agent("narrow")
    opened = await front.lab.grant("narrow", "mcp/conformance/test_simple_text")
    raw = front.raw("/mcp/conformance", opened.grant)
    await raw.begin()
    assert (await raw.ask("resources/list"))["result"] == {"resources": []}
    error = (await raw.ask("resources/read", {"uri": "test://static-text"}))["error"]
    assert error["data"]["dev.remit/error"]["code"] == "OUT_OF_SCOPE"


async def test_a_grant_can_name_the_resources_that_may_be_read(front: Front) -> None:
    await front.lab.agent("reader")
    opened = await front.lab.grant("reader", 'mcp/conformance/$resource{"uri":{"prefix":"test://static-"}}')
    raw = front.raw("/mcp/conformance", opened.grant)
    await raw.begin()
    assert "result" in await raw.ask("resources/read", {"uri": "test://static-text"})
    assert "error" in await raw.ask("resources/read", {"uri": "test://template/1/data"})


async def test_logs_of_a_call_reach_its_caller_from_the_level_on_that_it_wants(front: Front) -> None:
    heard: list[str] = []

    async def log(params: types.LoggingMessageNotificationParams) -> None:
        heard.append(str(params.data))

    async with front.client("/mcp/conformance", logging_callback=log) as client:
        await client.call_tool("test_tool_with_logging", {})
        assert heard == ["Tool execution started", "Tool processing data", "Tool execution completed"]
        await client.set_logging_level("error")
        await client.call_tool("test_tool_with_logging", {})
        assert len(heard) == 3


async def test_what_a_server_asks_for_is_given_through_the_pipeline(front: Front) -> None:
    async def sample(_: Any, params: types.CreateMessageRequestParams) -> types.CreateMessageResult:
        return types.CreateMessageResult(
            role="assistant", model="m", content=types.TextContent(type="text", text="sampled")
        )

    async with front.client("/mcp/conformance", sampling_callback=sample) as client:
        answer = await client.call_tool("test_sampling", {"prompt": "say it"})
    assert answer.content[0].text == "LLM response: sampled"
    kinds = [record["kind"] for record in await front.lab.records(answer.meta["dev.remit/txn"])]
    assert kinds[:5] == ["txn.opened", "hop.opened", "hop.parked", "hop.resumed", "hop.closed"]


async def test_a_client_is_asked_only_what_it_can_be_asked(front: Front) -> None:
    raw = front.raw("/mcp/talkative")
    await raw.begin(capabilities={"roots": {}})
    heard = await asked(front, raw, "ask", {"text": "who?"}, {"result": {"action": "accept", "content": {}}})
    assert [message.get("method") for message in heard] == [None]
    assert heard[-1]["result"]["isError"] is True or "error" in heard[-1]
    heard = await asked(front, raw, "roots", {}, {"result": {"roots": [{"uri": "file:///work"}]}})
    assert heard[0]["method"] == "roots/list" and "file:///work" in heard[-1]["result"]["content"][0]["text"]


async def test_a_client_that_declines_is_heard(front: Front) -> None:
    raw = front.raw("/mcp/talkative")
    await raw.begin(capabilities={"elicitation": {}})
    heard = await asked(front, raw, "ask", {"text": "who?"}, {"result": {"action": "decline"}})
    assert heard[0]["params"]["message"] == "who?"
    assert heard[-1]["result"]["content"][0]["text"].startswith("decline")
    # An error is an answer too, and one that is none does no harm.
    for answer in ({"error": {"code": -1, "message": "no"}}, {"result": {"action": 7}}, {"result": "x"}):
        heard = await asked(front, raw, "ask", {"text": "who?"}, answer)
        assert "error" in heard[-1] or heard[-1]["result"]["isError"]


async def test_what_a_server_asks_is_asked_of_its_caller_and_of_nobody_else(front: Front) -> None:
    """On one pipe a question names no call: with two calls in hand nobody is asked, rather than the wrong one."""
    mine, other = front.raw("/mcp/talkative"), front.raw("/mcp/talkative")
    await mine.begin(capabilities={"elicitation": {}})
    await other.begin(capabilities={"elicitation": {}})
    waiting = asyncio.create_task(asked(front, other, "wait", {"text": "4"}, {"result": {"action": "accept"}}))
    await eventually(lambda: any(one.running for one in front.clients._sessions.all()))
    await asyncio.sleep(0.5)
    heard = await asked(
        front, mine, "ask", {"text": "secret?"}, {"result": {"action": "accept", "content": {"name": "x"}}}
    )
    assert [message.get("method") for message in heard] == [None]
    assert [message.get("method") for message in await waiting] == [None]


async def test_nobody_answers_for_another(front: Front) -> None:
    mine, other = front.raw("/mcp/talkative"), front.raw("/mcp/talkative")
    await mine.begin(capabilities={"elicitation": {}})
    await other.begin(capabilities={"elicitation": {}})
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "ask", "arguments": {"text": "?"}}}
    headers = {"Authorization": f"Bearer {mine.token}", "Accept": BOTH, "Mcp-Session-Id": mine.session}
    async with front.http.stream("POST", front.url + mine.path, json=message, headers=headers) as response:
        lines = (
            json.loads(line[5:])
            async for line in response.aiter_lines()
            if line.startswith("data:") and line[5:].strip()
        )
        question = await anext(lines)
        forged = {"jsonrpc": "2.0", "id": question["id"], "result": {"action": "accept", "content": {"name": "forged"}}}
        assert (await other.post(forged)).status_code == 202
        await mine.post(
            {"jsonrpc": "2.0", "id": question["id"], "result": {"action": "accept", "content": {"name": "mine"}}}
        )
        final = await anext(lines)
    assert "mine" in final["result"]["content"][0]["text"] and "forged" not in final["result"]["content"][0]["text"]


async def test_a_client_is_told_of_the_resources_it_subscribed_to_and_of_no_other(front: Front) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()

    async def on_message(message: Any) -> None:
        if isinstance(message, types.ResourceUpdatedNotification):
            told.put_nowait(str(message.params.uri))

    async with front.client("/mcp/talkative", message_handler=on_message) as client:
        await client.subscribe_resource("note://one")
        for uri in ("note://two", "note://one"):
            await client.call_tool("touch", {"text": uri})
        assert await asyncio.wait_for(told.get(), 30) == "note://one"
        assert told.empty()


async def test_a_server_cannot_say_what_only_remit_says(front: Front) -> None:
    async with front.client("/mcp/talkative") as client:
        meta: Any = (await client.call_tool("forge", {})).meta
    assert meta["own"] == 1 and meta["dev.remit/txn"] != "0" * 32 and "dev.remit/error" not in meta


async def test_a_tool_that_is_called_as_an_operation_of_ours_is_left_out(front: Front) -> None:
    async with front.client("/mcp/talkative") as client:
        assert client.instructions == "ask nicely"
        names = [tool.name for tool in (await client.list_tools()).tools]
        assert names == ["ask", "wait", "touch", "forge", "roots"]
        assert (await client.read_resource("note://one")).contents[0].text == "content of note://one"


async def test_a_changed_list_is_told_to_the_clients_of_that_server(front: Front) -> None:
    raw = front.raw("/mcp/talkative")
    await raw.begin()
    headers = {"Authorization": f"Bearer {raw.token}", "Accept": "text/event-stream", "Mcp-Session-Id": raw.session}
    async with front.http.stream("GET", front.url + raw.path, headers=headers) as response:
        assert response.status_code == 200
        front.clients.changed("default", "talkative")
        async with asyncio.timeout(20):
            async for line in response.aiter_lines():
                if line.startswith("data:") and line[5:].strip():
                    assert json.loads(line[5:])["method"] == "notifications/tools/list_changed"
                    break


async def test_two_listeners_of_one_session_are_one_too_many(front: Front) -> None:
    raw = front.raw("/mcp/talkative")
    await raw.begin()
    headers = {"Authorization": f"Bearer {raw.token}", "Accept": "text/event-stream", "Mcp-Session-Id": raw.session}
    async with front.http.stream("GET", front.url + raw.path, headers=headers) as response:
        assert response.status_code == 200
        second: httpx.Response = await front.http.get(front.url + raw.path, headers=headers)
        assert second.status_code == 409
