"""The HTTP edge from a browser, from another machine's page, and from a program that has no business there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from remit_broker.adapters.keyfiles import new_user_seed
from remit_broker.core import nkey
from tests.support.raw import Arena

pytestmark = pytest.mark.asyncio(loop_scope="module")

TXN = "0af7651916cd43dd8448eb211c80319c"
API = [
    ("POST", "/api/grants"), ("GET", "/api/agents"), ("POST", "/api/agents"), ("DELETE", "/api/agents/alice"),
    ("GET", "/api/servers"), ("POST", "/api/servers/reload"), ("POST", "/api/servers/files/accept"),
    ("GET", "/api/chains"), ("GET", f"/api/chains/{TXN}"), ("GET", f"/api/chains/{TXN}/evidence"),
    ("POST", f"/api/chains/{TXN}/close"), ("POST", "/api/revocations"), ("GET", "/api/revocations"),
    ("POST", "/api/revocations/reinstate"), ("GET", "/api/find/abcd"),
    ("GET", "/api/records/b7ad6b7169203331"),
]  # fmt: skip
OPEN = [("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/metrics"), ("GET", "/.well-known/jwks.json")]
FORWARDED = {
    "X-Forwarded-For": "127.0.0.1", "X-Real-IP": "127.0.0.1", "Forwarded": "for=127.0.0.1;host=localhost",
    "X-Forwarded-Host": "127.0.0.1", "X-Original-URL": "/healthz", "X-HTTP-Method-Override": "GET", "X-Remote-User": "root",
}  # fmt: skip


class Web:
    """A client without a token, and one with it."""

    def __init__(self, arena: Arena, http: httpx.AsyncClient) -> None:
        self.arena, self.http = arena, http
        self.token = arena.lab.broker.keys.local_token
        self.auth = {"Authorization": f"Bearer {self.token}"}

    async def plain(self, request: bytes) -> bytes:
        """The answer to bytes that no HTTP client would send."""
        host, port = self.arena.lab.broker.http.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(request)
            await writer.drain()
            async with asyncio.timeout(4):
                return await reader.read(4096)
        finally:
            writer.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def web(arena: Arena) -> AsyncIterator[Web]:
    await arena.agent("alice")
    async with httpx.AsyncClient(base_url=arena.lab.broker.http, trust_env=False) as http:
        yield Web(arena, http)


def error(response: httpx.Response) -> dict[str, Any]:
    """The error body, whatever happened: never a page, never a traceback."""
    body: dict[str, Any] = response.json()["error"]
    assert body["code"] and body["message"] and "Traceback" not in response.text
    return body


async def test_with_the_token_from_this_machine_the_door_is_open(web: Web) -> None:
    assert (await web.http.get("/api/agents", headers=web.auth)).status_code == 200


# Who


@pytest.mark.parametrize(("method", "path"), API)
async def test_no_route_of_the_api_is_open(web: Web, method: str, path: str) -> None:
    for headers in ({}, FORWARDED):
        response = await web.http.request(method, path, headers=headers)
        assert response.status_code == 401 and error(response)["rule"] == "http.local"
        assert response.headers["www-authenticate"] == "Bearer"


async def test_what_is_not_the_token_is_no_token(web: Web) -> None:
    token = web.token
    for value in (
        "", "Bearer", "Bearer x", f"Basic {token}", token, f"Bearer {token}x", f"Bearer {token[:-1]}",
        f"Bearer {token.upper()}" if token.upper() != token else "Bearer", "Bearer \xff\xfe", f"Bearer {token},{token}",
        f"Bearer  x {token}", "Bearer null", "Bearer undefined",
    ):  # fmt: skip
        response = await web.http.get("/api/agents", headers=[(b"authorization", value.encode("latin-1"))])
        assert response.status_code == 401, value
    assert (await web.http.get("/api/agents", params={"access_token": token, "token": token})).status_code == 401
    assert (await web.http.get("/api/agents", headers={"Cookie": f"token={token}"})).status_code == 401


async def test_a_grant_is_no_token_for_operators(web: Web) -> None:
    root = await web.arena.lab.grant("alice", "**")
    response = await web.http.get("/api/agents", headers={"Authorization": f"Bearer {root.grant}"})
    assert response.status_code == 401


# From where


@pytest.mark.parametrize(("method", "path"), [*API, *OPEN, ("GET", "/"), ("GET", "/nothing")])
async def test_a_foreign_host_or_origin_is_refused_on_every_route(web: Web, method: str, path: str) -> None:
    foreign: list[dict[str, str]] = [
        {"Host": "evil.example"}, {"Host": "evil.example:7480"}, {"Host": "127.0.0.1.evil.example"},
        {"Host": "localhost.evil.example"}, {"Host": "[::1].evil.example"}, {"Host": "127.0.0.1@evil.example"},
        {"Host": "0.0.0.0"}, {"Host": ""}, {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "file://"},
        {"Origin": "http://127.0.0.1.evil.example"}, {"Origin": "http://evil.example:80@127.0.0.1.evil.example"},
        {"Host": "evil.example", **FORWARDED}, {"Origin": "http://evil.example", **FORWARDED},
    ]  # fmt: skip
    for headers in foreign:
        response = await web.http.request(method, path, headers={**web.auth, **headers})
        assert response.status_code == 403, headers
        assert error(response)["rule"] == "http.host"
        assert "access-control-allow-origin" not in response.headers


async def test_a_preflight_from_a_page_elsewhere_permits_nothing(web: Web) -> None:
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    response = await web.http.request("OPTIONS", "/api/grants", headers=headers)
    assert response.status_code == 403
    assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n",
        b"GET /healthz HTTP/1.0\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: evil.example\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
        b"GET http://evil.example/healthz HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: evil.example/\r\nConnection: close\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1 evil.example\r\nConnection: close\r\n\r\n",
        b"\x16\x03\x01\x00\xa5\x01\x00\x00",
        b"\x00" * 4096 + b"\r\n\r\n",
    ],
)
async def test_no_host_two_hosts_and_odd_hosts_are_refused(web: Web, request_: bytes) -> None:
    answer = await web.plain(request_)
    assert answer[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 403", b""), answer[:200]
    assert b'"status"' not in answer


# What


async def test_a_wrong_method_does_nothing(web: Web) -> None:
    for _, path in API:
        for other in {"GET", "POST", "PUT", "PATCH", "DELETE"} - {m for m, p in API if p == path}:
            response = await web.http.request(other, path, headers=web.auth)
            assert response.status_code in (404, 405), (other, path)
            error(response)


async def test_a_body_over_the_cap_is_refused_before_it_is_read_whole(web: Web) -> None:
    response = await web.http.post("/api/grants", headers=web.auth, content=b" " * 300_000)
    assert response.status_code == 413 and error(response)["code"] == "TOO_LARGE"
    # One that says no length and never ends: answered as soon as it is too much.
    head = f"POST /api/grants HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {web.token}\r\n"
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    answer = await web.plain(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 5)
    assert answer.startswith(b"HTTP/1.1 413"), answer[:200]


def delegation(**changes: Any) -> bytes:
    """The body that opens a txn, but for ``changes``."""
    budget = {"usd_micros": 0, "tokens": 0, "calls": 1}
    body = {"user": "ann", "agent": "alice", "scopes": [{"resource": "**"}], "budget": budget}
    return json.dumps({**body, **changes}).encode()


async def test_a_delegation_without_changes_does_open_a_txn(web: Web) -> None:
    assert (await web.http.post("/api/grants", headers=web.auth, content=delegation())).status_code == 200


BODIES: dict[str, bytes] = {
    "nested": b'{"user":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "NaN": b'{"ttl":NaN}',
    "a name twice": b'{"user":"ann","user":"root"}',
    "not UTF-8": b'{"user":"\xff"}',
    "a lone surrogate": b'{"user":"\\ud800"}',
    "a list": b"[]",
    "a form": b"user=ann&agent=alice",
    "an unknown field": delegation(admin=True),
    "another tenant": delegation(tenant="other"),
    "a negative budget": delegation(budget={"usd_micros": -1, "tokens": 0, "calls": 1}),
    "a ttl of years": delegation(ttl=999_999_999),
    "a depth of 17": delegation(max_depth=17),
    "no scope": delegation(scopes=[]),
    "a scope that is a path": delegation(scopes=[{"resource": "../../**"}]),
    "a user that is nobody": delegation(user=""),
}


@pytest.mark.parametrize("name", BODIES)
async def test_a_body_that_is_no_delegation_opens_no_txn(web: Web, name: str) -> None:
    before = web.arena.lab.broker.ledger.high
    response = await web.http.post("/api/grants", headers=web.auth, content=BODIES[name])
    assert response.status_code in (400, 413, 422), response.text
    assert error(response)["effect"] == "none"
    assert web.arena.lab.broker.ledger.high == before


async def test_nothing_is_accepted_without_saying_what(web: Web) -> None:
    bodies: list[dict[str, Any]] = [{}, {"digests": {}}, {"digests": "all"}, {"digests": {}, "forget": False}]
    for body in bodies:
        response = await web.http.post("/api/servers/files/accept", headers=web.auth, json=body)
        assert response.status_code == 400, response.text


async def test_a_command_in_a_body_is_refused_and_not_run(web: Web, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    command = {"command": ["touch", str(mark)], "cmd": f"touch {mark}", "url": "http://127.0.0.1:1"}
    key = nkey.public_of("U", web.arena.lab.seeds["alice"])
    for path, body in (
        ("/api/servers/reload", command),
        ("/api/servers/files/accept", command),
        ("/api/agents", {"name": "runner", "nkey": key, "kind": "mcp", **command}),
        ("/api/revocations", {"txn": TXN, **command}),
        ("/api/revocations/reinstate", {"all": True, **command}),
        ("/api/grants", {"user": "ann", "agent": "alice", "scopes": [], "budget": {}, **command}),
    ):
        response = await web.http.post(path, headers=web.auth, json=body)
        assert response.status_code == 400, (path, response.text)
        assert error(response)["code"] == "MALFORMED"
    assert (await web.http.post("/api/servers", headers=web.auth, json=command)).status_code == 405
    assert not mark.exists()


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../alice",
        "%2e%2e",
        "..%2falice",
        "remit",
        "new",
        "broker",
        "Alice",
        "a b",
        "a.b",
        "a*",
        ">",
        "",
        "\u0430lice",
        "a" * 64,
        "a\n",
    ],
)
async def test_no_agent_has_a_name_that_reaches_elsewhere(web: Web, name: str) -> None:
    body = {"name": name, "nkey": nkey.public_of("U", new_user_seed())}
    response = await web.http.post("/api/agents", headers=web.auth, json=body)
    assert response.status_code == 400 and error(response)["rule"] == "agents.name"


@pytest.mark.parametrize(
    "key", ["", "U", "not a key", "A" * 56, "UAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"]
)
async def test_an_agent_needs_a_public_key_that_is_one(web: Web, key: str) -> None:
    response = await web.http.post("/api/agents", headers=web.auth, json={"name": "keyless", "nkey": key})
    assert response.status_code == 400, response.text
    assert web.arena.lab.broker.registry.principal("keyless") is None


async def test_a_registered_name_cannot_be_taken_over(web: Web) -> None:
    body = {"name": "alice", "nkey": nkey.public_of("U", new_user_seed())}
    response = await web.http.post("/api/agents", headers=web.auth, json=body)
    assert response.status_code == 409
    # Nor can one key stand for two names.
    body = {"name": "alice2", "nkey": nkey.public_of("U", web.arena.lab.seeds["alice"])}
    assert (await web.http.post("/api/agents", headers=web.auth, json=body)).status_code == 409


@pytest.mark.parametrize(
    "path",
    [
        "/api/chains/..%2f..%2fdata", "/api/chains/%00", "/api/chains/" + "f" * 33, "/api/chains/' OR 1=1 --",
        "/api/chains?user=' OR '1'='1", "/api/chains?cursor=../../x", "/api/chains?limit=many",
        "/api/chains?usr=nobody", "/api/find/%25%25%25%25", "/api/find/____", "/api/find/' OR 1=1 --", "/api/records/%25",
        "/api/records/________________", "/api/records/..", "/.well-known/../data/keys/local.token", "//evil.example/api",
        "/data/keys/local.token", "/static/../../remit.toml",
    ],
)  # fmt: skip
async def test_nothing_in_a_path_or_query_reaches_what_it_should_not(web: Web, path: str) -> None:
    await web.arena.lab.grant("alice", "**")
    response = await web.http.get(path, headers=web.auth)
    assert web.token not in response.text
    if response.status_code == 200:
        found = response.json()
        assert found.get("chains", []) == [] and found.get("found", []) == [], found
    else:
        assert response.status_code in (400, 404, 405), response.text
        error(response)


async def test_what_is_said_in_a_what_if_is_not_overruled(web: Web) -> None:
    """Also where it is what would be taken for said if it were not: the registry knows the tool as a destructive one."""
    files = await web.arena.agent("files", "mcp")
    await files.serve({"name": "shred", "inputSchema": {"type": "object"}})
    await web.arena.agent("mallory", tier="untrusted")

    async def outcome(**said: Any) -> tuple[str, list[str]]:
        wish = {"resource": "mcp/files/shred", "agent": "mallory", **said}
        told = (await web.http.post("/api/policy/simulate", json=wish, headers=web.auth)).json()
        return told["outcome"], told["rules"]

    assert await outcome() == ("deny", ["untrusted-agents-only-read"])
    assert await outcome(readOnly=True) == ("allow", ["grant-covers-call"])
    assert await outcome(tier="standard", tiers=["standard"]) == ("approve", ["destructive-needs-approval"])
    assert await outcome(tier="standard", tiers=["standard"], destructive=False) == ("allow", ["grant-covers-call"])
    assert await outcome(tier="standard", tiers=["standard"], readOnly=False) == (
        "approve",
        ["destructive-needs-approval"],
    )


async def test_health_stays_up_after_all_of_this(web: Web) -> None:
    assert (await web.http.get("/healthz")).json() == {"status": "ok"}
    assert (await web.http.get("/readyz")).json()["ready"] is True
