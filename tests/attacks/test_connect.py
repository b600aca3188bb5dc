"""A user logs in at an MCP server that has OAuth of its own: here another broker, with a login, its own clients and rotating tokens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio

from remit_broker.adapters.upstream import Tokens
from remit_broker.core.backends import Secret
from remit_broker.core.listing import ChainFilter
from remit_broker.edges.attach.source import HttpSource
from tests.attacks.test_login import config
from tests.integration.test_login_sdk import login
from tests.support.browser import Browser
from tests.support.mcp_client import Front, front_of
from tests.support.openid import openid_provider

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]


class House:
    """``theirs`` is the server with OAuth, ``ours`` the broker in front of it."""

    def __init__(self, ours: Front, theirs: Front) -> None:
        self.ours, self.theirs = ours, theirs
        self.local = {"Authorization": f"Bearer {ours.token}"}

    async def begin(self, server: str = "crm", user: str = "ann") -> httpx.Response:
        return await self.ours.http.post(
            f"{self.ours.url}/api/secrets/connect", json={"server": server, "user": user}, headers=self.local
        )

    async def connect(self, user: str = "ann", account: str = "ann") -> None:
        """All the way, as ``account`` at the server."""
        url = (await self.begin(user=user)).json()["url"]

        def work() -> None:
            browser = Browser(self.theirs.url, account)
            page = browser.http.get(url)
            assert (
                page.status_code == 200
                and f"<b>{user}</b>" in page.text
                and "form-action 'self'" in page.headers["content-security-policy"]
            )
            went = browser.http.post(f"{self.ours.url}/oauth/connect", data={"id": url.partition("id=")[2]})
            browser.log_in(went)
            back = browser.decide("allow")
            done = browser.http.get(back.headers["location"])
            assert done.status_code == 200 and "Connected" in done.text, done.text
            browser.close()

        await asyncio.to_thread(work)

    async def call(self, user: str = "ann") -> Any:
        grant = (await self.ours.lab.grant("caller", "mcp/**", user=user)).grant
        async with self.ours.client("/mcp/crm", token=grant) as client:
            return await client.call_tool("echo", {"text": "hello"})

    async def tokens(self, user: str = "ann") -> Tokens:
        found = await self.ours.lab.broker.secrets.get("default", "crm", user)
        assert found is not None
        return msgspec.json.decode(found.value, type=Tokens)

    async def keep(self, tokens: Tokens, user: str = "ann") -> None:
        value = msgspec.json.encode(tokens).decode()
        secret = Secret(server="crm", user=user, value=value, at="2026-01-01T00:00:00.000Z", by="test")
        await self.ours.lab.broker.secrets.put("default", secret)


class Hostile:
    """A server whose metadata says what a test tells it to."""

    def __init__(self) -> None:
        self.documents: dict[str, Any] = {}
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
        found = self.documents.get(path)
        data = b"" if found is None else json.dumps(found).encode()
        status = b"404 Not Found" if found is None else b"200 OK"
        writer.write(b"HTTP/1.1 %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (status, len(data), data))
        await writer.drain()
        writer.close()


HOSTILE = Hostile()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        provider = stack.enter_context(openid_provider(tmp_path_factory.mktemp("provider")))
        listening = await stack.enter_async_context(await asyncio.start_server(HOSTILE.serve, "127.0.0.1", 0))
        HOSTILE.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        settings = config(provider) | {"http": {"port": 0, "auth": "issuer"}}
        theirs = await stack.enter_async_context(front_of(tmp_path_factory.mktemp("theirs"), settings))
        backends = {
            "crm": {"kind": "oauth", "url": f"{theirs.url}/mcp/files"},
            "odd": {"kind": "oauth", "url": f"{HOSTILE.url}/mcp"},
            "inside": {"kind": "oauth", "url": "https://127.0.0.2/mcp"},
        }
        own = {"backends": backends, "oauth": {"documents_allow": ["127.0.0.1/32"]}}
        ours = await stack.enter_async_context(front_of(tmp_path_factory.mktemp("ours"), own, servers=()))
        found = House(ours, theirs)
        await ours.lab.agent("caller")
        # To list its tools there is a login for nobody in particular; what is called is called as the user.
        service = await login(theirs)
        body = {"server": "crm", "service": True, "value": service}
        assert (await ours.http.post(f"{ours.url}/api/secrets", json=body, headers=found.local)).status_code == 200
        await ours.attach("crm", HttpSource(f"{theirs.url}/mcp/files"), stack)
        yield found


async def test_a_user_logs_in_at_the_server_and_is_called_as_who_they_are_there(house: House) -> None:
    no = await house.call("ann")
    assert no.is_error and "reconnect needed: remit secrets connect crm --user ann" in no.content[0].text
    await house.connect("ann", account="bob")
    answer = await house.call("ann")
    assert answer.content[0].text == "hello", answer
    # At the server it was bob, the account that ann logged in with.
    txn = answer.meta["dev.remit/txn"]
    assert (await house.ours.lab.records(txn))[0]["user"] == "ann"
    await house.theirs.lab.broker.caught_up()
    rows = (await house.theirs.lab.broker.index.chains("default", ChainFilter())).rows
    assert {row.user for row in rows} >= {"bob"}
    assert (await house.call("carl")).is_error
    assert (await house.tokens()).access not in str(answer)


async def test_an_access_token_is_refreshed_in_time_and_an_ended_login_says_reconnect(house: House) -> None:
    await house.connect("ann", account="ann")
    before = await house.tokens()
    await house.keep(msgspec.structs.replace(before, exp=0))
    answers = await asyncio.gather(*(house.call() for _ in range(3)))
    assert [answer.content[0].text for answer in answers] == ["hello"] * 3
    after = await house.tokens()
    assert after.access != before.access and after.refresh != before.refresh and after.exp >= before.exp
    # The user takes it back at the server.
    form = {"token": after.refresh, "client_id": after.at.client_id}
    assert (await house.theirs.http.post(f"{house.theirs.url}/oauth/revoke", data=form)).status_code == 200
    await house.keep(msgspec.structs.replace(after, exp=0))
    no = await house.call()
    assert no.is_error and "credentials.reconnect" in no.content[0].text and after.access not in no.content[0].text
    # Its tools have not vanished.
    grant = (await house.ours.lab.grant("caller", "mcp/**", user="ann")).grant
    async with house.ours.client("/mcp/crm", token=grant) as client:
        assert "echo" in [tool.name for tool in (await client.list_tools()).tools]


async def test_a_connection_that_somebody_else_began_ends_nowhere(house: House) -> None:
    """Mallory begins, and sends ann the link of the server's login: ann's account there does not become mallory's here."""
    url = (await house.begin(user="mallory")).json()["url"]

    def work() -> tuple[httpx.Response, httpx.Response]:
        mallory, ann = Browser(house.theirs.url, "mallory"), Browser(house.theirs.url, "ann")
        went = mallory.http.post(f"{house.ours.url}/oauth/connect", data={"id": url.partition("id=")[2]})
        ann.log_in(went)
        back = ann.decide("allow")
        done, again = ann.http.get(back.headers["location"]), mallory.http.get(back.headers["location"])
        mallory.close()
        ann.close()
        return done, again

    for response in await asyncio.to_thread(work):
        assert response.status_code == 400 and "cannot go on" in response.text
    assert await house.ours.lab.broker.secrets.get("default", "crm", "mallory") is None
    late = await house.ours.http.get(url)
    assert late.status_code == 400


