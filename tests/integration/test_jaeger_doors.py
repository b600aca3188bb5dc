"""The trace of a chain is the chain also for calls that come in by MCP clients, over a pipe, and with exchanged tokens."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from tests.support.cli import REMIT
from tests.support.jaeger import running_jaeger
from tests.support.mcp_client import Front, front_of
from tests.support.oauth import OAuthClient
from tests.support.otlp import otlp_sink
from tests.support.tracing import Seen, cached_jaeger, drawn, expected, fetched, of_collector

FOREIGN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


async def _one_server(front: Front) -> str:
    """A session at ``/mcp/{server}``: calls that go well, fail, are made again and are refused; with a context of the client's own."""
    raw = front.raw("/mcp/files")
    await raw.begin()
    answer = await raw.ask(
        "tools/call", {"name": "echo", "arguments": {"text": "hi"}, "_meta": {"traceparent": FOREIGN}}
    )
    for _ in range(2):
        await raw.ask("tools/call", {"name": "fails", "arguments": {"why": "no disk"}})
    no = await raw.ask("tools/call", {"name": "add", "arguments": {"a": "one", "b": 2}})
    assert no["result"]["_meta"]["dev.remit/error"]["code"] == "ARGUMENTS_INVALID"
    return str(answer["result"]["_meta"]["dev.remit/txn"])


async def _called(client: Any, name: str) -> str:
    """The txn of a call that went well; what may be made again is made again, as a client would."""
    while True:
        answer = await client.call_tool(name, {"text": "hi"})
        if not answer.is_error:
            return str(answer.meta["dev.remit/txn"])
        assert answer.meta.get("dev.remit/error", {}).get("retryable"), answer


async def _all_servers(front: Front) -> str:
    """A session at ``/mcp``, and the servers behind it."""
    async with front.client("/mcp") as client:
        await _called(client, "files__echo")
        return await _called(client, "other__echo")


async def _stateless(front: Front) -> str:
    """A request of the generation without sessions."""
    answer = await front.raw("/mcp/files").once("tools/call", {"name": "echo", "arguments": {"text": "hi"}})
    return str(answer.json()["result"]["_meta"]["dev.remit/txn"])


async def _over_a_pipe(front: Front) -> str:
    """``remit mcp``, as the configuration of a client starts it."""
    config = front.lab.folder / "remit.toml"
    config.write_text("[http]\nport = 0\n", encoding="utf-8")
    config.chmod(0o600)
    words = [*REMIT[1:], "mcp", "-c", str(config)]
    async with Client(stdio_client(StdioServerParameters(command=sys.executable, args=words)), mode="legacy") as client:
        return await _called(client, "other__echo")


async def _exchanged(front: Front, web: OAuthClient) -> str:
    """A task whose grant was exchanged from agent to agent over HTTP; the last one calls a tool with it at ``/mcp/{server}``."""
    for name in ("alice", "bob"):
        await front.lab.agent(name)
    first = await front.lab.grant("alice", "mcp/files/*", "agent/**")
    token = await web.grant(first.grant, "alice", audience="bob")
    async with front.client(token=token) as client:
        assert await _called(client, "echo") == first.txn
    return first.txn


async def _through_every_door(front: Front) -> dict[str, dict[str, Seen]]:
    """What the traces must be, by txn: every task is closed, so every hop has ended."""
    async with httpx.AsyncClient(base_url=front.url, trust_env=False) as http:
        txns = [
            await _one_server(front), await _all_servers(front), await _stateless(front), await _over_a_pipe(front),
            await _exchanged(front, OAuthClient(front.lab, http)),
        ]  # fmt: skip
        assert len(set(txns)) == len(txns)
        http.headers["Authorization"] = f"Bearer {front.token}"
        ledger = {}
        for txn in txns:
            await http.post(f"/api/chains/{txn}/close")
            records = await front.lab.records(txn)
            assert records[-1]["kind"] == "txn.closed"
            ledger[txn] = expected(records, await front.lab.refusals(txn))
    assert {why for spans in ledger.values() for one in spans.values() for *_, why in one.links} == {"caller", "retry"}
    return ledger


async def test_a_collector_has_the_tree_of_the_ledger_for_every_door(tmp_path: Path) -> None:
    async with otlp_sink() as sink, front_of(tmp_path, _config(sink.url), servers=("files", "other")) as front:
        ledger = await _through_every_door(front)
        await sink.wait_for(*(span for spans in ledger.values() for span in spans))
    got = [of_collector(one) for one in sink.spans.values()]
    for txn, spans in ledger.items():
        assert {one.span: one for one in got if one.trace == txn} == spans


@pytest.mark.slow
async def test_jaeger_gives_back_the_tree_of_the_ledger_for_every_door(tmp_path: Path) -> None:
    binary = cached_jaeger()
    if binary is None:
        pytest.skip("no Jaeger was built on this machine: make jaeger")
    (tmp_path / "jaeger").mkdir()
    async with (
        running_jaeger(binary, tmp_path / "jaeger") as jaeger,
        front_of(tmp_path / "broker", _config(jaeger.otlp), servers=("files", "other")) as front,
    ):
        ledger = await _through_every_door(front)
        got = {txn: await fetched(jaeger.query, txn, set(spans)) for txn, spans in ledger.items()}
    assert got == ledger
    for txn, spans in got.items():
        print(f"\n{len(spans)} spans of txn {txn}\n{drawn(spans)}")


def _config(endpoint: str) -> dict[str, Any]:
    return {"traces": {"endpoint": endpoint}, "development": {"issuer": True}}
