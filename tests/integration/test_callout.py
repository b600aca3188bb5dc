"""Who gets in: the real NATS server asks the real callout, and clients write the protocol by hand where a library is too polite."""
# ruff: noqa: F811 - the fixture `bus` is imported by name

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from collections.abc import Callable
from typing import Any

import nats
import pytest

from remit_broker.adapters.keyfiles import new_user_seed
from remit_broker.core import nats_jwt, nkey
from remit_broker.core.registry import Principal
from remit_broker.edges.callout import Callout, CalloutKeys
from tests.support.bus_fixture import bus  # noqa: F401
from tests.support.nats import Bus, SystemClock, connection_name
from tests.support.raw_nats import RawNats

NAME = "A" * 20


def signed(seed: str, nonce: str) -> str:
    return base64.urlsafe_b64encode(nkey.sign("U", seed, nonce.encode())).decode().rstrip("=")


def connect_options(seed: str, nonce: str, **changes: Any) -> dict[str, Any]:
    """What a well-behaved client sends, with ``changes``; None takes a field away."""
    options = {
        "verbose": False, "pedantic": False, "lang": "test", "version": "1", "protocol": 1, "headers": True,
        "name": NAME, "nkey": nkey.public_of("U", seed), "sig": signed(seed, nonce), **changes,
    }  # fmt: skip
    return {key: value for key, value in options.items() if value is not None}


async def attempt(bus: Bus, **changes: Any) -> str:
    """Connect as alice with ``changes``; ``in`` or what the server said before it closed."""
    async with RawNats.open(*bus.address) as raw:
        await raw.send_connect(connect_options(bus.people.seeds["alice"], raw.nonce, **changes))
        return await raw.verdict()


async def test_a_registered_nkey_gets_in_as_itself(bus: Bus) -> None:
    assert await attempt(bus) == "in"
    assert bus.told[-1] == ("alice", "")


async def test_the_user_lives_in_the_agents_account_under_its_own_name(bus: Bus) -> None:
    await bus.client("alice", NAME)
    found = json.loads((await bus.broker.sys.request("$SYS.REQ.SERVER.PING.CONNZ", b'{"auth":true}', timeout=5)).data)
    who = [(one["account"], one["authorized_user"]) for one in found["data"]["connections"] if one.get("name") == NAME]
    assert who == [("BUS", "alice")]


@pytest.mark.parametrize("alphabet", ["standard", "url", "padded"])
async def test_a_signature_may_come_in_either_base64(bus: Bus, alphabet: str) -> None:
    seed = bus.people.seeds["alice"]
    async with RawNats.open(*bus.address) as raw:
        data = nkey.sign("U", seed, raw.nonce.encode())
        text = (base64.b64encode(data) if alphabet == "standard" else base64.urlsafe_b64encode(data)).decode()
        await raw.send_connect(connect_options(seed, raw.nonce, sig=text if alphabet == "padded" else text.rstrip("=")))
        assert await raw.verdict() == "in"


STRANGER = new_user_seed()
REFUSED: dict[str, dict[str, Any]] = {
    "no nkey": {"nkey": None, "sig": None},
    "no signature": {"sig": None},
    "no key but a signature": {"nkey": None},
    "empty signature": {"sig": ""},
    "signature of another length": {"sig": "AAAA"},
    "signature that is not base64": {"sig": "*" * 86},
    "all-zero signature": {"sig": "A" * 86},
    "name and password": {"nkey": None, "sig": None, "user": "alice", "pass": "alice"},
    "token": {"nkey": None, "sig": None, "auth_token": "alice"},
    "empty connection name": {"name": ""},
    "no connection name": {"name": None},
    "short connection name": {"name": "A" * 15},
    "long connection name": {"name": "A" * 65},
    "wildcard in the connection name": {"name": "A" * 19 + "*"},
    "tail wildcard as connection name": {"name": ">"},
    "tail wildcard at the end of a connection name": {"name": "A" * 16 + ".>"},
    "dot in the connection name": {"name": "A" * 10 + "." + "A" * 10},
    "space in the connection name": {"name": "A" * 16 + " alice"},
    "line break in the connection name": {"name": "A" * 16 + "\n"},
    "look-alike in the connection name": {"name": "\u0410" * 20},
    "braces of a template in the connection name": {"name": "{{name()}}" + "A" * 10},
    "public key of an account": {"nkey": nkey.public_text("A", bytes(range(32)))},
    "nkey in lower case": {"nkey": "u" * 56},
    "jwt of its own making": {"jwt": "e30.e30.AA", "nkey": None},
}


@pytest.mark.parametrize("what", REFUSED)
async def test_what_proves_nothing_is_refused(bus: Bus, what: str) -> None:
    said = await attempt(bus, **REFUSED[what])
    assert said != "in"
    assert "-ERR" in said
    assert ("alice", "") not in bus.told


