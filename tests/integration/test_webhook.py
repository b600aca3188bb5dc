"""The webhook through a running broker: told at least once, signed, patient, and never sent where it may not go."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from remit_broker.adapters.errors import ConfigError
from remit_broker.adapters.mint import NOTICE
from remit_broker.adapters.outbound import MAX_ANSWER, Forbidden, Outbound
from remit_broker.config import load
from remit_broker.core.addresses import network
from remit_broker.testing import running_broker
from remit_schemas import jws
from remit_schemas.keys import KeySet
from tests.attacks.test_approvals import Office, office_on
from tests.support.raw import arena_on


class Hook:
    """An HTTP server that answers what it is told to, and keeps what it got."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[bytes] = []
        self._grew = asyncio.Condition()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        async with self._grew:
            self.got.append(({":": head[0], **headers}, body))
            self._grew.notify_all()
        answer = self.answers.pop(0) if self.answers else b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"
        writer.write(answer)
        try:
            await writer.drain()
        finally:
            writer.close()

    async def until(self, count: int) -> list[tuple[dict[str, str], bytes]]:
        async with asyncio.timeout(20), self._grew:
            await self._grew.wait_for(lambda: len(self.got) >= count)
        return self.got


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[Hook, str]]:
    hook = Hook()
    server = await asyncio.start_server(hook.serve, "127.0.0.1", 0)
    async with server:
        yield hook, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook?a=1"


@asynccontextmanager
async def telling(folder: Path, url: str, **more: Any) -> AsyncIterator[Office]:
    config = {"approvals": {"webhook": url, "webhook_allow": ["127.0.0.1/32"], **more}}
    async with running_broker(folder, config) as lab, arena_on(lab) as arena:
        yield await office_on(arena)


async def test_a_request_is_told_once_signed_and_without_arguments(tmp_path: Path) -> None:
    async with listening() as (hook, url), telling(tmp_path, url) as office:
        root = await office.root()
        asked = await office.asks(root, {"to": "a-special-word"})
        ((headers, body),) = await hook.until(1)
        told = json.loads(body)
        assert headers[":"] == "POST /hook?a=1 HTTP/1.1" and headers["remit-event"] == told["id"] == asked.approval
        assert (told["type"], told["resource"], told["user"]) == ("approval.requested", "mcp/mail/send", "ann")
        assert told["approval_url"] == asked.approval_url and b"a-special-word" not in body
        parts = jws.split(headers["remit-signature"])
        header = jws.parse_header(parts.header)
        keys = KeySet.from_jwks(office.lab.broker.keys.jwks())
        jws.check_signature(parts, header, keys.get(header.kid))
        said = json.loads(parts.payload)
        assert (header.typ, said["aud"], said["sha256"]) == (NOTICE, url, hashlib.sha256(body).hexdigest())
        other = await office.asks(root, {"to": "bob"})
        await hook.until(2)
        assert [json.loads(body)["id"] for _, body in hook.got] == [asked.approval, other.approval], "each once"


@pytest.mark.parametrize(
    "bad",
    [
        b"HTTP/1.1 500 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: {there}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        b"not http at all\r\n\r\n",
        b"",
    ],
    ids=["an error", "a redirect", "nonsense", "nothing"],
)  # fmt: skip
async def test_what_was_not_taken_is_told_again_and_redirects_are_not_followed(tmp_path: Path, bad: bytes) -> None:
    async with listening() as (elsewhere, there), listening() as (hook, url), telling(tmp_path, url) as office:
        hook.answers.append(bad.replace(b"{there}", there.encode()))
        asked = await office.asks(await office.root(), {"to": "ann"})
        got = await hook.until(2)
        assert {json.loads(body)["id"] for _, body in got} == {asked.approval}
        assert elsewhere.got == []


async def test_what_waits_is_told_after_a_restart(tmp_path: Path) -> None:
    async with listening() as (hook, url):
        async with telling(tmp_path, "http://127.0.0.1:9/closed") as office:
            asked = await office.asks(await office.root(), {"to": "ann"})
        async with running_broker(tmp_path, {"approvals": {"webhook": url, "webhook_allow": ["127.0.0.1"]}}):
            ((_, body),) = await hook.until(1)
    assert json.loads(body)["id"] == asked.approval


