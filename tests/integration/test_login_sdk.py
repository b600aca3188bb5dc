"""An MCP client that knows nothing of Remit logs in by itself: the library's own, with a real OpenID provider."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from mcp import Client
from mcp.client.auth import OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import AuthorizationCodeResult, OAuthClientInformationFull, OAuthClientMetadata, OAuthToken

from tests.attacks.test_login import config
from tests.support.browser import BACK, Browser, Pkce, registered, returned, tokens
from tests.support.mcp_client import Front, front_of
from tests.support.openid import openid_provider

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    with openid_provider(tmp_path_factory.mktemp("provider")) as provider:
        settings = config(provider) | {"http": {"port": 0, "auth": "issuer"}}
        async with front_of(tmp_path_factory.mktemp("front"), settings, servers=("files", "other")) as running:
            yield running


class Memory:
    """What the library keeps of a login."""

    def __init__(self) -> None:
        self.token: OAuthToken | None = None
        self.client: OAuthClientInformationFull | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self.token

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.token = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info


class Person:
    """Who sits in front of the browser that the library opens."""

    def __init__(self, home: str) -> None:
        self.browser = Browser(home)
        self.back: dict[str, str] = {}

    async def sent(self, url: str) -> None:
        def work() -> dict[str, str]:
            self.browser.log_in(self.browser.http.get(url))
            return returned(self.browser.decide("allow"))

        self.back = await asyncio.to_thread(work)

    async def came_back(self) -> AuthorizationCodeResult:
        return AuthorizationCodeResult(code=self.back["code"], state=self.back["state"], iss=self.back["iss"])


async def test_the_library_logs_in_by_itself_and_calls_as_the_user(front: Front) -> None:
    memory, person = Memory(), Person(front.url)
    about = OAuthClientMetadata.model_validate({"client_name": "Editor", "redirect_uris": [BACK]})
    auth = OAuthClientProvider(f"{front.url}/mcp/files", about, memory, person.sent, person.came_back)
    async with (
        httpx2.AsyncClient(auth=auth, timeout=60, trust_env=False) as http,
        Client(streamable_http_client(f"{front.url}/mcp/files", http_client=http), mode="legacy") as client,
    ):
        answer = await client.call_tool("echo", {"text": "hello"})
        assert answer.content[0].text == "hello"  # type: ignore[union-attr]
        records = await front.lab.records(answer.meta["dev.remit/txn"])  # type: ignore[index]
    person.browser.close()
    first = records[0]
    assert memory.client is not None and memory.token is not None
    assert (first["user"], first["auth"], first["roles"]) == ("ann", "oidc:corp", ["analyst"])
    assert first["client"] == memory.client.client_id
    # What the person allowed is what the task has.
    assert [detail["resource"] for detail in first["scope"]] == ["mcp/files/*"]


async def test_a_client_without_a_token_is_told_where_to_get_one(front: Front) -> None:
    async with httpx2.AsyncClient(trust_env=False) as http:
        for path in ("/mcp", "/mcp/files"):
            for headers, error in (({}, ""), ({"Authorization": "Bearer remit_at_x"}, ', error="invalid_token"')):
                response = await http.post(f"{front.url}{path}", json={}, headers=headers)
                where = f"{front.url}/.well-known/oauth-protected-resource{path}"
                assert response.status_code == 401
                assert response.headers["www-authenticate"] == f'Bearer resource_metadata="{where}"{error}'
                found = (await http.get(where)).json()
                assert found["resource"] == front.url + path


async def login(front: Front, **changes: Any) -> str:
    """An access token."""

    def work() -> str:
        client, pkce, browser = registered(front.url), Pkce(), Browser(front.url)
        code = browser.code(client, pkce, **changes)
        browser.close()
        found: str = tokens(front.url, client, code, pkce).json()["access_token"]
        return found

    return await asyncio.to_thread(work)


async def test_a_program_calls_what_its_user_allowed_it(front: Front) -> None:
    """Over ``/mcp`` it sees and calls the tools of the scope that was allowed, and a token for one server opens no other."""
    narrow = await login(front, scope="mcp/files/echo")
    async with front.client("/mcp", token=narrow) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["files__echo"]
        assert (await client.call_tool("files__echo", {"text": "x"})).content[0].text == "x"
        no = await client.call_tool("other__echo", {"text": "x"})
        assert no.is_error
    one = await login(front, resource=f"{front.url}/mcp/files")
    async with httpx2.AsyncClient(trust_env=False, headers={"Authorization": f"Bearer {one}"}) as http:
        assert (await http.post(f"{front.url}/mcp/other", json={})).status_code == 401
        assert (await http.get(f"{front.url}/api/agents")).status_code == 401


async def test_programs_of_one_user_do_not_share_sessions(front: Front) -> None:
    first, second = await login(front), await login(front)
    hello = {
        "jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}},
    }  # fmt: skip
    accepts = {"Accept": "application/json, text/event-stream"}
    async with httpx2.AsyncClient(trust_env=False) as http:
        begun = await http.post(
            f"{front.url}/mcp/files", json=hello, headers={**accepts, "Authorization": f"Bearer {first}"}
        )
        session = {"Mcp-Session-Id": begun.headers["mcp-session-id"], "MCP-Protocol-Version": "2025-11-25"}
        ping = {"jsonrpc": "2.0", "id": 2, "method": "ping"}
        for token, status in ((first, 200), (second, 404)):
            headers = {**accepts, **session, "Authorization": f"Bearer {token}"}
            assert (await http.post(f"{front.url}/mcp/files", json=ping, headers=headers)).status_code == status