@pytest.mark.parametrize("changes", [{"nkey": 7}, {"name": ["A" * 20]}, {"sig": {}}])
async def test_fields_of_another_type_end_the_connection(bus: Bus, changes: dict[str, Any]) -> None:
    assert await attempt(bus, **changes) != "in"
    assert bus.told == []


async def test_an_unknown_nkey_with_a_good_signature_is_refused(bus: Bus) -> None:
    async with RawNats.open(*bus.address) as raw:
        await raw.send_connect(connect_options(STRANGER, raw.nonce))
        assert "Authorization Violation" in await raw.verdict()
    assert bus.told[-1] == (nkey.public_of("U", STRANGER), "an unknown nkey")


async def test_a_signature_by_another_registered_key_is_refused(bus: Bus) -> None:
    async with RawNats.open(*bus.address) as raw:
        options = connect_options(bus.people.seeds["alice"], raw.nonce, sig=signed(bus.people.seeds["bob"], raw.nonce))
        await raw.send_connect(options)
        assert "Authorization Violation" in await raw.verdict()
    assert "signature" in bus.told[-1][1]


async def test_a_recorded_proof_cannot_be_replayed(bus: Bus) -> None:
    seed = bus.people.seeds["alice"]
    async with RawNats.open(*bus.address) as first:
        recorded = connect_options(seed, first.nonce)
        await first.send_connect(recorded)
        assert await first.verdict() == "in"
    async with RawNats.open(*bus.address) as second:
        assert second.nonce != first.nonce
        await second.send_connect(recorded)
        assert "Authorization Violation" in await second.verdict()


async def test_a_removed_agent_gets_in_no_more(bus: Bus) -> None:
    assert await attempt(bus) == "in"
    bus.people.forget("alice")
    assert "Authorization Violation" in await attempt(bus)


async def test_an_agent_does_not_become_a_broker_user_by_naming_its_key(bus: Bus) -> None:
    for user in ("core", "bus", "auth", "sys"):
        async with RawNats.open(*bus.address) as raw:
            proof = signed(bus.people.seeds["alice"], raw.nonce)
            await raw.send_connect(
                connect_options(bus.people.seeds["alice"], raw.nonce, nkey=bus.keys.public(user), sig=proof)
            )
            assert "-ERR" in await raw.verdict()


@pytest.mark.parametrize("fault", [RuntimeError("boom"), KeyError("x"), RecursionError(), MemoryError()])
async def test_a_fault_while_looking_up_refuses_and_the_next_one_is_served(bus: Bus, fault: Exception) -> None:
    whole = bus.people.by_nkey

    def broken(_: str) -> Principal | None:
        raise fault

    bus.people.by_nkey = broken  # type: ignore[method-assign,assignment]
    assert "Authorization Violation" in await attempt(bus)
    assert bus.told == [(nkey.public_of("U", bus.people.seeds["alice"]), f"fault: {type(fault).__name__}")]
    bus.people.by_nkey = whole  # type: ignore[method-assign]
    assert await attempt(bus) == "in"


@pytest.mark.parametrize(
    "changes",
    [
        {"tenant": "other"}, {"name": "remit"}, {"name": "new"}, {"name": "*"}, {"name": "a.b"}, {"name": ">"},
        {"name": "Alice"}, {"name": ""}, {"kind": "operator"}, {"nkey": "UABC"},
    ],
)  # fmt: skip
async def test_a_registration_that_makes_no_sense_refuses(bus: Bus, changes: dict[str, str]) -> None:
    public = nkey.public_of("U", bus.people.seeds["alice"])
    odd = Principal(**{"name": "alice", "kind": "agent", "nkey": public, **changes})  # type: ignore[arg-type]
    bus.people.by_nkey = lambda _: odd  # type: ignore[method-assign,assignment]
    assert "Authorization Violation" in await attempt(bus)


async def test_nobody_gets_in_while_the_callout_is_down(bus: Bus) -> None:
    await bus.callout.stop()
    assert await attempt(bus) != "in"
    with pytest.raises((nats.errors.Error, TimeoutError)):  # which one depends on whose patience ends first
        await bus.client("alice")
    await bus.callout.start()
    assert await attempt(bus) == "in"


async def test_two_callouts_share_the_work(bus: Bus) -> None:
    seeds = CalloutKeys(issuer=bus.keys.seed("issuer"), xkey=bus.keys.seed("xkey"))
    second = Callout(bus.broker.auth, seeds, bus.people, SystemClock())
    await second.start()
    assert [await attempt(bus) for _ in range(4)] == ["in"] * 4
    await bus.callout.stop()
    assert [await attempt(bus) for _ in range(4)] == ["in"] * 4


async def test_a_crowd_that_connects_at_once_is_all_judged(bus: Bus) -> None:
    seen = await asyncio.gather(*(attempt(bus, **({} if index % 2 else {"sig": "AAAA"})) for index in range(60)))
    assert [one == "in" for one in seen] == [bool(index % 2) for index in range(60)]