async def test_nobody_is_told_of_what_is_decided_already(tmp_path: Path) -> None:
    async with listening() as (hook, url):
        async with telling(tmp_path, "http://127.0.0.1:9/closed") as office:
            root = await office.root()
            decided, waits = await office.asks(root, {"n": 1}), await office.asks(root, {"n": 2})
            await office.says(decided.approval, "deny")
        async with running_broker(tmp_path, {"approvals": {"webhook": url, "webhook_allow": ["127.0.0.1"]}}) as lab:
            await hook.until(1)
            assert await lab.broker.index.untold(0) == [] or len(hook.got) == 1
    assert [json.loads(body)["id"] for _, body in hook.got] == [waits.approval]


async def test_a_webhook_of_this_machine_is_not_sent_to_unless_it_is_allowed(tmp_path: Path) -> None:
    async with listening() as (hook, url), telling(tmp_path, url, webhook_allow=[]) as office:
        faults: list[str] = []
        observer = office.lab.broker.observer
        seen = asyncio.Event()

        def fault(where: str, error: BaseException) -> None:
            if where == "webhook":
                faults.append(str(error))
                seen.set()

        observer.fault = fault  # type: ignore[method-assign]
        await office.asks(await office.root(), {"to": "ann"})
        await asyncio.wait_for(seen.wait(), 20)
        assert "is not public" in faults[0] and hook.got == []


async def test_the_log_does_not_know_the_path(tmp_path: Path) -> None:
    """Whoever knows the path of a chat's webhook may post to it: neither a message of the check nor a log has it."""
    file = tmp_path / "remit.toml"
    file.write_text('[approvals]\nwebhook = "https://user@chat.example/T0K3N"\n', encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(str(file))
    assert "T0K3N" not in str(caught.value) and "user@" not in str(caught.value)
    faults: list[str] = []
    async with telling(tmp_path, "http://127.0.0.1:9/T0K3N") as office:
        seen = asyncio.Event()

        def fault(where: str, error: BaseException) -> None:
            faults.append(str(error))
            seen.set()

        office.lab.broker.observer.fault = fault  # type: ignore[method-assign]
        await office.asks(await office.root(), {"to": "ann"})
        await asyncio.wait_for(seen.wait(), 20)
    assert "127.0.0.1 was not told" in faults[0] and "T0K3N" not in "".join(faults)


async def test_a_name_that_resolves_otherwise_later_changes_nothing() -> None:
    asked: list[str] = []

    async def rebinding(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    async with listening() as (hook, url):
        there = url.replace("127.0.0.1", "chat.example")
        assert await Outbound([network("127.0.0.1")], rebinding).post(there, b"{}", {"X-A": "b"}) == 204
        assert asked == ["chat.example"], "the name is resolved once, and the address is connected to"
        assert hook.got[0][0]["host"].startswith("chat.example:")
        with pytest.raises(Forbidden):
            await Outbound([network("127.0.0.1")], rebinding).post(there, b"{}", {})


async def test_an_answer_without_end_is_not_read_to_its_end() -> None:
    async with listening() as (hook, url):
        endless = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + b"x" * (4 * MAX_ANSWER)
        hook.answers.append(endless)
        assert await Outbound([network("127.0.0.1")]).post(url, b"{}", {}) == 200


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("webhook", "ftp://x/y"), ("webhook", "https://user:secret@chat.example/"), ("webhook", "chat.example"),
        ("webhook", "https://chät.example/"), ("webhook", "https://a..b/"), ("webhook", "https://-x.example/"),
        ("webhook", "https://exa mple/"), ("webhook", "https://" + "a" * 64 + ".example/"), ("webhook", "https://[::1%25eth0]/"),
        ("webhook_allow", ["10.0.0.1/8"]), ("webhook_allow", ["all"]), ("url", "x"),
    ],
)  # fmt: skip
def test_a_webhook_that_cannot_be_is_named(tmp_path: Path, key: str, value: Any) -> None:
    file = tmp_path / "remit.toml"
    file.write_text(f"[approvals]\n{key} = {json.dumps(value)}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=f"approvals.{key}"):
        load(str(file))
