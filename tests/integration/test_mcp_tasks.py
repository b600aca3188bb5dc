"""Calls that go on after they were answered: tasks of the protocol, in both generations, towards clients and towards servers."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio

from remit_broker.edges.attach.source import source
from tests.support.attach_fixture import SERVERS
from tests.support.mcp_client import Front, Raw, front_of

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]
GENERATIONS = ("sessions", "requests")
EXTENSION = "io.modelcontextprotocol/tasks"
KNOWS: dict[str, Any] = {
    "io.modelcontextprotocol/clientCapabilities": {"extensions": {EXTENSION: {}}, "elicitation": {}}
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(front_of(tmp_path_factory.mktemp("front"), servers=()))
        for name in GENERATIONS:
            await running.attach(name, source([sys.executable, str(SERVERS / "working.py"), name]), stack)
        yield running


async def in_session(front: Front, server: str, **can: Any) -> Raw:
    raw = front.raw(f"/mcp/{server}")
    told = await raw.begin(capabilities=can)
    assert told["capabilities"]["tasks"] == {"list": {}, "cancel": {}, "requests": {"tools": {"call": {}}}}
    return raw


def calling(tool: str, text: str, **more: Any) -> dict[str, Any]:
    return {"name": tool, "arguments": {"text": text}, **more}


async def started(raw: Raw, tool: str, text: str) -> str:
    answer = await raw.ask("tools/call", calling(tool, text, task={"ttl": 60_000}))
    task = answer["result"]["task"]
    assert task["status"] == "working" and task["ttl"] == 60_000
    name: str = task["taskId"]
    while "statusMessage" not in task and task["status"] == "working":
        task = (await raw.ask("tasks/get", {"taskId": name}))["result"]  # until the server has it
    return name


async def until(raw: Raw, name: str, *states: str) -> dict[str, Any]:
    """The task, once it is in one of these states."""
    while True:
        task: dict[str, Any] = (await raw.ask("tasks/get", {"taskId": name}))["result"]
        if task["status"] in states:
            return task


async def once(raw: Raw, method: str, params: dict[str, Any]) -> dict[str, Any]:
    """A request of the generation without sessions, of a client that knows tasks."""
    headers = {"Mcp-Name": params["taskId"]} if "taskId" in params else {}
    response = await raw.once(method, {**params, "_meta": KNOWS}, headers)
    found: dict[str, Any] = response.json() if response.status_code == 400 else raw.messages(response)[-1]
    return found


async def until_alone(raw: Raw, name: str, *states: str) -> dict[str, Any]:
    while True:
        task: dict[str, Any] = (await once(raw, "tasks/get", {"taskId": name}))["result"]
        if task["status"] in states:
            return task


@pytest.mark.parametrize("server", GENERATIONS)
async def test_a_task_in_a_session_is_a_hop_that_takes_long(front: Front, server: str) -> None:
    raw, text = await in_session(front, server), f"a-{server}"
    name = await started(raw, "work", text)
    assert [one["taskId"] for one in (await raw.ask("tasks/list"))["result"]["tasks"]] == [name]
    assert (await raw.ask("tasks/get", {"taskId": name}))["result"]["status"] == "working"
    (txn, *_) = await front.txns()
    assert [one["kind"] for one in await front.lab.records(txn)][
        -1
    ] == "hop.opened"  # open for as long as it is worked on
    await raw.ask("tools/call", calling("finish", text))
    result = (await raw.ask("tasks/result", {"taskId": name}))["result"]
    assert result["content"][0]["text"] == f"result of {text}"
    assert result["_meta"]["io.modelcontextprotocol/related-task"] == {"taskId": name}
    assert (await until(raw, name, "completed"))["taskId"] == name
    records = await front.lab.records(txn)
    closed = {record["hop"]: record for record in records if record["kind"] == "hop.closed"}
    assert closed[result["_meta"]["dev.remit/hop"]]["outcome"] == "ok"
    opened = [record["resource"] for record in records if record["kind"] == "hop.opened"]
    assert opened.count(f"mcp/{server}/work") == 1  # what is asked of a task afterwards is no call of its own


@pytest.mark.parametrize("server", GENERATIONS)
async def test_a_task_without_a_session_is_a_hop_that_takes_long(front: Front, server: str) -> None:
    raw, text = front.raw(f"/mcp/{server}"), f"b-{server}"
    found = (await once(raw, "server/discover", {}))["result"]
    assert found["capabilities"]["extensions"] == {EXTENSION: {}}
    began = (await once(raw, "tools/call", calling("work", text)))["result"]
    assert began["resultType"] == "task" and began["status"] == "working"
    name = began["taskId"]
    assert (await once(raw, "tasks/get", {"taskId": name}))["result"]["resultType"] == "complete"
    await once(raw, "tools/call", calling("finish", text))
    task = await until_alone(raw, name, "completed")
    assert task["result"]["content"][0]["text"] == f"result of {text}"
    txn, hop = (task["result"]["_meta"][f"dev.remit/{what}"] for what in ("txn", "hop"))
    assert any(one["kind"] == "hop.closed" and one["hop"] == hop for one in await front.lab.records(txn))


@pytest.mark.parametrize("server", GENERATIONS)
async def test_a_client_that_knows_no_tasks_waits_for_the_result(front: Front, server: str) -> None:
    raw = front.raw(f"/mcp/{server}")
    told = await raw.begin(protocolVersion="2025-06-18")
    assert "tasks" not in told["capabilities"] and "extensions" not in told["capabilities"]
    listed = (await raw.ask("tools/list"))["result"]["tools"]
    assert not any("execution" in one for one in listed)
    answer = await raw.ask("tools/call", calling("work", "c", task={}))
    assert answer["result"]["content"][0]["text"] == "work at once"
    assert (await raw.ask("tasks/list"))["error"]["code"] == -32601


async def test_a_listing_says_which_tools_can_be_tasks(front: Front) -> None:
    raw = await in_session(front, "sessions")
    listed = {one["name"]: one.get("execution") for one in (await raw.ask("tools/list"))["result"]["tools"]}
    assert listed["work"] == {"taskSupport": "optional"} and listed["must"] == {"taskSupport": "required"}
    assert listed["finish"] is None
    refused = await raw.ask("tools/call", calling("finish", "x", task={}))
    assert refused["error"]["code"] == -32601


@pytest.mark.parametrize("server", GENERATIONS)
async def test_what_the_server_of_a_task_asks_is_asked_of_its_client(front: Front, server: str) -> None:
    raw = await in_session(front, server, elicitation={})
    beside = await started(raw, "work", f"beside-{server}")  # so that not just the only call can be meant
    name = await started(raw, "ask", f"d-{server}")
    await until(raw, name, "input_required")
    heard: list[dict[str, Any]] = []
    message = {"jsonrpc": "2.0", "id": "r", "method": "tasks/result", "params": {"taskId": name}}
    headers = {
        "Authorization": f"Bearer {raw.token}", "Accept": "application/json, text/event-stream", "Mcp-Session-Id": raw.session,
    }  # fmt: skip
    async with front.http.stream("POST", front.url + raw.path, json=message, headers=headers) as response:
        async for line in response.aiter_lines():
            if line.startswith("data:") and line[5:].strip():
                heard.append(json.loads(line[5:]))
                if heard[-1].get("method") == "elicitation/create":
                    said = {"action": "accept", "content": {"name": "ann"}}
                    await raw.post({"jsonrpc": "2.0", "id": heard[-1]["id"], "result": said})
    (question,) = [one for one in heard if one.get("method") == "elicitation/create"]
    assert question["params"]["_meta"]["io.modelcontextprotocol/related-task"] == {"taskId": name}
    assert heard[-1]["result"]["content"][0]["text"] == "hello ann"
    assert (await raw.ask("tasks/cancel", {"taskId": beside}))["result"]["status"] == "cancelled"


@pytest.mark.parametrize("server", GENERATIONS)
async def test_what_the_server_of_a_task_asks_stands_in_the_task_of_a_client_without_a_session(
    front: Front, server: str
) -> None:
    raw = front.raw(f"/mcp/{server}")
    name = (await once(raw, "tools/call", calling("ask", f"e-{server}")))["result"]["taskId"]
    asks = (await until_alone(raw, name, "input_required"))["inputRequests"]
    ((key, question),) = asks.items()
    assert question["method"] == "elicitation/create"
    said = {key: {"action": "accept", "content": {"name": "bob"}}, "never asked": {"action": "accept"}}
    assert (await once(raw, "tasks/update", {"taskId": name, "inputResponses": said}))["result"][
        "resultType"
    ] == "complete"
    task = await until_alone(raw, name, "completed")
    assert task["result"]["content"][0]["text"] == "hello bob"


@pytest.mark.parametrize("server", GENERATIONS)
async def test_a_task_asks_its_client_only_what_it_can_be_asked(front: Front, server: str) -> None:
    raw = await in_session(front, server)
    name = await started(raw, "ask", f"f-{server}")
    assert (await until(raw, name, "input_required", "completed", "failed"))["status"] != "input_required"
    result = (await raw.ask("tasks/result", {"taskId": name}))["result"]
    assert result.get("isError") or result["content"][0]["text"] in ("hello refused", "hello cancel")
