"""Bytes before, instead of and inside CONNECT: nothing that has not proved who it is gets a subscription, a message or an answer."""
# ruff: noqa: F811 - the fixture `bus` is imported by name

from __future__ import annotations

import asyncio
import base64
import json
import socket
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remit_broker.core import nkey
from tests.support.bus_fixture import bus  # noqa: F401
from tests.support.nats import Bus, barrier
from tests.support.raw_nats import RawNats

AFTER = (
    b"SUB req.> 1\r\nSUB > 2\r\nPUB req.alice.new.remit.x.y 4\r\nmark\r\nPUB svc.agent.bob.brief 4\r\nmark\r\nPING\r\n"
)
FIRST: dict[str, bytes] = {
    "publish": b"PUB req.alice.new.remit.x.y 4\r\nmark\r\n",
    "publish with headers": b"HPUB req.alice.new.remit.x.y 12 16\r\nNATS/1.0\r\n\r\nmark\r\n",
    "subscribe": b"SUB > 1\r\n",
    "subscribe in a queue": b"SUB svc.agent.alice.> alice 1\r\n",
    "unsubscribe": b"UNSUB 1\r\n",
    "ping": b"PING\r\n",
    "pong": b"PONG\r\n",
    "greeting of a server": b'INFO {"server_id":"N","nonce":"x"}\r\n',
    "verbs of a route": b"RS+ BUS req.> 1\r\nRMSG BUS req.x 4\r\nmark\r\n",
    "verbs of a leaf node": b"LS+ req.>\r\nLMSG req.x 4\r\nmark\r\n",
    "verbs of a gateway": b"A+ BUS\r\nRS+ BUS req.>\r\n",
    "message": b"MSG req.x 1 4\r\nmark\r\n",
    "error": b"-ERR 'x'\r\n",
    "okay": b"+OK\r\n",
    "garbage": bytes(range(256)) * 4,
    "zero bytes": b"\0" * 512,
    "a line that never ends": b"SUB " + b"a" * 65536,
    "a CONNECT that never ends": b'CONNECT {"name":"' + b"a" * 65536 + b'"}\r\n',
    "empty lines": b"\r\n" * 64,
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64,
    "mqtt": b"\x10\x10\x00\x04MQTT\x04\x02\x00<\x00\x04test",
    "lower-case publish": b"pub req.alice.new.remit.x.y 4\r\nmark\r\n",
    "empty CONNECT": b"CONNECT {}\r\n",
    "CONNECT without options": b"CONNECT\r\n",
    "CONNECT with an array": b"CONNECT []\r\n",
    "CONNECT twice": b"CONNECT {}\r\nCONNECT {}\r\n",
    "CONNECT as a leaf node": b'CONNECT {"remote_account":"CORE","name":"x","cluster":"y"}\r\n',
    "CONNECT to another account": b'CONNECT {"account":"CORE","new_account":true,"name":"AAAAAAAAAAAAAAAAAAAA"}\r\n',
    "CONNECT with half its bytes": b'CONNECT {"name":',
}


@pytest.mark.parametrize("first", FIRST)
async def test_nothing_said_before_the_proof_is_acted_upon(bus: Bus, first: str) -> None:
    ear = await bus.broker.bus.subscribe(">")
    await barrier(bus.broker.bus)
    async with RawNats.open(*bus.address) as raw:
        await raw.send(FIRST[first] + b"\r\n" + AFTER)
        said = await raw.verdict()
    assert said != "in"
    assert "MSG " not in said
    assert "+OK" not in said
    await barrier(bus.broker.bus)
    assert ear.pending_msgs == 0


@pytest.mark.parametrize("first", ["publish", "subscribe", "ping", "garbage", "zero bytes", "empty CONNECT"])
async def test_a_good_proof_after_an_odd_beginning_opens_nothing_foreign(bus: Bus, first: str) -> None:
    """The server hangs up, or it took nothing from the beginning: either way what was said before stays without effect."""
    ear = await bus.broker.bus.subscribe(">")
    await barrier(bus.broker.bus)
    seed = bus.people.seeds["alice"]
    async with RawNats.open(*bus.address) as raw:
        await raw.send(FIRST[first])
        proof = base64.b64encode(nkey.sign("U", seed, raw.nonce.encode())).decode()
        await raw.send_connect({"name": "A" * 20, "nkey": nkey.public_of("U", seed), "sig": proof, "headers": True})
        assert await raw.verdict() != "in"
    await barrier(bus.broker.bus)
    assert ear.pending_msgs == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = (
    "nkey", "sig", "jwt", "name", "user", "pass", "auth_token", "account", "new_account", "verbose", "pedantic", "headers",
    "no_responders", "echo", "protocol", "lang", "version", "tls_required", "import", "export", "remote_account", "is_hub",
)  # fmt: skip


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(options=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=8), raw=st.none() | st.binary(max_size=200))
def fuzz(address: tuple[str, int], known: list[str], options: dict[str, Any], raw: bytes | None) -> None:
    """One connection: CONNECT of any shape, then everything it would like to do."""
    if "nkey" in options and len(options) % 2:
        options = {**options, "nkey": known[len(options) % len(known)]}  # real public keys, without their proof
    body = json.dumps(options).encode() if raw is None else raw.replace(b"\n", b" ")
    with socket.create_connection(address, timeout=8) as sock:
        said = b""
        try:
            sock.sendall(b"CONNECT " + body + b"\r\n" + AFTER)
            sock.shutdown(socket.SHUT_WR)
            while chunk := sock.recv(65536):
                said += chunk
        except OSError:
            pass
    lines = said.split(b"\r\n")[1:]  # after the greeting
    assert not any(line.startswith((b"PONG", b"MSG", b"HMSG", b"+OK")) for line in lines), said


async def test_no_shape_of_connect_gets_in_without_a_proof(bus: Bus) -> None:
    ear = await bus.broker.bus.subscribe(">")
    await barrier(bus.broker.bus)
    known = [nkey.public_of("U", seed) for seed in bus.people.seeds.values()] + [
        bus.keys.public("core"),
        bus.keys.public("bus"),
    ]
    await asyncio.to_thread(fuzz, bus.address, known)
    await barrier(bus.broker.bus)
    assert ear.pending_msgs == 0
    assert all(reason for _, reason in bus.told)
