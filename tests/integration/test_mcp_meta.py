"""What a client writes into ``_meta`` of a request: what of it reaches the server, and what it is searched for on the way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

import remit_broker
from tests.support.mcp_client import PERMIT, Front, front_of, said

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]
SECRET = "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"
STARTER = (Path(remit_broker.__file__).parent / "policies" / "default.cedar").read_text(encoding="utf-8")
NO_SECRET = ("secrets.cedar", STARTER[STARTER.index('@id("no-secret-leaves")') :].partition("};")[0] + "};")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    async with front_of(
        tmp_path_factory.mktemp("front"), {"mcp": {"trace": ["traced"]}}, policies=(PERMIT, NO_SECRET)
    ) as running:
        yield running


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_what_a_client_writes_into_meta_reaches_the_server(front: Front, mode: str) -> None:
    meta: Any = {
        "example.org/tenant": {"a": [1, "x"]}, "dev.remit/user": "root", "dev.remit/grant": "forged", "dev.remit/own": 1,
        "io.modelcontextprotocol/other": 1, "tracestate": "x=y", "baggage": "x=y", "traceparent": "x",
    }  # fmt: skip
    async with front.client(mode=mode) as client:
        answer = await client.call_tool("who_am_i", {}, meta=meta)
    told = answer.structured_content["meta"]
    assert told["example.org/tenant"] == {"a": [1, "x"]}
    assert told["dev.remit/txn"] == answer.meta["dev.remit/txn"] and told["dev.remit/chain"][-1] == "mcp-client"
    assert told["dev.remit/user"] != "root" or told["dev.remit/grant"] != "forged"
    assert told["dev.remit/grant"].count(".") == 2
    assert not told.keys() & {"dev.remit/own", "io.modelcontextprotocol/other", "tracestate", "baggage", "traceparent"}


async def test_only_a_server_that_is_trusted_with_it_is_told_the_trace(front: Front) -> None:
    meta: Any = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "x=y", "baggage": "x=y"}
    seen = {}
    async with AsyncExitStack() as stack:
        await front.attach("traced", stack=stack)
        for name in ("files", "traced"):
            async with front.client(f"/mcp/{name}") as client:
                seen[name] = (await client.call_tool("who_am_i", {}, meta=meta)).structured_content["meta"]
    # The hop's own, where it is told at all: never what a client says of itself, which is linked in the broker's span.
    assert not {"traceparent", "tracestate", "baggage"} & seen["files"].keys()
    assert not {"tracestate", "baggage"} & seen["traced"].keys()
    told = seen["traced"]
    assert told["traceparent"] == f"00-{told['dev.remit/txn']}-{told['dev.remit/hop']}-01"
    # Who calls, and through whom, is told to both.
    assert all(one["dev.remit/chain"][-1] == "mcp-client" and one["dev.remit/user"] for one in seen.values())
    headers = {"Authorization": f"Bearer {front.token}"}
    listed = (await front.http.get(f"{front.url}/api/servers", headers=headers)).json()["servers"]
    assert {one["name"]: one["trace"] for one in listed} == {"files": False, "traced": True}


async def test_a_secret_in_meta_is_found(front: Front) -> None:
    raw = front.raw()
    await raw.begin()
    answer = await raw.ask("tools/call", {"name": "who_am_i", "arguments": {}, "_meta": {"example.org/x": SECRET}})
    body = answer["result"]["_meta"]["dev.remit/error"]
    assert (body["code"], body["rule"]) == ("CONTENT_DENIED", "no-secret-leaves")


async def test_meta_that_is_too_large_is_refused(front: Front) -> None:
    raw = front.raw()
    call = {"name": "who_am_i", "arguments": {}, "_meta": {"example.org/x": "x" * 20_000}}
    response = await raw.once("tools/call", call)
    assert said(response)[-1]["error"]["code"] == -32602 if response.status_code == 200 else response.status_code == 400


async def test_what_a_person_approved_is_sent_without_meta(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Whoever approves is shown the arguments: what is beside them is not sent, or another could be sent than was approved."""
    async with front_of(tmp_path_factory.mktemp("approved"), policies=(("starter.cedar", STARTER),)) as front:
        raw = front.raw()
        await raw.begin()
        call = {"name": "who_am_i", "arguments": {}, "_meta": {"example.org/x": "shown to nobody"}}
        body = (await raw.ask("tools/call", call))["result"]["_meta"]["dev.remit/error"]
        assert body["code"] == "APPROVAL_REQUIRED"
        headers = {"Authorization": f"Bearer {front.token}"}
        url = f"{front.url}/api/approvals/{body['approval']}"
        assert (await front.http.post(url, json={"verdict": "approve"}, headers=headers)).status_code == 200
        told = (await raw.ask("tools/call", call))["result"]["structuredContent"]["meta"]
        assert "example.org/x" not in told and "dev.remit/grant" in told
