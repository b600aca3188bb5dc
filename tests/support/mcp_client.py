"""A running broker with a real MCP server behind it, and clients of it: the MCP library's, and one that says what it likes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from remit_broker.edges.attach.credentials import read_credentials
from remit_broker.edges.attach.source import Source
from remit_broker.edges.attach.worker import AttachWorker
from remit_broker.testing import Lab, running_broker
from tests.support.attach_fixture import HASTY, Attached, eventually, well_behaved

PERMIT = (
    "own.cedar",
    '@id("all")\n@reason("a test")\npermit (principal, action, resource);',
)
HELLO = {
    "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"},
}  # fmt: skip
STATELESS = "2026-07-28"
BOTH = "application/json, text/event-stream"


class Front:
    """A broker, and what stands at its ``/mcp``."""

    def __init__(self, lab: Lab, http: httpx.AsyncClient) -> None:
        self.lab, self.http = lab, http
        self.token = lab.broker.keys.local_token
        self.url = lab.broker.http

    @property
    def clients(self) -> Any:
        """What stands behind the routes, with its sessions."""
        return self.lab.broker._clients

    async def attach(
        self, name: str, what: Source | None = None, stack: AsyncExitStack | None = None, log: Path | None = None
    ) -> Attached:
        """Attach a server, by default the well-behaved one, and wait until its tools are there."""
        path = await self.lab.agent(name, kind="mcp")
        worker = AttachWorker(name, what or well_behaved(), read_credentials(path), timing=HASTY, log=log)
        attached = Attached(worker, [])
        if stack is not None:
            stack.push_async_callback(attached.stop)
        await attached.until("running")
        await eventually(lambda: self.lab.broker.registry.attachment(name) is not None)
        return attached

    @asynccontextmanager
    async def client(self, path: str = "/mcp/files", token: str | None = None, **rest: Any) -> AsyncIterator[Any]:
        """The library's client, of the generation with sessions."""
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
        async with httpx2.AsyncClient(headers=headers, timeout=30, trust_env=False) as http:
            transport = streamable_http_client(self.url + path, http_client=http)
            async with Client(transport, **{"mode": "legacy", **rest}) as client:
                yield client

    def raw(self, path: str = "/mcp/files", token: str | None = None) -> Raw:
        """A client that says what it likes."""
        return Raw(self, path, self.token if token is None else token)

    async def txns(self) -> list[str]:
        """Every task there is, the newest first."""
        await self.lab.broker.caught_up()
        found = self.http.get(f"{self.url}/api/chains", headers={"Authorization": f"Bearer {self.token}"})
        return [row["txn"] for row in (await found).json()["chains"]]


class Raw:
    """Messages as they are, and answers as they come."""

    def __init__(self, front: Front, path: str, token: str) -> None:
        self._front, self.path, self.token = front, path, token
        self.session = ""
        self._id = 0

    async def post(
        self, message: Any, headers: Mapping[str, str] | None = None, data: bytes | None = None
    ) -> httpx.Response:
        """One message; a stream is read to its end."""
        said = {"Authorization": f"Bearer {self.token}", "Accept": BOTH, "Content-Type": "application/json"}
        if self.session:
            said["Mcp-Session-Id"] = self.session
        said |= dict(headers or {})
        content = json.dumps(message).encode() if data is None else data
        return await self._front.http.post(self._front.url + self.path, content=content, headers=said)

    async def begin(self, **changes: Any) -> dict[str, Any]:
        """Initialize."""
        response = await self.post({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {**HELLO, **changes}})
        assert response.status_code == 200, response.text
        self.session = response.headers["mcp-session-id"]
        found: dict[str, Any] = response.json()["result"]
        return found

    async def ask(self, method: str, params: Mapping[str, Any] | None = None, id: Any = None) -> dict[str, Any]:
        """A request; its answer, which may stand at the end of a stream."""
        self._id += 1
        message = {
            "jsonrpc": "2.0",
            "id": self._id if id is None else id,
            "method": method,
            "params": dict(params or {}),
        }
        return said(await self.post(message))[-1]

    def stateless(
        self, method: str, params: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """A request of the generation 2026-07-28, and its headers."""
        self._id += 1
        meta = {
            "io.modelcontextprotocol/protocolVersion": STATELESS,
            "io.modelcontextprotocol/clientCapabilities": {},
            **params.get("_meta", {}),
        }
        message = {"jsonrpc": "2.0", "id": self._id, "method": method, "params": {**params, "_meta": meta}}
        said = {
            "Authorization": f"Bearer {self.token}", "Accept": BOTH, "Content-Type": "application/json",
            "Mcp-Protocol-Version": STATELESS, "Mcp-Method": method,
        }  # fmt: skip
        if isinstance(name := params.get("uri" if method == "resources/read" else "name"), str):
            said["Mcp-Name"] = name
        return message, said | dict(headers or {})

    async def once(
        self, method: str, params: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """A request of that generation; its answer."""
        message, said = self.stateless(method, params or {}, headers)
        return await self._front.http.post(self._front.url + self.path, json=message, headers=said)

    def messages(self, response: httpx.Response) -> list[dict[str, Any]]:
        """What an answer says."""
        return said(response)

    async def tell(self, method: str, params: Mapping[str, Any] | None = None) -> httpx.Response:
        """A notification."""
        return await self.post({"jsonrpc": "2.0", "method": method, "params": dict(params or {})})


def said(response: httpx.Response) -> list[dict[str, Any]]:
    """The messages of an answer."""
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        return [
            json.loads(line[5:]) for line in response.text.splitlines() if line.startswith("data:") and line[5:].strip()
        ]
    assert response.status_code == 200, (response.status_code, response.text)
    return [response.json()]


@asynccontextmanager
async def front_of(
    folder: Path, config: Mapping[str, Any] | None = None, policies: Sequence[tuple[str, str]] = (PERMIT,),
    servers: Sequence[str] = ("files",),
) -> AsyncIterator[Front]:  # fmt: skip
    """A broker with the well-behaved server attached under each of these names."""
    async with AsyncExitStack() as stack:
        lab = await stack.enter_async_context(running_broker(folder, config, policies))
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=30, trust_env=False))
        front = Front(lab, http)
        for name in servers:
            await front.attach(name, stack=stack)
        yield front
