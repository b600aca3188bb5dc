"""What MCP servers behind the broker are shown of the users they are called for, and what gets out of it: nothing."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from base64 import b64decode, urlsafe_b64decode
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest
import pytest_asyncio
from jwt import PyJWK

from remit_broker.adapters.errors import ConfigError
from remit_broker.adapters.secret_store import KeySealer, SecretStore
from remit_broker.config import settings
from remit_broker.edges.attach.source import HttpSource
from remit_broker.testing import running_broker
from remit_schemas.errors import Refusal
from remit_schemas.subjects import request as subject
from tests.support.attach_fixture import SERVERS, free_port, listens
from tests.support.mcp_client import Front, front_of
from tests.support.oauth import claims_of
from tests.support.raw import RawAgent

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

SECRET = "sk-live-Aq7-not-for-anybody"
KINDS: dict[str, dict[str, Any]] = {
    "own": {"kind": "secret"},
    "keyed": {"kind": "secret", "header": "X-Api-Key", "scheme": ""},
    "shared": {"kind": "service"},
    "nothing": {"kind": "none"},
    "plain": {"kind": "grant"},
}


class Authority:
    """An authorization server: what it was asked, and what it answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[dict[str, str], dict[str, str]]] = []
        self.answer: dict[str, Any] | None = None
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in head.split("\r\n")[1:] if line)
        }
        body = await reader.readexactly(int(headers["content-length"]))
        form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        self.asked.append((headers, form))
        user = claims_of(form.get("subject_token") or form["assertion"])["sub"]
        told = self.answer or {
            "access_token": f"exchanged-for-{user}", "token_type": "Bearer", "expires_in": 300,
            "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
        }  # fmt: skip
        status = b"200 OK" if "access_token" in told else b"400 Bad Request"
        data = json.dumps(told).encode()
        writer.write(b"HTTP/1.1 %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (status, len(data), data))
        await writer.drain()
        writer.close()


class House:
    """A front with servers that are shown users in every way."""

    def __init__(self, front: Front, authority: Authority) -> None:
        self.front, self.authority = front, authority
        self.local = {"Authorization": f"Bearer {front.token}"}

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self.front.http.post(f"{self.front.url}{path}", json=body, headers=self.local)

    async def call(self, server: str, tool: str, user: str = "ann") -> Any:
        grant = (await self.front.lab.grant("caller", "mcp/**", user=user)).grant
        async with self.front.client(f"/mcp/{server}", token=grant) as client:
            return await client.call_tool(tool, {})

    async def seen(self, server: str, user: str = "ann") -> dict[str, str]:
        answer = await self.call(server, "seen", user)
        assert not answer.is_error, answer.content
        found: dict[str, str] = answer.structured_content
        return found.get("result", found)  # type: ignore[return-value]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    folder, authority, port = tmp_path_factory.mktemp("house"), Authority(), free_port()
    async with AsyncExitStack() as stack:
        listening = await asyncio.start_server(authority.serve, "127.0.0.1", 0)
        await stack.enter_async_context(listening)
        authority.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/token"
        (folder / "client.secret").write_text("client-secret\n")
        (folder / "client.secret").chmod(0o600)
        exchange = {
            "kind": "exchange", "token_endpoint": authority.url, "audience": "https://crm.example", "client_id": "remit",
            "secret_file": "client.secret",
        }  # fmt: skip
        strict = free_port()
        for at, how in ((port, ()), (strict, ("strict",))):
            process = await asyncio.create_subprocess_exec(
                sys.executable, str(SERVERS / "shown.py"), str(at), *how, stderr=asyncio.subprocess.DEVNULL
            )
            stack.push_async_callback(process.wait)
            stack.callback(process.terminate)
            await listens(at)
        vouched = {
            "kind": "assertion", "token_endpoint": authority.url, "authorization_server": "https://as.example",
            "resource": "https://mcp.example", "scope": "read", "client_id": "remit", "secret_file": "client.secret",
        }  # fmt: skip
        backends = {**KINDS, "crm": exchange, "vouched": vouched, "strict": {"kind": "secret"}}
        front = await stack.enter_async_context(front_of(folder, {"backends": backends}, servers=()))
        house = House(front, authority)
        await house.post("/api/secrets", server="strict", service=True, value="good-service")
        for name in backends:
            at = strict if name == "strict" else port
            await front.attach(name, HttpSource(f"http://127.0.0.1:{at}/mcp"), stack)
        await front.lab.agent("caller")
        yield house


async def test_each_user_calls_with_their_own_secret(house: House) -> None:
    for user, secret in (("ann", SECRET), ("ben", "another-secret-1")):
        assert (await house.post("/api/secrets", server="own", user=user, value=secret)).status_code == 200
    for user, secret in (("ann", SECRET), ("ben", "another-secret-1"), ("ann", SECRET)):
        assert await house.seen("own", user) == {"authorization": digest(f"Bearer {secret}")}
    # Whoever has none calls with nobody's, and is told what to do.
    no = await house.call("own", "seen", "carl")
    assert (
        no.is_error and "remit secrets set own --user carl" in no.content[0].text and SECRET not in no.content[0].text
    )
    await house.post("/api/secrets", server="own", user="ben", value="a-new-secret-2")
    assert await house.seen("own", "ben") == {"authorization": digest("Bearer a-new-secret-2")}
    assert (await house.post("/api/secrets/remove", server="own", user="ben")).status_code == 200
    assert (await house.call("own", "seen", "ben")).is_error
    assert (await house.post("/api/secrets/remove", server="own", user="ben")).status_code == 404


async def test_each_user_has_a_session_of_their_own(house: House) -> None:
    """At a server that lets nobody in without a token, and nobody into the session of another one; its tools are listed with the
    service's.
    """
    for user in ("ann", "ben"):
        await house.post("/api/secrets", server="strict", user=user, value=f"good-{user}")
    seen = await asyncio.gather(*(house.seen("strict", user) for user in ("ann", "ben", "ann", "ben")))
    assert seen == [{"authorization": digest(f"Bearer good-{user}")} for user in ("ann", "ben", "ann", "ben")]
    await house.post("/api/secrets", server="strict", user="carl", value="bad")
    no = await house.call("strict", "seen", "carl")
    assert no.is_error and "credentials.refused" in no.content[0].text and "reconnect needed" in no.content[0].text
    assert await house.seen("strict", "ann") == {"authorization": digest("Bearer good-ann")}


async def test_the_other_ways_of_being_shown(house: House) -> None:
    await house.post("/api/secrets", server="keyed", user="ann", value=SECRET)
    assert await house.seen("keyed") == {"x-api-key": digest(SECRET)}
    # A service account is used where it is named, and never stands in for a user.
    await house.post("/api/secrets", server="shared", service=True, value="service-secret")
    await house.post("/api/secrets", server="own", service=True, value="service-secret")
    for user in ("ann", "carl"):
        assert await house.seen("shared", user) == {"authorization": digest("Bearer service-secret")}
    assert (await house.call("own", "seen", "carl")).is_error
    assert await house.seen("nothing") == {}
    assert set(await house.seen("plain")) == {"authorization"}


async def test_a_token_is_exchanged_for_each_user_and_the_grant_is_its_subject(house: House) -> None:
    authority = house.authority
    for user in ("ann", "ben"):
        assert await house.seen("crm", user) == {"authorization": digest(f"Bearer exchanged-for-{user}")}
    headers, form = authority.asked[-1]
    assert form["audience"] == "https://crm.example" and form["subject_token_type"].endswith(":jwt")
    subject_ = claims_of(form["subject_token"])
    # No token that a client brought, but the grant of the very hop, for the very server.
    assert (subject_["sub"], subject_["aud"], subject_["act"]["sub"]) == ("ben", "crm", "caller")
    assert headers["authorization"].startswith("Basic ") and "client_secret" not in form
    for bad in ({"error": "invalid_grant", "error_description": form["subject_token"]}, {"access_token": "a b"},
                {"access_token": "x" * 9000, "token_type": "Bearer"}, {"access_token": "x", "token_type": "mac"}):  # fmt: skip
        authority.answer = bad
        no = await house.call("crm", "seen", "carl")
        assert no.is_error and "credentials.missing" in no.content[0].text and "eyJ" not in no.content[0].text
    authority.answer = None


async def test_an_assertion_names_its_user_its_client_and_its_authorization_server(house: House) -> None:
    for user in ("ann", "ben"):
        assert await house.seen("vouched", user) == {"authorization": digest(f"Bearer exchanged-for-{user}")}
    headers, form = house.authority.asked[-1]
    assert set(form) == {"grant_type", "assertion", "scope"} and headers["authorization"].startswith("Basic ")
    assert form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
    token = form["assertion"]
    header = json.loads(b64decode(token.partition(".")[0] + "=="))
    keys = (await house.front.http.get(f"{house.front.url}/.well-known/jwks.json")).json()["keys"]
    key = PyJWK(next(one for one in keys if one["kid"] == header["kid"]) | {"alg": "EdDSA"})
    assert header["typ"] == "oauth-id-jag+jwt"
    signed, _, mark = token.rpartition(".")
    key.key.verify(urlsafe_b64decode(mark + "=="), signed.encode())
    said = claims_of(token)
    assert said["exp"] - said["iat"] == 60 and len(said["jti"]) == 32
    assert {name: said[name] for name in said if name not in ("exp", "iat", "jti", "iss")} == {
        "sub": "ben", "aud": "https://as.example", "client_id": "remit", "resource": "https://mcp.example", "scope": "read",
    }  # fmt: skip
    # It is of use to that server alone: here it is nobody's token.
    raw = house.front.raw("/mcp", token)
    assert (await raw.post({"jsonrpc": "2.0", "id": 1, "method": "ping"})).status_code == 401


async def test_a_server_that_echoes_its_credential_tells_nobody(house: House) -> None:
    """In a result, in a name, in the midst of a text, in an error, in progress: and then in no record, log or export."""
    await house.post("/api/secrets", server="own", user="ann", value=SECRET)
    heard: list[str | None] = []
    grant = (await house.front.lab.grant("caller", "mcp/**", user="ann")).grant

    async def progress(done: float, total: float | None, message: str | None) -> None:
        heard.append(message)

    async with house.front.client("/mcp/own", token=grant) as client:
        said = [await client.call_tool("tells", {}), await client.call_tool("fails", {}, progress_callback=progress)]
    assert all(SECRET not in answer.model_dump_json() for answer in said) and "withheld" in said[0].model_dump_json()
    assert SECRET not in str(heard)
    txn = claims_of(grant)["txn"]
    assert SECRET not in json.dumps(await house.front.lab.records(txn))
    stored = b"".join(path.read_bytes() for path in (house.front.lab.folder / "data").rglob("*") if path.is_file())
    assert SECRET.encode() not in stored


async def test_nothing_gives_a_secret_back(house: House) -> None:
    await house.post("/api/secrets", server="own", user="ann", value=SECRET)
    listed = await house.front.http.get(f"{house.front.url}/api/secrets", headers=house.local)
    assert listed.status_code == 200 and SECRET not in listed.text
    assert ("own", "ann") in {(one["server"], one["user"]) for one in listed.json()["secrets"]}
    for bad in ("", " x", "a\nb", "ä", "x" * 9000):
        no = await house.post("/api/secrets", server="own", user="ann", value=bad)
        assert no.status_code == 400 and (len(bad) < 3 or bad not in no.text)
    for place in (
        {"server": "Own", "user": "a"},
        {"server": "own"},
        {"server": "own", "user": "a", "service": True},
        {"server": "own", "user": "x" * 300},
    ):
        assert (await house.post("/api/secrets", value="secret-x", **place)).status_code == 400, place
    assert (await house.front.http.post(f"{house.front.url}/api/secrets", json={})).status_code == 401


async def test_a_server_gets_no_credential_but_for_its_own_open_hop(house: House) -> None:
    """The service as a server without the worker could ask it: with another's grant, a root grant, one that has ended, and none."""
    await house.post("/api/secrets", server="thief", user="ann", value=SECRET)
    lab = house.front.lab
    await lab.agent("thief", kind="mcp")
    thief = await RawAgent(lab, "thief", "mcp").connect()
    try:
        root = (await lab.grant("caller", "mcp/**", user="ann")).grant
        async with house.front.client("/mcp/own", token=root) as client:
            await client.call_tool("seen", {})
        await lab.broker.caught_up()
        records = await lab.broker.index.chain("default", claims_of(root)["txn"])
        ended = next(entry["grant"] for entry in records if entry["record"]["kind"] == "hop.opened")
        for grant in (root, ended, ended[:-4] + "AAAA"):
            inbox = thief.inbox()
            answers = await thief.nc.subscribe(inbox)
            body = json.dumps({"v": 1, "grant": grant}).encode()
            await thief.nc.publish(subject("thief", "new", "remit", "credentials", "get"), body, reply=inbox)
            frame = json.loads((await answers.next_msg(timeout=5)).data)
            assert frame["frame"] == "error" and SECRET not in str(frame), grant[:20]
            assert frame["error"]["code"].startswith("GRANT_"), frame
    finally:
        await thief.close()


async def test_a_secret_is_its_users_alone(house: House) -> None:
    """Sealed for its place: moved to another user's it is none; and another key opens nothing."""
    await house.post("/api/secrets", server="own", user="ann", value=SECRET)
    js = house.front.lab.broker.nats.core.jetstream()
    kv = await js.key_value("secrets")
    places = [f"default.own.{hashlib.sha256(user.encode()).hexdigest()}" for user in ("ann", "mallory")]
    value = (await kv.get(places[0])).value
    assert value is not None and SECRET.encode() not in value
    await kv.put(places[1], value)
    no = await house.call("own", "seen", "mallory")
    assert no.is_error and SECRET not in no.content[0].text
    await kv.purge(places[1])
    other = SecretStore(KeySealer(b"x" * 32))
    await other.start(js, 1)
    with pytest.raises(Refusal) as caught:
        await other.get("default", "own", "ann")
    assert caught.value.body.rule == "secrets.sealed"


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("own", {"header": "Host"}), ("own", {"header": "X\r\nA"}), ("own", {"kind": "exchange"}), ("Own", {}),
        ("own", {"kind": "secret", "token_endpoint": "https://a.example/t"}), ("own", {"scheme": "B\n"}),
        ("own", {"kind": "exchange", "token_endpoint": "http://a.example/t"}), ("own", {"kind": "passthrough"}),
        ("own", {"value": "x"}),
    ],
)  # fmt: skip
async def test_a_table_that_cannot_be_meant_is_named(tmp_path: Path, name: str, table: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="backends"):
        settings(tmp_path / "remit.toml", {"backends": {name: table}})


