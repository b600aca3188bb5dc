"""Real MCP clients at a running broker, with a real server behind it: what they see, and what is recorded of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.support.attach_fixture import eventually
from tests.support.mcp_client import Front, front_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    labels = {"labels": {"mcp/files/read_thing": ["customer"]}}
    async with front_of(tmp_path_factory.mktemp("front"), labels, servers=("files", "other")) as running:
        yield running


async def test_a_tool_call_over_http_is_a_hop_like_any_other(front: Front) -> None:
    async with front.client() as client:
        assert client.server_info is not None and client.server_info.name == "well-behaved"
        answer = await client.call_tool("echo", {"text": "hello"})
        assert answer.content[0].text == "hello" and answer.structured_content == {"result": "hello"}
        meta: Any = answer.meta
        records = await front.lab.records(meta["dev.remit/txn"])
        opened = next(record for record in records if record["kind"] == "hop.opened")
        assert (opened["hop"], opened["resource"]) == (meta["dev.remit/hop"], "mcp/files/echo")
        assert records[0]["user"] and records[0]["agent"] == opened["caller"] == "mcp-client"
        assert records[0]["auth"].startswith("local:")
    # The client said that it is done, so the task is closed.
    await eventually(lambda: True)
    async with asyncio.timeout(10):
        while (await front.lab.records(meta["dev.remit/txn"]))[-1]["kind"] != "txn.closed":
            await asyncio.sleep(0.05)


async def test_all_calls_of_a_session_are_one_task_and_another_session_is_another(front: Front) -> None:
    async with front.client() as one, front.client() as other:
        txns = [
            (await client.call_tool("read_thing", {"name": "x"})).meta["dev.remit/txn"] for client in (one, one, other)
        ]
    assert txns[0] == txns[1] != txns[2]


async def test_a_client_sees_the_tools_as_the_server_describes_them(front: Front) -> None:
    async with front.client() as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert list(tools) == [
        "echo",
        "add",
        "slow",
        "fails",
        "big",
        "who_am_i",
        "environment",
        "destructive_thing",
        "read_thing",
    ]
    assert tools["add"].output_schema and tools["add"].input_schema["required"] == ["a", "b"]
    assert tools["echo"].annotations.read_only_hint is True


async def test_all_servers_together_are_one_server_with_their_names_before_each_tool(front: Front) -> None:
    async with front.client("/mcp") as client:
        names = [tool.name for tool in (await client.list_tools()).tools]
        assert {"files__echo", "other__echo"} <= set(names) and len(set(names)) == len(names)
        answer = await client.call_tool("other__echo", {"text": "hi"})
        records = await front.lab.records(answer.meta["dev.remit/txn"])
    assert [record["resource"] for record in records if record["kind"] == "hop.opened"] == ["mcp/other/echo"]


async def test_progress_reaches_the_client_while_the_call_runs(front: Front) -> None:
    heard: list[float] = []

    async def progress(done: float, total: float | None, message: str | None) -> None:
        heard.append(done)

    async with front.client() as client:
        answer = await client.call_tool("slow", {"seconds": 1.0}, progress_callback=progress)
    assert answer.structured_content == {"result": "done"} and len(heard) >= 2 and heard == sorted(heard)


async def test_a_client_that_gives_a_call_up_ends_the_hop(front: Front) -> None:
    raw = front.raw()
    await raw.begin()
    call = asyncio.create_task(raw.ask("tools/call", {"name": "slow", "arguments": {"seconds": 50}}, id="mine"))
    streamable = front.clients
    await eventually(lambda: any("mine" in one.running and one.running["mine"] and one.running["mine"].hop
                                 for one in streamable._sessions.all()))  # fmt: skip
    assert (await raw.tell("notifications/cancelled", {"requestId": "mine"})).status_code == 202
    answer = await asyncio.wait_for(call, 20)
    assert answer["result"]["_meta"]["dev.remit/error"]["code"] == "CANCELLED"


async def test_a_failure_of_the_tool_itself_stays_what_it_is(front: Front) -> None:
    async with front.client() as client:
        answer = await client.call_tool("fails", {"why": "no disk"})
    assert answer.is_error and answer.content[0].text == "no disk"


async def test_a_result_of_megabytes_comes_whole(front: Front) -> None:
    raw = front.raw()
    await raw.begin()
    answer = await raw.ask("tools/call", {"name": "big", "arguments": {"size": 3_000_000}})
    assert len(answer["result"]["content"][0]["text"]) == 3_000_000


async def test_a_refused_call_is_a_result_that_a_model_can_read(front: Front) -> None:
    async with front.client() as client:
        answer = await client.call_tool("add", {"a": "one", "b": 2})
    body = answer.meta["dev.remit/error"]
    assert answer.is_error and body["code"] == "ARGUMENTS_INVALID" and body["txn"] and body["hop"]
    assert body["message"] in answer.content[0].text and body["ask"] in answer.content[0].text


async def test_an_agent_with_a_grant_goes_on_with_its_chain(front: Front) -> None:
    await front.lab.agent("writer")
    opened = await front.lab.grant("writer", "mcp/files/echo", user="bob")
    async with front.client(token=opened.grant) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["echo"]
        answer = await client.call_tool("echo", {"text": "x"})
        refused = await client.call_tool("read_thing", {"name": "x"})
    assert answer.meta["dev.remit/txn"] == opened.txn
    assert refused.meta["dev.remit/error"]["code"] == "OUT_OF_SCOPE"
    records = await front.lab.records(opened.txn)
    assert [record["caller"] for record in records if record["kind"] == "hop.opened"] == ["writer"]
    # It is not this client's to close.
    assert records[-1]["kind"] != "txn.closed"


async def test_a_server_hears_for_whom_it_works(front: Front) -> None:
    async with front.client() as client:
        told = (await client.call_tool("who_am_i", {})).structured_content["meta"]
    assert told["dev.remit/chain"][-1] == "mcp-client" and told["dev.remit/user"] and told["dev.remit/grant"]


async def test_nobody_connects_as_the_agent_of_clients(front: Front) -> None:
    async with front.client() as client:
        await client.call_tool("echo", {"text": "x"})
    principal = front.lab.broker.registry.principal("mcp-client")
    assert principal is not None and principal.tier == "client"
    # Its key was drawn here and written nowhere.
    assert not list(front.lab.folder.rglob("mcp-client*"))


async def test_a_session_goes_on_in_another_task_after_its_time(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = front.raw()
    await raw.begin()
    call = {"name": "echo", "arguments": {"text": "x"}}
    first = (await raw.ask("tools/call", call))["result"]["_meta"]["dev.remit/txn"]
    monkeypatch.setattr("remit_broker.edges.mcp.tasks.RECORDS", 4)
    same = (await raw.ask("tools/call", call))["result"]["_meta"]["dev.remit/txn"]
    then = (await raw.ask("tools/call", call))["result"]["_meta"]["dev.remit/txn"]
    assert first == same != then
    records = await front.lab.records(then)
    assert records[0]["continues"].partition(".")[0] == first
    assert (await front.lab.records(first))[-1]["kind"] == "txn.closed"


async def test_calls_at_once_all_end_well_while_their_session_goes_on_in_other_tasks(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remit_broker.edges.mcp.tasks.RECORDS", 20)
    monkeypatch.setattr("remit_broker.edges.mcp.tasks.LAST", 40)
    # What is opened beyond is refused, as in a task of real size: sixteen calls have room for their records.
    monkeypatch.setattr("remit_broker.hop.open.MAX_RECORDS", 80)
    async with front.client() as client:

        async def calls(number: int) -> list[str]:
            done = [await client.call_tool("echo", {"text": f"{number}-{turn}"}) for turn in range(6)]
            assert [one.content[0].text for one in done] == [f"{number}-{turn}" for turn in range(6)]
            return [one.meta["dev.remit/txn"] for one in done]

        began = asyncio.Event()

        async def progress(*_: object) -> None:
            began.set()

        # One of them is certainly running when the task has its records.
        long = asyncio.create_task(client.call_tool("slow", {"seconds": 1.5}, progress_callback=progress))
        await began.wait()
        txns = {txn for made in await asyncio.gather(*map(calls, range(16))) for txn in made}
        assert (await long).content[0].text == "done"
    assert len(txns) > 2
    for txn in txns:
        ended = [record for record in await front.lab.records(txn) if record["kind"] == "hop.closed"]
        assert {record["outcome"] for record in ended} == {"ok"}


async def test_labels_go_over_into_the_next_task_of_a_session(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = front.raw()
    await raw.begin()
    await raw.ask("tools/call", {"name": "read_thing", "arguments": {"name": "ann"}})
    monkeypatch.setattr("remit_broker.edges.mcp.tasks.RECORDS", 1)
    then = (await raw.ask("tools/call", {"name": "echo", "arguments": {"text": "x"}}))["result"]["_meta"][
        "dev.remit/txn"
    ]
    opened = next(record for record in await front.lab.records(then) if record["kind"] == "hop.opened")
    assert opened["labels"] == ["customer"]


async def test_a_task_that_an_operator_closed_is_followed_by_another(front: Front) -> None:
    raw = front.raw()
    await raw.begin()
    call = {"name": "echo", "arguments": {"text": "x"}}
    first = (await raw.ask("tools/call", call))["result"]["_meta"]["dev.remit/txn"]
    headers = {"Authorization": f"Bearer {front.token}"}
    closed = await front.http.post(f"{front.url}/api/chains/{first}/close", headers=headers)
    assert closed.status_code == 200, closed.text
    then = (await raw.ask("tools/call", call))["result"]["_meta"]["dev.remit/txn"]
    assert then != first


async def test_a_listing_shows_what_grant_and_policy_permit_and_no_more(front: Front) -> None:
    forbid = '@id("hide")\n@reason("hidden")\nforbid (principal, action == Action::"list", resource == Tool::"mcp/files/environment");'
    folder = front.lab.folder / "policies"
    (folder / "hide.cedar").write_text(forbid, encoding="utf-8")
    revision = front.lab.broker.policy.revision
    try:
        await eventually(lambda: front.lab.broker.policy.revision != revision)
        async with front.client() as client:
            names = [tool.name for tool in (await client.list_tools()).tools]
        assert "echo" in names and "environment" not in names
    finally:
        changed = front.lab.broker.policy.revision
        (folder / "hide.cedar").unlink()
        await eventually(lambda: front.lab.broker.policy.revision != changed)


async def test_a_listing_comes_in_pages(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remit_broker.edges.mcp.catalogue.PAGE", 4)
    raw = front.raw()
    await raw.begin()
    names, cursor = [], None
    while True:
        page = (await raw.ask("tools/list", {} if cursor is None else {"cursor": cursor}))["result"]
        names += [tool["name"] for tool in page["tools"]]
        assert len(page["tools"]) <= 4
        if (cursor := page.get("nextCursor")) is None:
            break
    assert len(names) == len(set(names)) == 9
