"""``remit servers scan URL``: how a server is guarded, by a server of a few lines that is guarded as badly as the test wants."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from remit_broker.adapters.content.signs import signs
from remit_broker.adapters.detectors import ContentDetectors
from remit_broker.adapters.json_schema import JsonSchemas
from remit_broker.adapters.outbound import Outbound
from remit_broker.core.addresses import network
from remit_broker.core.scan.finding import Finding, Report
from remit_broker.edges.attach.source import source
from remit_broker.edges.scan.run import Tools, scan
from tests.support.attach_fixture import SERVERS, free_port

TOOLS = Tools(signs(ContentDetectors()), JsonSchemas().check)
WEATHER = {
    "name": "weather", "inputSchema": {"type": "object", "additionalProperties": False}, "annotations": {"readOnlyHint": True},
}  # fmt: skip
Answer = tuple[int, dict[str, str], Any]
Seen = list[tuple[str, str, dict[str, str]]]


def spoken(body: bytes) -> Any:
    """What an MCP server answers."""
    message = json.loads(body)
    results = {
        "initialize": {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "web", "version": "1"}},
        "tools/list": {"tools": [WEATHER]},
        "ping": {},
    }  # fmt: skip
    if message["method"] in results:
        return {"jsonrpc": "2.0", "id": message["id"], "result": results[message["method"]]}
    return {"jsonrpc": "2.0", "id": message.get("id"), "error": {"code": -32601, "message": "no"}}


def guarded(path: str, headers: dict[str, str], body: bytes) -> Answer:
    """A server as it should be: a token, metadata, its own Host and no foreign Origin."""
    here = f"http://{headers['host']}"
    if "invalid" in headers["host"] or "origin" in headers:
        return 403, {}, {}
    if path == "/.well-known/oauth-protected-resource/mcp":
        return 200, {}, {"resource": f"{here}/mcp", "authorization_servers": ["https://login.example"]}
    if path != "/mcp":
        return 404, {}, {}
    if headers.get("authorization") != "Bearer good":
        challenge = f'Bearer resource_metadata="{here}/.well-known/oauth-protected-resource/mcp"'
        return 401, {"www-authenticate": challenge}, {}
    return 200, {"mcp-session-id": "0123456789abcdef0123456789abcdef"}, spoken(body)


def careless(path: str, headers: dict[str, str], body: bytes) -> Answer:
    """A server that answers everybody."""
    return 200, {"mcp-session-id": "7", "access-control-allow-origin": "*"}, spoken(body)


PUBLIC: dict[str, Any] = {
    "issuer": "https://login.example", "authorization_endpoint": "https://login.example/a",
    "token_endpoint": "http://login.example/t", "code_challenge_methods_supported": ["plain"],
    "registration_endpoint": "https://login.example/r",
}  # fmt: skip


@asynccontextmanager
async def served(answer: Callable[[str, dict[str, str], bytes], Answer]) -> AsyncIterator[tuple[str, Seen]]:
    """The URL of a server, and the requests it got."""
    seen: Seen = []

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            first = (await reader.readline()).decode().split()
            headers = {}
            while line := (await reader.readline()).decode().strip():
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            seen.append((first[0], first[1], headers))
            status, extra, told = answer(first[1], headers, body)
            data = told if isinstance(told, bytes) else json.dumps(told).encode()
            head = {
                "content-type": "application/json",
                "content-length": str(len(data)),
                "connection": "close",
                **extra,
            }
            writer.write(f"HTTP/1.1 {status} X\r\n".encode())
            writer.write("".join(f"{name}: {value}\r\n" for name, value in head.items()).encode() + b"\r\n" + data)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, IndexError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp", seen
    finally:
        server.close()


async def look(url: str, token: str | None = None, **more: Any) -> Report:
    return await scan(source(url=url), TOOLS, lambda: "2026-01-01T00:00:00.000Z", token=token, **more)


def by_rule(report: Report) -> dict[str, Finding]:
    return {one.rule: one for one in reversed(report.findings)}


async def test_a_guarded_server_passes_and_its_tools_are_looked_at_with_a_token() -> None:
    async with served(guarded) as (url, seen):
        report = await look(url, "good")
    assert set(by_rule(report)) == {"http.plain"}
    assert (report.tools, report.server["name"]) == (("weather",), "web")
    assert any("not-a-token" in headers.get("authorization", "") for _, _, headers in seen)


async def test_without_a_token_a_guarded_server_is_looked_at_from_outside() -> None:
    async with served(guarded) as (url, seen):
        report = await look(url)
    assert set(by_rule(report)) == {"http.plain", "auth.closed"}
    assert not any("authorization" in headers for _, _, headers in seen)


async def test_a_careless_server_is_told_from_a_guarded_one() -> None:
    async with served(careless) as (url, _):
        found = by_rule(await look(url))
    assert {rule: found[rule].severity for rule in ("auth.none", "http.origin", "http.host", "http.cors", "http.session")} == {
        "auth.none": "low", "http.origin": "high", "http.host": "high", "http.cors": "high", "http.session": "medium",
    }  # fmt: skip


def any_token(path: str, headers: dict[str, str], body: bytes) -> Answer:
    return (200, {}, spoken(body)) if "authorization" in headers else (401, {}, {})


async def test_a_server_that_takes_any_token_is_found() -> None:
    async with served(any_token) as (url, _):
        found = by_rule(await look(url, "good"))
    assert found["auth.any_token"].severity == "critical"
    assert {"auth.challenge", "auth.metadata"} <= set(found)


@pytest.mark.parametrize(
    ("metadata", "rule"),
    [
        ({"resource": "https://other.example/mcp", "authorization_servers": ["https://login.example"]}, "auth.resource"),
        ({"resource": "HERE/other", "authorization_servers": ["https://login.example"]}, "auth.resource"),
        ({"resource": "HERE/mcp"}, "auth.servers"),
        ({"resource": "HERE/mcp", "authorization_servers": ["http://login.example"]}, "auth.servers"),
        ({"resource": "HERE/mcp", "authorization_servers": ["https://l"], "bearer_methods_supported": ["query"]}, "auth.query"),
        ([1], "auth.metadata"),
        (b"[" * 100_000, "auth.metadata"),
        (b"{" + b" " * 200_000 + b"}", "auth.metadata"),
    ],
)  # fmt: skip
async def test_metadata_that_is_wrong_is_found(metadata: Any, rule: str) -> None:
    def answer(path: str, headers: dict[str, str], body: bytes) -> Answer:
        if path.startswith("/.well-known"):
            told = (
                metadata
                if isinstance(metadata, bytes)
                else json.dumps(metadata).replace("HERE", f"http://{headers['host']}").encode()
            )
            return 200, {}, told
        return 401, {"www-authenticate": "Bearer"}, {}

    async with served(answer) as (url, _):
        assert rule in by_rule(await look(url))


async def test_where_a_server_leads_to_is_told_and_not_followed() -> None:
    async with served(careless) as (elsewhere, asked):
        for status, headers in (
            (307, {"location": elsewhere}),
            (401, {"www-authenticate": f'Bearer resource_metadata="{elsewhere}"'}),
        ):

            def answer(path: str, got: dict[str, str], body: bytes, told: Answer = (status, headers, {})) -> Answer:
                return told

            async with served(answer) as (url, _):
                found = by_rule(await look(url, "good"))
            rule = "http.redirect" if status == 307 else "auth.metadata"
            assert found[rule].evidence == elsewhere
        assert asked == []


async def test_a_redirect_within_the_server_is_followed() -> None:
    def answer(path: str, headers: dict[str, str], body: bytes) -> Answer:
        return (307, {"location": "/mcp/"}, {}) if path == "/mcp" else careless(path, headers, body)

    async with served(answer) as (url, _):
        report = await look(url)
    assert report.tools == ("weather",)
    assert by_rule(report)["http.redirect"].severity == "low"


async def test_nobody_there_is_a_finding() -> None:
    found = by_rule(await look(f"http://127.0.0.1:{free_port()}/mcp"))
    assert found["protocol.silent"].severity == "critical"


@pytest.mark.parametrize("kind", ["text/event-stream", "application/json", "text/html"])
async def test_a_body_that_is_no_answer_ends_in_a_finding(kind: str) -> None:
    def answer(path: str, headers: dict[str, str], body: bytes) -> Answer:
        return 200, {"content-type": kind}, b"data: <html>\n\n" + b"x" * 6_000_000

    async with served(answer) as (url, _):
        found = by_rule(await look(url))
    assert found["protocol.silent"].severity == "critical"


async def test_a_server_of_the_sdk_is_scanned_over_http() -> None:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(SERVERS / "well_behaved.py"), "http", str(port), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(40):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                except OSError:
                    await asyncio.sleep(0.1)
        report = await look(f"http://127.0.0.1:{port}/mcp")
    finally:
        process.terminate()
        await process.wait()
    found = by_rule(report)
    assert "echo" in report.tools
    assert report.server["name"] == "well-behaved"
    assert not {"http.origin", "http.host"} & set(found)
    assert not [rule for rule in found if rule.startswith("protocol.")]


GOOD = {
    "authorization_endpoint": "HERE/authorize", "token_endpoint": "HERE/token", "code_challenge_methods_supported": ["S256"],
    "registration_endpoint": "HERE/register", "response_types_supported": ["code"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "rules"),
    [
        ({}, set()),
        ({"issuer": "https://another.example"}, {"auth.issuer"}),
        ({"code_challenge_methods_supported": None}, {"auth.pkce"}),
        ({"code_challenge_methods_supported": ["plain", "S256"]}, {"auth.pkce"}),
        ({"grant_types_supported": ["password"]}, {"auth.grants"}),
        ({"response_types_supported": ["code", "id_token token"]}, {"auth.grants"}),
        ({"registration_endpoint": None}, {"auth.registration"}),
    ],
)
async def test_what_the_authorization_server_lacks_is_found(changes: dict[str, Any], rules: set[str]) -> None:
    def answer(path: str, headers: dict[str, str], body: bytes) -> Answer:
        here = f"http://{headers['host']}"
        if path == "/.well-known/oauth-protected-resource/mcp":
            return 200, {}, {"resource": f"{here}/mcp", "authorization_servers": [f"{here}/login"]}
        if path == "/.well-known/oauth-authorization-server/login":
            told = {
                name: said for name, said in {"issuer": f"{here}/login", **GOOD, **changes}.items() if said is not None
            }
            return 200, {}, json.dumps(told).replace("HERE", here).encode()
        return guarded(path, headers, body)

    async with served(answer) as (url, _):
        found = by_rule(await look(url, "good"))
    assert set(found) - {"http.plain"} == rules


async def test_an_authorization_server_at_the_same_place_without_metadata_is_found() -> None:
    def answer(path: str, headers: dict[str, str], body: bytes) -> Answer:
        if path == "/.well-known/oauth-protected-resource/mcp":
            here = f"http://{headers['host']}"
            return 200, {}, {"resource": f"{here}/mcp", "authorization_servers": [here]}
        return guarded(path, headers, body)

    async with served(answer) as (url, _):
        assert "auth.server" in by_rule(await look(url, "good"))


async def test_an_authorization_server_elsewhere_is_not_asked() -> None:
    async with served(careless) as (elsewhere, asked):

        def answer(path: str, headers: dict[str, str], body: bytes) -> Answer:
            if path == "/.well-known/oauth-protected-resource/mcp":
                return 200, {}, {"resource": f"http://{headers['host']}/mcp", "authorization_servers": [elsewhere]}
            return guarded(path, headers, body)

        async with served(answer) as (url, _):
            await look(url, "good")
    assert asked == []


async def test_metadata_of_an_authorization_server_elsewhere_is_looked_at() -> None:
    asked: list[str] = []

    async def get(url: str) -> bytes:
        asked.append(url)
        return json.dumps(PUBLIC).encode()

    async with served(guarded) as (url, _):
        report = await scan(source(url=url), TOOLS, lambda: "now", token="good", foreign=get)
    assert asked == ["https://login.example/.well-known/oauth-authorization-server"]
    found = {(one.rule, one.severity) for one in report.findings if one.where.startswith("https://login.example")}
    assert {("auth.pkce", "high"), ("auth.endpoint", "high")} <= found


async def test_metadata_elsewhere_is_asked_for_from_public_addresses_alone() -> None:
    def inner(path: str, headers: dict[str, str], body: bytes) -> Answer:
        return 200, {}, {"issuer": "x"}

    async with served(inner) as (at, seen):
        private = at.removesuffix("/mcp")

        def names_it(path: str, headers: dict[str, str], body: bytes) -> Answer:
            status, extra, told = guarded(path, headers, body)
            if isinstance(told, dict) and "authorization_servers" in told:
                others = [f"http://[::ffff:127.0.0.1]:{urlsplit(private).port}", "http://169.254.169.254/latest"]
                told = {**told, "authorization_servers": [private, *others, *(f"{private}/{n}" for n in range(20))]}
            return status, extra, told

        async with served(names_it) as (url, _):
            given = source(url=url)
            report = await scan(given, TOOLS, lambda: "now", token="good", foreign=Outbound(named="--allow").get)
            assert not seen
            notes = [one for one in report.findings if one.rule == "auth.server"]
            assert notes and all("--allow" in one.ask for one in notes)
            # A network that the operator names is asked, and gets no token; of many that are named, few are.
            allowed = Outbound([network("127.0.0.0/8")]).get
            report = await scan(given, TOOLS, lambda: "now", token="good", foreign=allowed)
    assert {one.rule for one in report.findings} >= {"auth.issuer", "auth.pkce"}
    assert 0 < len(seen) <= 10 and not any("authorization" in headers for _, _, headers in seen)