GOOD: dict[str, Any] = {
    "authorization_endpoint": "https://login.example/a", "token_endpoint": "https://login.example/t",
    "registration_endpoint": "https://login.example/r", "code_challenge_methods_supported": ["S256"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("resource", "server"),
    [
        ({"resource": "https://other.example/mcp"}, {}), ({"authorization_servers": []}, {}),
        ({"authorization_servers": ["http://evil.example"]}, {}),
        ({"authorization_servers": ["file:///etc"]}, {}), ({"authorization_servers": ["https://169.254.169.254"]}, {}),
        ({"authorization_servers": ["https://u@evil.example"]}, {}), ({}, {"issuer": "https://other.example"}),
        ({}, {"authorization_endpoint": "javascript:alert(1)"}), ({}, {"authorization_endpoint": "https://a.example/$(id) x"}),
        ({}, {"token_endpoint": "http://evil.example/t"}), ({}, {"code_challenge_methods_supported": ["plain"]}),
        ({}, {"code_challenge_methods_supported": None}), ({}, {"registration_endpoint": "https://10.0.0.1/r"}),
    ],
)  # fmt: skip
async def test_hostile_metadata_of_a_server_leads_nowhere(
    house: House, resource: dict[str, Any], server: dict[str, Any]
) -> None:
    base = HOSTILE.url
    HOSTILE.documents = {
        "/.well-known/oauth-protected-resource/mcp": {
            "resource": f"{base}/mcp",
            "authorization_servers": [base],
            **resource,
        },
        "/.well-known/oauth-authorization-server": {"issuer": base, **GOOD, **server},
    }
    no = await house.begin("odd")
    assert no.status_code == 503 and no.json()["error"]["rule"] == "credentials.missing", no.text


async def test_a_server_that_claims_to_be_another_is_not_logged_in_at(house: House) -> None:
    HOSTILE.documents = {
        "/.well-known/oauth-protected-resource/mcp": {
            "resource": "https://bank.example",
            "authorization_servers": [HOSTILE.url],
        }
    }
    no = await house.begin("odd")
    assert "another resource" in no.text
    # Nor is a server inside asked at all, unless its network is named; nor one that nobody logs in at.
    assert "not public" in (await house.begin("inside")).text
    assert (await house.begin("nothing")).status_code == 404