# What the callout itself refuses to answer: these bytes never came from a server.


def sealed_request(bus: Bus, forge: Callable[[str], str] = str, **changes: Any) -> tuple[bytes, str]:
    """A request as a NATS server makes it, from a server key of the test's own."""
    server, box = nkey.seed_text("N", secrets.token_bytes(32)), nkey.seed_text("X", secrets.token_bytes(32))
    nonce, seed = "nonce", bus.people.seeds["alice"]
    claims: dict[str, Any] = {
        "aud": nats_jwt.REQUEST_AUDIENCE, "sub": nkey.public_of("U", STRANGER),
        "nats": {
            "type": "authorization_request", "version": 2, "user_nkey": nkey.public_of("U", STRANGER),
            "server_id": {"id": nkey.public_of("N", server), "name": "n", "host": "h", "xkey": nkey.public_of("X", box)},
            "client_info": {"nonce": nonce},
            "connect_opts": {"nkey": nkey.public_of("U", seed), "sig": signed(seed, nonce), "name": NAME},
        },
    }  # fmt: skip
    for path, value in changes.items():
        at, *keys = claims, *path.split("__")
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value
    token = forge(nats_jwt.encode(claims, "N", server, SystemClock().now()))
    data = nkey.seal(box, bus.keys.public("xkey"), token.encode(), secrets.token_bytes(24))
    return data, nkey.public_of("X", box)


async def test_a_genuine_request_gets_an_answer_that_only_its_server_opens(bus: Bus) -> None:
    data, sender = sealed_request(bus)
    answer = bus.callout.answer(data, sender)
    assert answer is not None
    with pytest.raises(nkey.BadKey):
        nkey.open_sealed(nkey.seed_text("X", secrets.token_bytes(32)), bus.keys.public("xkey"), answer)


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "nats-authorization-response"}, {"aud": ["nats-authorization-request"]}, {"exp": 1}, {"exp": "never"},
        {"nats__type": "user"}, {"nats__server_id__id": nkey.public_text("N", bytes(32))}, {"nats__server_id": None},
        {"nats__user_nkey": "alice"}, {"nats__user_nkey": nkey.public_text("A", bytes(32))}, {"nats": []},
        {"nats__server_id__xkey": nkey.public_text("X", bytes(32))}, {"nats__connect_opts": "x"}, {"nats__client_info": 1},
        {"nats__connect_opts__nkey": {}}, {"nats__client_info__nonce": 3},
    ],
)  # fmt: skip
async def test_a_request_that_no_server_would_make_gets_no_answer(bus: Bus, changes: dict[str, Any]) -> None:
    assert bus.callout.answer(*sealed_request(bus, **changes)) is None
    assert bus.told[-1][1].startswith("not a request of a NATS server")


async def test_a_request_without_a_nonce_is_refused(bus: Bus) -> None:
    signature = signed(bus.people.seeds["alice"], "")
    data, sender = sealed_request(bus, nats__client_info__nonce="", nats__connect_opts__sig=signature)
    assert bus.callout.answer(data, sender) is not None
    assert bus.told[-1][1] == "the server sent no nonce"


async def test_a_request_that_is_not_sealed_gets_no_answer(bus: Bus) -> None:
    data, sender = sealed_request(bus)
    token = nkey.open_sealed(bus.keys.seed("xkey"), sender, data)
    for body, who in (
        (token, ""),
        (token, sender),
        (data, ""),
        (data[:-1], sender),
        (b"", sender),
        (b"xkv1", sender),
        (data, "XNO"),
    ):
        assert bus.callout.answer(body, who) is None


def forged(token: str, alg: str, signature: str) -> str:
    """``token`` under another algorithm's name, with another signature (``same`` keeps either)."""
    head, body, own = token.split(".")
    if alg != "same":
        head = base64.urlsafe_b64encode(json.dumps({"typ": "JWT", "alg": alg}).encode()).decode().rstrip("=")
    return f"{head}.{body}.{own if signature == 'same' else signature}"


@pytest.mark.parametrize("alg", ["same", "none", "Ed25519", "EdDSA", "ED25519-NKEY"])
@pytest.mark.parametrize("signature", ["same", "", "A" * 86])
async def test_a_request_with_another_algorithm_or_signature_gets_no_answer(bus: Bus, alg: str, signature: str) -> None:
    answer = bus.callout.answer(*sealed_request(bus, lambda token: forged(token, alg, signature)))
    assert (answer is not None) == (alg == signature == "same")


async def test_an_agent_with_the_name_of_a_connection_of_its_own_choice_gets_that_inbox_only(bus: Bus) -> None:
    name = connection_name()
    alice = await bus.client("alice", name)
    await alice.nc.subscribe(f"_INBOX_alice.{name}.>")
    assert await alice.settled() == []
