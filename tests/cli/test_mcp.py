"""``remit mcp`` as a client's configuration starts it: the MCP library's client, over standard input and output."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.shared.exceptions import MCPError

from tests.support.attach_fixture import SERVERS
from tests.support.cli import REMIT, Running, new_folder, remit, start


@pytest.fixture(scope="module")
def with_tools(broker: Running) -> Running:
    broker.server("files")
    return broker


def bridge(broker: Running, *words: str) -> Any:
    return stdio_client(
        StdioServerParameters(command=sys.executable, args=[*REMIT[1:], "mcp", *words, "-c", str(broker.folder)])
    )


async def test_a_client_that_starts_a_command_reaches_every_server(with_tools: Running) -> None:
    async with Client(bridge(with_tools), mode="legacy") as client:
        names = [tool.name for tool in (await client.list_tools()).tools]
        assert "files__echo" in names
        answer = await client.call_tool("files__echo", {"text": "hi"})
    meta: Any = answer.meta
    assert answer.structured_content == {"result": "hi"}
    chain = with_tools.json("chain", meta["dev.remit/txn"])
    assert meta["dev.remit/hop"] in json.dumps(chain)


async def test_a_client_without_a_session_reaches_every_server_too(with_tools: Running) -> None:
    async with Client(bridge(with_tools), mode="2026-07-28") as client:
        assert "files__echo" in [tool.name for tool in (await client.list_tools()).tools]
        metas: list[Any] = [(await client.call_tool("files__echo", {"text": "hi"})).meta for _ in range(2)]
        with pytest.raises(MCPError, match="Unknown tool"):
            await client.call_tool("files__nothing", {})
        # What is no plain text is carried in a header all the same.
        with pytest.raises(MCPError, match="Unknown tool"):
            await client.call_tool("=?base64?é", {})
    # What one process carries is one task.
    assert metas[0]["dev.remit/txn"] == metas[1]["dev.remit/txn"]


async def test_a_client_chooses_the_generation_that_both_know(with_tools: Running) -> None:
    async with Client(bridge(with_tools, "files"), mode="auto") as client:
        assert client.protocol_version == "2026-07-28"
        assert client.server_info is not None and client.server_info.name == "well-behaved"


@pytest.mark.timeout(240)
async def test_a_request_that_is_cancelled_over_a_pipe_is_cancelled_at_the_broker(with_tools: Running) -> None:
    with_tools.json("servers", "add", "talk", "--", sys.executable, str(SERVERS / "talkative.py"))
    with_tools.server_runs("talk")
    async with Client(bridge(with_tools, "talk"), mode="2026-07-28") as client:
        meta: Any = (await client.call_tool("touch", {"text": "note://x"})).meta
        known = meta["dev.remit/txn"]
        slow = asyncio.create_task(client.call_tool("wait", {"text": "600"}))
        async with asyncio.timeout(120):
            while "mcp/talk/wait" not in json.dumps(with_tools.json("chain", known)):
                await asyncio.sleep(0.1)
            slow.cancel()
            while "CANCELLED" not in json.dumps(with_tools.json("chain", known)):
                await asyncio.sleep(0.1)


async def test_one_server_is_shown_as_itself(with_tools: Running) -> None:
    async with Client(bridge(with_tools, "files"), mode="legacy") as client:
        assert client.server_info is not None and client.server_info.name == "well-behaved"
        assert "echo" in [tool.name for tool in (await client.list_tools()).tools]


async def test_a_server_that_nobody_knows_is_said_to_be_unknown(with_tools: Running) -> None:
    hello = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {"protocolVersion": "2025-11-25", "capabilities": {}},
    }
    done = with_tools.remit("mcp", "nobody", stdin=json.dumps(hello) + "\n", fresh=True)
    error = json.loads(done.out)["error"]
    assert "nobody" in error["message"] and "remit servers list" in error["message"]


def test_without_a_broker_the_command_says_how_to_start_one(tmp_path: Path) -> None:
    folder = new_folder(tmp_path)
    done = remit("mcp", "-c", str(folder), stdin='{"jsonrpc":"2.0","id":1,"method":"ping"}\n', fresh=True)
    assert done.code == 3 and not done.out
    assert "no broker runs" in done.err and "remit up" in done.err


@pytest.mark.timeout(180)
def test_a_client_need_not_know_that_its_broker_was_started_again(tmp_path: Path) -> None:
    folder = new_folder(tmp_path)
    first = start(folder)
    first.server("files")
    client = subprocess.Popen(
        [*REMIT, "mcp", "files", "-c", str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert client.stdin is not None and client.stdout is not None

    def ask(number: int, method: str, params: dict[str, Any]) -> dict[str, Any]:
        assert client.stdin is not None and client.stdout is not None
        client.stdin.write(json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}) + "\n")
        client.stdin.flush()
        found: dict[str, Any] = json.loads(client.stdout.readline())
        return found

    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    assert "result" in ask(1, "initialize", hello)
    first.stop()
    second = start(folder)
    try:
        assert ask(2, "ping", {}) == {"jsonrpc": "2.0", "id": 2, "result": {}}
        client.stdin.close()
        assert client.wait(20) == 0
    finally:
        client.kill()
        client.stdout.close()
        second.stop()
