"""Sub-agents that a client names: actors of the chain, below the agent that the client calls as."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from remit_broker.adapters.errors import ConfigError
from remit_broker.config import settings
from remit_broker.edges.mcp import deputies
from remit_broker.edges.mcp.deputies import AGENT
from tests.support.mcp_client import Front, Raw, front_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    config = {"mcp": {"sub_agents": ["explorer", "writer"]}}
    async with front_of(tmp_path_factory.mktemp("front"), config) as running:
        yield running


async def begun(front: Front, token: str | None = None) -> Raw:
    raw = front.raw("/mcp/files", token)
    await raw.begin()
    return raw


async def used(raw: Raw, name: str | None, tool: str = "echo", **arguments: Any) -> Any:
    meta = {} if name is None else {"_meta": {AGENT: name}}
    answer = await raw.ask("tools/call", {"name": tool, "arguments": arguments or {"text": "x"}, **meta})
    return answer["result"]


async def opened(front: Front, txn: str) -> list[dict[str, Any]]:
    await front.lab.broker.caught_up()
    found = await front.http.get(f"{front.url}/api/chains/{txn}", headers={"Authorization": f"Bearer {front.token}"})
    return [record for record in found.json()["records"] if record["kind"] == "hop.opened"]


async def test_a_sub_agent_that_a_client_names_is_in_the_chain(front: Front) -> None:
    raw = await begun(front)
    first = await used(raw, "explorer")
    assert first["structuredContent"] == {"result": "x"}, first
    await used(raw, "explorer")
    await used(raw, "writer")
    plain = await used(raw, None)
    txns = {said["_meta"]["dev.remit/txn"] for said in (first, plain)}
    assert len(txns) == 1
    records = await opened(front, txns.pop())
    said = [(record["caller"], record["resource"]) for record in records]
    assert said == [
        ("mcp-client", "agent/mcp-client-explorer/$delegate"),
        ("mcp-client-explorer", "mcp/files/echo"),
        ("mcp-client-explorer", "mcp/files/echo"),
        ("mcp-client", "agent/mcp-client-writer/$delegate"),
        ("mcp-client-writer", "mcp/files/echo"),
        ("mcp-client", "mcp/files/echo"),
    ]
    # The server hears of it as of every chain.
    told = (await used(raw, "explorer", "who_am_i", text="x"))["structuredContent"]
    assert "mcp-client-explorer" in str(told) and "mcp-client" in str(told)


@pytest.mark.parametrize("name", ["nobody", "", "mcp-client", "../explorer", 7, {"a": 1}])
async def test_a_sub_agent_that_nobody_named_is_refused(front: Front, name: Any) -> None:
    raw = await begun(front)
    said = await used(raw, name)
    body = said["_meta"]["dev.remit/error"]
    assert (body["code"], body["rule"]) == ("OUT_OF_SCOPE", "mcp.sub_agents") and "explorer" in body["ask"]


async def test_a_grant_of_a_sub_agent_is_renewed_and_its_hop_goes_on(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = await begun(front)
    first = await used(raw, "explorer")
    # As if its end were near: it is renewed where that can be, and is otherwise handed on anew; the call is made either way.
    monkeypatch.setattr(deputies, "EARLY", 3600.0)
    again = await used(raw, "explorer")
    assert not again["isError"]
    callers = {record["caller"] for record in await opened(front, first["_meta"]["dev.remit/txn"])}
    assert callers == {"mcp-client", "mcp-client-explorer"}


async def test_a_revoked_sub_agent_calls_nothing_and_the_others_go_on(front: Front) -> None:
    raw = await begun(front)
    assert not (await used(raw, "writer"))["isError"]
    headers = {"Authorization": f"Bearer {front.token}"}
    told = {"agent": "mcp-client-writer", "why": "a test"}
    assert (await front.http.post(f"{front.url}/api/revocations", json=told, headers=headers)).status_code == 200
    assert (await used(raw, "writer"))["isError"]
    assert not (await used(raw, "explorer"))["isError"]


async def test_an_agent_with_a_grant_names_agents_that_are_there(front: Front) -> None:
    for name in ("lead", "helper"):
        await front.lab.agent(name)
    grant = (await front.lab.grant("lead", "mcp/files/*", "agent/helper/**", user="bob")).grant
    raw = await begun(front, grant)
    said = await used(raw, "helper")
    assert not said["isError"], said
    records = await opened(front, said["_meta"]["dev.remit/txn"])
    assert [(one["caller"], one["resource"]) for one in records] == [
        ("lead", "agent/helper/$delegate"), ("helper", "mcp/files/echo"),
    ]  # fmt: skip
    # What its grant does not cover it hands on to nobody.
    narrow = await begun(front, (await front.lab.grant("lead", "mcp/files/*", user="bob")).grant)
    assert (await used(narrow, "helper"))["_meta"]["dev.remit/error"]["code"] == "OUT_OF_SCOPE"


@pytest.mark.parametrize("name", ["", "A", "a b", "x" * 60])
async def test_a_name_that_no_agent_can_have_is_no_sub_agent(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    with pytest.raises(ConfigError):
        settings(tmp_path_factory.mktemp("config") / "remit.toml", {"mcp": {"sub_agents": [name]}})