async def test_a_user_sets_secrets_for_nobody_else(tmp_path: Path) -> None:
    users = {"ann": {}, "olga": {"roles": ["boss"]}}
    config = {
        "http": {"port": 0, "auth": "issuer"},
        "development": {"issuer": True, "users": users, "operators": {"operator": ["role:boss"]}},
    }
    async with (
        running_broker(tmp_path, config) as lab,
        httpx.AsyncClient(base_url=lab.broker.http, trust_env=False) as http,
    ):

        async def post(who: str, path: str = "/api/secrets", **body: Any) -> int:
            form = {"grant_type": "password", "username": who, "client_secret": lab.broker.keys.local_token}
            token = (await http.post("/development/token", data=form)).json()["access_token"]
            return (await http.post(path, json=body, headers={"Authorization": f"Bearer {token}"})).status_code

        assert await post("ann", server="own", value="secret-of-ann") == 200
        assert await post("ann", server="own", user="ann", value="secret-of-ann") == 200
        others: list[dict[str, Any]] = [{"user": "olga"}, {"service": True}]
        for body in others:
            assert await post("ann", server="own", value="secret-x", **body) == 403
            assert await post("ann", "/api/secrets/remove", server="own", **body) == 403
            assert await post("olga", server="own", value="secret-x", **body) == 200
        assert await post("olga", server="own", user="ben", value="secret-x") == 200
        assert (await lab.broker.secrets.get("default", "own", "ann")).value == "secret-of-ann"  # type: ignore[union-attr]
