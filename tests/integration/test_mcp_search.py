"""``/mcp`` as three tools, and names that two tools share: what a client sees, and that nothing is decided otherwise for it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from remit_broker.core.tool_search import Described, found, words
from tests.support.mcp_client import Front, Raw, front_of
from tests.support.raw import Arena, arena_on, tool

pytestmark = pytest.mark.asyncio(loop_scope="module")
POLICY = (
    "own.cedar",
    '@id("all") @reason("a test") permit (principal, action, resource);'
    '@id("no") @reason("a test") forbid (principal, action, resource == Tool::"mcp/secret/open_vault");',
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    async with front_of(tmp_path_factory.mktemp("front"), policies=(POLICY,)) as front, arena_on(front.lab) as arena:
        await serve(arena, "secret", tool("open_vault", description="Opens the vault."), tool("close_vault"))
        await serve(arena, "a", tool("b__c"), tool("fine"))
        await serve(arena, "a__b", tool("c"))
        yield front


async def serve(arena: Arena, name: str, *tools: dict[str, Any]) -> None:
    server = await arena.agent(name, "mcp")
    for one in tools:
        server.handlers[one["name"]] = lambda taken: taken.done(
            {"content": [{"type": "text", "text": taken.dispatch.resource}]}
        )
    await server.serve(*tools)
    registry = arena.lab.broker.registry
    await registry.accept(name, {one.op: one.digest for one in registry.waiting(name)})


async def begun(front: Front, path: str) -> Raw:
    raw = front.raw(path)
    await raw.begin()
    return raw


async def used(raw: Raw, name: str, /, **arguments: Any) -> Any:
    return (await raw.ask("tools/call", {"name": name, "arguments": arguments}))["result"]


async def test_a_client_that_asks_for_it_sees_three_tools_in_the_place_of_all(front: Front) -> None:
    direct, few = await begun(front, "/mcp"), await begun(front, "/mcp?view=search")
    assert len((await direct.ask("tools/list"))["result"]["tools"]) > 3
    told = (await few.ask("tools/list"))["result"]["tools"]
    assert [one["name"] for one in told] == ["search_tools", "describe_tools", "call_tool"]
    names = [one["name"] for one in (await used(few, "search_tools", query="echo"))["structuredContent"]["tools"]]
    assert names[0] == "files__echo"
    (about,) = (await used(few, "describe_tools", names=["files__echo"]))["structuredContent"]["tools"]
    (same,) = [one for one in (await direct.ask("tools/list"))["result"]["tools"] if one["name"] == "files__echo"]
    assert about == same


async def test_a_header_chooses_the_view_as_well(front: Front) -> None:
    raw = await begun(front, "/mcp")
    asked = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    text = (await raw.post(asked, {"Remit-View": "search"})).text
    assert "search_tools" in text and "files__echo" not in text
    wrong = await raw.post(asked, {"Remit-View": "everything"})
    assert wrong.status_code == 400 and "search" in wrong.json()["error"]["message"]


async def test_a_call_through_the_search_is_the_hop_that_a_direct_one_is(front: Front) -> None:
    direct, few = await begun(front, "/mcp"), await begun(front, "/mcp?view=search")
    one = await used(direct, "files__echo", text="x")
    other = await used(few, "call_tool", name="files__echo", arguments={"text": "x"})
    assert {**one, "_meta": None} == {**other, "_meta": None}
    records = [await opened(front, said["_meta"]["dev.remit/txn"]) for said in (one, other)]
    for record in records:
        assert (record["resource"], record["caller"]) == ("mcp/files/echo", "mcp-client")
    assert records[0].keys() == records[1].keys()
    refused = await used(few, "call_tool", name="secret__open_vault")
    assert refused["isError"] and refused["_meta"]["dev.remit/error"]["code"] == "POLICY_DENIED"
    # What is not one of the three is none here, however it is called elsewhere.
    assert (await few.ask("tools/call", {"name": "files__echo", "arguments": {"text": "x"}}))["error"]["code"] == -32602


async def opened(front: Front, txn: str) -> dict[str, Any]:
    await front.lab.broker.caught_up()
    found = await front.http.get(f"{front.url}/api/chains/{txn}", headers={"Authorization": f"Bearer {front.token}"})
    (record,) = [one for one in found.json()["records"] if one["kind"] == "hop.opened"]
    return dict(record)


async def test_a_search_finds_what_may_be_seen_and_no_more(front: Front) -> None:
    raw = await begun(front, "/mcp?view=search")
    said = json.dumps(await used(raw, "search_tools", query="vault", limit=50))
    assert "secret__close_vault" in said and "open_vault" not in said
    told = (await used(raw, "describe_tools", names=["secret__open_vault", "secret__close_vault"]))["structuredContent"]
    assert told["unknown"] == ["secret__open_vault"]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("search_tools", {"query": "x" * 1001}),
        ("search_tools", {"query": 7}),
        ("search_tools", {"limit": 51}),
        ("search_tools", {"limit": True}),
        ("search_tools", {"other": 1}),
        ("describe_tools", {}),
        ("describe_tools", {"names": []}),
        ("describe_tools", {"names": ["a"] * 21}),
        ("call_tool", {}),
        ("call_tool", {"name": 1}),
        ("call_tool", {"name": "files__echo", "arguments": []}),
        ("call_tool", {"name": "search_tools", "arguments": {}}),
        ("call_tool", {"name": "$resource", "arguments": {"uri": "x"}}),
    ],
)
async def test_what_is_no_search_is_an_error_of_the_protocol(
    front: Front, name: str, arguments: dict[str, Any]
) -> None:
    raw = await begun(front, "/mcp?view=search")
    assert (await raw.ask("tools/call", {"name": name, "arguments": arguments}))["error"]["code"] == -32602


async def test_of_two_tools_with_one_name_neither_is_called_and_it_is_said(front: Front) -> None:
    raw = await begun(front, "/mcp")
    listed = (await raw.ask("tools/list"))["result"]
    assert "a__b__c" not in [one["name"] for one in listed["tools"]]
    assert "a__fine" in [one["name"] for one in listed["tools"]]
    assert listed["_meta"]["dev.remit/collisions"] == {"a__b__c": ["mcp/a/b__c", "mcp/a__b/c"]}
    said = (await raw.ask("tools/call", {"name": "a__b__c", "arguments": {}}))["error"]
    assert said["code"] == -32602 and "mcp/a__b/c" in said["message"] and "/mcp/<server>" in said["message"]
    # At the address of one server there is no other of that name.
    one = await begun(front, "/mcp/a__b")
    assert (await used(one, "c"))["content"][0]["text"] == "mcp/a__b/c"
    headers = {"Authorization": f"Bearer {front.token}"}
    servers = (await front.http.get(f"{front.url}/api/servers", headers=headers)).json()["servers"]
    shared = {one["name"]: one["collisions"] for one in servers}
    assert shared["a"] == shared["a__b"] == {"a__b__c": ["mcp/a/b__c", "mcp/a__b/c"]}
    assert shared["files"] == {}


async def test_the_best_find_is_that_whose_name_says_it() -> None:
    tools = [
        Described("a__noise", "", "issue " * 50, {}),
        Described("hub__listIssues", "List issues", "All of them.", {}),
        Described("hub__close", "", "Closes an issue.", {"properties": {"issue_id": {}}}),
        Described("hub__push", "", "Pushes.", {}),
    ]
    assert next(tools[at].name for at in found("list the issues", tools, 10)) == "hub__listIssues"
    assert next(tools[at].name for at in found("issu", tools, 10)) == "hub__listIssues"
    assert found("zebra", tools, 10) == [] and found("", tools, 2) == [0, 1] and found("x", [], 5) == []
    assert words("listOpen_issuesHTTPServer 2x") == ["list", "open", "issues", "http", "server", "2x"]
