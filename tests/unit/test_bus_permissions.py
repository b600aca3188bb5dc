"""The permissions are made from the same names as the subjects: what one may say is what the other builds."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit_broker.adapters.nats_config import PublicKeys, ServerConfig, render, settings
from remit_broker.core.bus_permissions import permissions, publishes, subscribes
from remit_broker.core.registry import Principal
from remit_schemas import subjects
from remit_schemas.names import is_op, is_principal

NAMES = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True).filter(is_principal)
OPS = st.text(min_size=1, max_size=20).filter(is_op)
TXN, HOP, CONNECTION = "a" * 32, "b" * 16, "C" * 16


def matches(pattern: str, subject: str) -> bool:
    """NATS subject matching."""
    want, have = pattern.split("."), subject.split(".")
    for index, token in enumerate(want):
        if token == ">":
            return len(have) > index
        if index >= len(have) or token not in ("*", have[index]):
            return False
    return len(want) == len(have)


def may(patterns: tuple[str, ...], subject: str) -> bool:
    return any(matches(pattern.split(" ")[0], subject) for pattern in patterns)


@given(NAMES, NAMES, OPS)
def test_an_agent_may_say_every_subject_it_needs_and_none_of_another(me: str, other: str, op: str) -> None:
    mine = publishes("agent", me)
    for who in (me, other):
        said = [
            subjects.request(who, TXN, "agent", "x", op),
            subjects.reply(who, "r", TXN, HOP),
            subjects.control(who, "r", TXN, HOP),
        ]
        assert [may(mine, subject) for subject in said] == [who == me] * 3
    assert not may(mine, subjects.service("agent", me, op))


@given(NAMES, NAMES, OPS)
def test_an_agent_hears_its_own_work_in_its_queue(me: str, other: str, op: str) -> None:
    mine = subscribes("agent", me, CONNECTION)
    assert may(mine, subjects.service("agent", me, op))
    assert may(mine, subjects.service("agent", other, op)) == (me == other)
    assert not may(mine, subjects.service("mcp", me, op))
    assert mine[0].endswith(f" {me}")
    assert may(mine, f"{subjects.inbox_prefix(me, CONNECTION)}.x")
    assert not may(mine, f"{subjects.inbox_prefix(me, 'D' * 16)}.x")


@pytest.mark.parametrize("name", ["*", ">", "a.b", "a b", "", "A", "remit", "new", "a\n", "$JS"])
def test_a_name_that_could_hide_a_wildcard_gets_no_permissions(name: str) -> None:
    with pytest.raises(ValueError, match="wildcard"):
        permissions(Principal(name=name, kind="agent", nkey="U"), CONNECTION)


@pytest.mark.parametrize("connection", ["*", ">", "a" * 15, "a" * 65, "a" * 16 + ".b", "", "a" * 16 + "\n"])
def test_a_connection_that_could_hide_a_wildcard_gets_no_permissions(connection: str) -> None:
    with pytest.raises(ValueError, match="wildcard"):
        permissions(Principal(name="alice", kind="agent", nkey="U"), connection)


def test_nobody_may_answer_by_reply_subject() -> None:
    assert "resp" not in permissions(Principal(name="alice", kind="agent", nkey="U"), CONNECTION)


KEYS = PublicKeys(issuer="A", xkey="X", core="U1", bus="U2", auth="U3", sys="U4")


def test_a_path_cannot_add_a_setting() -> None:
    text = render(ServerConfig(keys=KEYS, store_dir='/tmp/a"\nport: 1\nno_auth_user: x\n"'))
    assert "\nno_auth_user" not in text
    assert "\nport: 1\n" not in text


def test_nobody_is_let_in_without_a_name_and_no_other_door_is_open() -> None:
    found = settings(ServerConfig(keys=KEYS, store_dir="/d"))
    assert {
        "no_auth_user",
        "http",
        "https",
        "http_port",
        "monitor_port",
        "websocket",
        "mqtt",
        "leafnodes",
        "gateway",
        "cluster",
    }.isdisjoint(found)
    assert found["host"] == "127.0.0.1"
    assert found["authorization"]["auth_callout"]["account"] == "AUTH"
    assert [account for account, value in found["accounts"].items() if "jetstream" in value] == ["CORE"]
    assert json.loads(json.dumps(found)) is not None
