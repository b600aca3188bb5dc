"""MCP clients as lean as can be, over HTTP and over pipes: a session, and then one ``tools/call`` after the other."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx

from remit_broker.bench.measure import Call

VERSION: Final = "2025-06-18"
TEXT: Final = "x" * 1000
_HELLO: Final = {"protocolVersion": VERSION, "capabilities": {}, "clientInfo": {"name": "remit-bench", "version": "1"}}
_ACCEPT: Final = {"Accept": "application/json, text/event-stream"}
_LONGEST: Final = 16 << 20


def _request(method: str, params: Mapping[str, Any], number: int | None = None) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": method, "params": params} | ({} if number is None else {"id": number})


def _check(answer: Mapping[str, Any]) -> None:
    """Raises RuntimeError for a call that brought anything but what was sent."""
    result = answer.get("result")
    if not isinstance(result, dict) or result.get("isError") or result["content"][0]["text"] != TEXT:
        raise RuntimeError(f"not what was sent: {json.dumps(answer)[:500]}")


@asynccontextmanager
async def over_http(url: str, tool: str, token: str | None = None) -> AsyncIterator[Call]:
    """Calls of ``tool`` at a streamable HTTP endpoint; connections are kept."""
    headers = _ACCEPT | ({"Authorization": f"Bearer {token}"} if token else {})
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(headers=headers, trust_env=False, timeout=60, limits=limits) as http:
        opened = await http.post(url, json=_request("initialize", _HELLO, 0))
        opened.raise_for_status()
        if session := opened.headers.get("mcp-session-id"):
            http.headers["Mcp-Session-Id"] = session
        http.headers["MCP-Protocol-Version"] = _answer(opened)["result"]["protocolVersion"]
        (await http.post(url, json=_request("notifications/initialized", {}))).raise_for_status()

        async def call(number: int) -> None:
            body = _request("tools/call", {"name": tool, "arguments": {"text": TEXT}}, number + 1)
            _check(_answer((await http.post(url, json=body)).raise_for_status()))

        yield call


def _answer(response: httpx.Response) -> dict[str, Any]:
    """The message of a response, which may be one document or a stream that ends with it."""
    text = response.text
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        told = [
            line.removeprefix("data:") for line in text.splitlines() if line.startswith("data:") and line != "data:"
        ]
        text = next(one for one in reversed(told) if '"id"' in one)
    found: dict[str, Any] = json.loads(text)
    return found


@asynccontextmanager
async def over_pipes(tool: str, *words: str) -> AsyncIterator[tuple[Call, int]]:
    """Calls of ``tool`` of a Python process that speaks MCP over its standard input and output; and its id."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL, env=dict(os.environ), limit=_LONGEST,
    )  # fmt: skip
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("no pipe")
    to, back = process.stdin, process.stdout
    waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
    numbers = itertools.count()

    async def read() -> None:
        async for line in back:
            message = json.loads(line)
            if (future := waiting.pop(message.get("id", -1), None)) is not None:
                future.set_result(message)

    async def ask(method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        number = next(numbers)
        waiting[number] = future = asyncio.get_running_loop().create_future()
        to.write(json.dumps(_request(method, params, number)).encode() + b"\n")
        await to.drain()
        async with asyncio.timeout(60):
            answer: dict[str, Any] = await future
            return answer

    async def call(_: int) -> None:
        _check(await ask("tools/call", {"name": tool, "arguments": {"text": TEXT}}))

    reading = asyncio.ensure_future(read())
    try:
        await ask("initialize", _HELLO)
        to.write(json.dumps(_request("notifications/initialized", {})).encode() + b"\n")
        yield call, process.pid
    finally:
        to.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()
        reading.cancel()
