"""What a raw NATS client with valid credentials cannot do. Every attempt is seen refused by the server itself, and nobody hears it."""
# ruff: noqa: F811 - the fixture `bus` is imported by name

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client
from nats.aio.subscription import Subscription

from remit_broker.adapters import nats_config
from remit_broker.adapters.nats_config import MAX_CONNECTIONS, MAX_SUBSCRIPTIONS
from remit_broker.adapters.nats_connect import connect
from remit_broker.core.bus_permissions import NEVER
from remit_schemas import subjects
from tests.support.bus_fixture import bus  # noqa: F401
from tests.support.nats import Bus, barrier, connection_name, running_bus

TXN, HOP = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
MARK = b"from-the-attacker"
ALICE, BOB = "A" * 20, "B" * 20
"""Names of connections."""

FOREIGN = [
    subjects.request("bob", "new", "agent", "bob", "brief"),
    subjects.service("agent", "bob", "brief"),
    subjects.service("agent", "alice", "brief"),
    subjects.service("mcp", "files", "read"),
    subjects.reply("bob", "r1", TXN, HOP),
    subjects.control("bob", "r1", TXN, HOP),
    f"ledger.default.{TXN}",
    "$JS.API.STREAM.LIST", "$JS.API.STREAM.PURGE.ledger", "$JS.API.INFO", "$JS.ACK.ledger.c.1.1.1.1.1", "$JS.FC.x",
    "$SYS.REQ.SERVER.PING", "$SYS.REQ.SERVER.PING.VARZ", "$SYS.REQ.USER.AUTH", "$SYS.REQ.USER.INFO", "$SYS.REQ.ACCOUNT.BUS.CONNZ",
    "$SYS.ACCOUNT.BUS.CONNECT", "$SYS._INBOX.x.y", "$KV.registry.principal.alice", "$O.objects.C.x", "$MQTT.msgs.x", "$NRG.x",
    "$SRV.PING", "_R_.x.y", "_INBOX.x", f"_INBOX_bob.{BOB}.x", f"_INBOX_alice.{ALICE}.x", "_INBOX_remit_bus.x.y",
    "req", "req.alice", "req.*.new.agent.bob.brief", "req.>", ">", "*", "reply.anything", "REQ.alice.new.agent.bob.brief",
]  # fmt: skip
TOOLS_PUBLISH = [
    subjects.request("files", "new", "agent", "bob", "brief"),
    subjects.request("files", TXN, "remit", "attach", "attach"),
    subjects.control("files", "r1", TXN, HOP),
    subjects.request("alice", "new", "remit", "attach", "attach"),
    subjects.reply("alice", "r1", TXN, HOP),
    subjects.service("mcp", "files", "read"),
    "$JS.API.INFO",
    "$SYS.REQ.SERVER.PING",
    f"ledger.default.{TXN}",
]
LISTENING = [
    ("svc.agent.bob.>", ""), ("svc.agent.bob.>", "bob"), ("svc.agent.bob.>", "alice"), ("svc.mcp.files.>", "files"),
    ("svc.agent.alice.>", ""), ("svc.agent.alice.brief", ""), ("svc.agent.alice.>", "other"), ("svc.agent.alice.>", "*"),
    ("svc.agent.alice.>", ">"), ("svc.agent.alice.>", "alice.>"), ("svc.agent.alice.>", "ALICE"), ("svc.agent.alice.brief", "bob"),
    ("svc.agent.*.>", "alice"), ("svc.*.alice.>", "alice"), ("svc.>", "alice"), (">", "alice"), ("*", "alice"),
    ("svc.>", ""), ("req.>", ""), ("req.alice.>", ""), ("req.*.*.*.*.*", ""), ("req.bob.>", "broker"), ("req.>", "broker"),
    ("res.>", ""), ("res.alice.>", ""), ("ctl.>", ""), ("ctl.alice.>", "alice"), ("ledger.>", ""),
    (">", ""), ("*", ""), ("*.>", ""), ("*.*", ""), (f"_INBOX_bob.{BOB}.>", ""), ("_INBOX_bob.>", ""), ("_INBOX.>", ""),
    ("_INBOX_alice.>", ""), ("_INBOX_alice.*.>", ""), ("_INBOX_alice.*.x", ""), (f"*.{ALICE}.>", ""), (f"_INBOX_alice.{ALICE}", ""),
    ("_INBOX_alice.CCCCCCCCCCCCCCCCCCCC.>", ""), ("_INBOX_remit_bus.>", ""),
    ("$SYS.>", ""), ("$SYS.REQ.USER.AUTH", "callout"), ("$SYS.ACCOUNT.>", ""), ("$JS.>", ""), ("$JS.API.>", ""), ("$JS.EVENT.>", ""),
    ("$KV.>", ""), ("$KV.registry.>", ""), ("$O.>", ""), ("$MQTT.>", ""), ("$NRG.>", ""), ("$SRV.>", ""),
]  # fmt: skip


async def observe(bus: Bus) -> dict[str, Subscription]:
    """Everything that anybody could hear, in every account that has something to hear."""
    await bus.broker.core.jetstream().add_stream(name="ledger", subjects=["ledger.>"])
    ears: dict[str, Subscription] = {}
    for account in ("core", "bus", "sys"):
        nc: Client = getattr(bus.broker, account)
        ears[account] = await nc.subscribe(">")
        await barrier(nc)
    return ears


async def heard(bus: Bus, ears: dict[str, Subscription]) -> list[str]:
    """Subjects of messages that carry the mark, after everything already sent has been delivered."""
    found: list[str] = []
    for account, ear in ears.items():
        await barrier(getattr(bus.broker, account))
        while ear.pending_msgs:
            message = await ear.next_msg(1)
            if MARK in message.data or MARK in str(message.headers).encode():
                found.append(f"{account}:{message.subject}")
    return found


def lower(*texts: str) -> list[str]:
    """As nats-py reports them: it writes every error in lower case."""
    return [text.lower() for text in texts]


def refusals(errors: list[str], verb: str) -> list[str]:
    """The subjects whose use the server says it refused, in lower case."""
    return [
        match[1] for text in errors if (match := re.search(rf'(?i)permissions violation for {verb} to "([^"]*)"', text))
    ]


async def test_an_agent_publishes_nowhere_but_as_itself(bus: Bus) -> None:
    ears = await observe(bus)
    alice = await bus.client("alice", ALICE)
    bob = await bus.client("bob", BOB)
    inbox = await bob.nc.subscribe(f"{bob.inbox}.>")
    service = await bob.nc.subscribe("svc.agent.bob.>", "bob")
    await bob.settled()
    for subject in FOREIGN:
        await alice.nc.publish(subject, MARK)
        await alice.nc.publish(subject, MARK, headers={"Nats-Msg-Id": "1", "Remit-Caller": "bob"})
        await alice.nc.publish(subject, MARK, reply=f"{alice.inbox}.r")
    assert refusals(await alice.settled(), "publish") == lower(*(subject for subject in FOREIGN for _ in range(3)))
    assert await heard(bus, ears) == []
    await bob.settled()
    assert (inbox.pending_msgs, service.pending_msgs) == (0, 0)
    assert (await bus.broker.core.jetstream().stream_info("ledger")).state.messages == 0


async def test_what_an_agent_may_publish_does_arrive(bus: Bus) -> None:
    ears = await observe(bus)
    alice = await bus.client("alice", ALICE)
    own = [
        subjects.request("alice", "new", "agent", "bob", "brief"),
        subjects.request("alice", TXN, "mcp", "files", "read"),
        subjects.request("alice", "new", "remit", "attach", "attach"),
        subjects.reply("alice", "r1", TXN, HOP),
        subjects.control("alice", "r1", TXN, HOP),
    ]
    for subject in own:
        await alice.nc.publish(subject, MARK)
    assert await alice.settled() == []
    assert await heard(bus, ears) == [f"bus:{subject}" for subject in own]


async def test_a_server_of_tools_only_answers_and_attaches(bus: Bus) -> None:
    ears = await observe(bus)
    files = await bus.client("files")
    for subject in TOOLS_PUBLISH:
        await files.nc.publish(subject, MARK)
    assert refusals(await files.settled(), "publish") == lower(*TOOLS_PUBLISH)
    assert await heard(bus, ears) == []
    allowed = [subjects.request("files", "new", "remit", "attach", "attach"), subjects.reply("files", "r1", TXN, HOP)]
    for subject in allowed:
        await files.nc.publish(subject, MARK)
    await files.settled()
    assert await heard(bus, ears) == [f"bus:{subject}" for subject in allowed]


@pytest.mark.parametrize(("subject", "queue"), LISTENING)
async def test_an_agent_listens_nowhere_but_in_its_queue_and_inbox(bus: Bus, subject: str, queue: str) -> None:
    alice = await bus.client("alice", ALICE)
    ear = await alice.nc.subscribe(subject, queue)
    assert len(refused := [text for text in await alice.settled() if "subscription to" in text]) == 1, refused
    assert f'"{subject}"'.lower() in refused[0]
    await say_everything(bus)
    await alice.settled()
    assert ear.pending_msgs == 0


async def say_everything(bus: Bus) -> None:
    """The broker and the other agents use every subject there is."""
    bob = await bus.client("bob", BOB)
    await bob.nc.publish(subjects.request("bob", "new", "agent", "alice", "brief"), b"secret")
    await bob.nc.publish(subjects.reply("bob", "r1", TXN, HOP), b"secret")
    await bob.nc.publish(subjects.control("bob", "r1", TXN, HOP), b"secret")
    await bob.settled()
    own = await bus.client("alice", "C" * 20)
    for subject in (
        subjects.request("alice", "new", "agent", "bob", "brief"),
        subjects.reply("alice", "r1", TXN, HOP),
        subjects.control("alice", "r1", TXN, HOP),
    ):
        await own.nc.publish(subject, b"secret")
    await own.settled()
    for subject in (
        subjects.service("agent", "alice", "brief"),
        subjects.service("agent", "bob", "brief"),
        subjects.service("mcp", "files", "read"),
        f"_INBOX_bob.{BOB}.x",
        f"_INBOX_alice.{'C' * 20}.x",
    ):
        await bus.broker.bus.publish(subject, b"secret")
    await barrier(bus.broker.bus)


async def test_a_plain_subscription_beside_the_queue_copies_nothing(bus: Bus) -> None:
    alice = await bus.client("alice", ALICE)
    queued = await alice.nc.subscribe("svc.agent.alice.>", "alice")
    plain = await alice.nc.subscribe("svc.agent.alice.>")
    assert len([text for text in await alice.settled() if 'subscription to "svc.agent.alice.>"' in text]) == 1
    for _ in range(5):
        await bus.broker.bus.publish(subjects.service("agent", "alice", "brief"), b"work")
    await barrier(bus.broker.bus)
    await alice.settled()
    assert (queued.pending_msgs, plain.pending_msgs) == (5, 0)


async def test_work_is_delivered_once_among_the_connections_of_one_agent(bus: Bus) -> None:
    crew = [await bus.client("alice") for _ in range(3)]
    ears = [await one.nc.subscribe("svc.agent.alice.>", "alice") for one in crew]
    for one in crew:
        assert await one.settled() == []
    for _ in range(30):
        await bus.broker.bus.publish(subjects.service("agent", "alice", "brief"), b"work")
    await barrier(bus.broker.bus)
    for one in crew:
        await one.settled()
    assert sum(ear.pending_msgs for ear in ears) == 30


async def test_two_connections_of_one_agent_cannot_read_each_others_inbox(bus: Bus) -> None:
    first, second = await bus.client("alice", ALICE), await bus.client("alice", BOB)
    own, foreign = await second.nc.subscribe(f"{second.inbox}.>"), await second.nc.subscribe(f"{first.inbox}.>")
    assert len(await second.settled()) == 1
    for inbox in (first.inbox, second.inbox):
        await bus.broker.bus.publish(f"{inbox}.x", b"answer")
    await barrier(bus.broker.bus)
    await second.settled()
    assert (own.pending_msgs, foreign.pending_msgs) == (1, 0)


async def test_equal_names_of_connections_of_two_agents_share_no_inbox(bus: Bus) -> None:
    alice, bob = await bus.client("alice", ALICE), await bus.client("bob", ALICE)
    foreign = await bob.nc.subscribe(f"{alice.inbox}.>")
    assert len(await bob.settled()) == 1
    await bus.broker.bus.publish(f"{alice.inbox}.x", b"answer")
    await barrier(bus.broker.bus)
    await bob.settled()
    assert foreign.pending_msgs == 0


@pytest.mark.parametrize(
    "target",
    [
        subjects.service("agent", "bob", "brief"),
        subjects.reply("bob", "r1", TXN, HOP),
        f"ledger.default.{TXN}",
        "$JS.API.STREAM.PURGE.ledger",
        f"_INBOX_bob.{BOB}.x",
        "trace.anywhere",
    ],
)
async def test_a_trace_destination_reaches_nobody_the_agent_may_not_reach(bus: Bus, target: str) -> None:
    ears = await observe(bus)
    alice = await bus.client("alice", ALICE)
    bob = await bus.client("bob", BOB)
    service = await bob.nc.subscribe("svc.agent.bob.>", "bob")
    inbox = await bob.nc.subscribe(f"{bob.inbox}.>")
    await bob.settled()
    for only in ("true", "false"):
        headers = {"Nats-Trace-Dest": target, "Nats-Trace-Only": only, "traceparent": f"00-{TXN}-{HOP}-01"}
        await alice.nc.publish(subjects.request("alice", "new", "agent", "bob", "brief"), MARK, headers=headers)
    errors = await alice.settled()
    assert any("violation" in text and target.lower() in text for text in errors), errors
    subjects_heard = [message.removeprefix("bus:") for message in await heard(bus, ears)]
    assert all(subject.startswith("req.alice.") for subject in subjects_heard)
    await bob.settled()
    assert (service.pending_msgs, inbox.pending_msgs) == (0, 0)


async def test_jetstream_answers_no_agent(bus: Bus) -> None:
    await observe(bus)
    alice = await bus.client("alice", ALICE)
    with pytest.raises(Exception):  # noqa: B017 - which error is the client library's choice
        await alice.nc.jetstream(timeout=0.2).account_info()
    assert any("$js.api.info" in text for text in await alice.settled())


async def test_too_many_subscriptions_end_the_connection(bus: Bus) -> None:
    closed = asyncio.Event()

    async def on_closed() -> None:
        closed.set()

    files = await bus.client("files", closed_cb=on_closed)
    for index in range(MAX_SUBSCRIPTIONS + 1):
        await files.nc.subscribe(f"{files.inbox}.{index}")
    await asyncio.wait_for(closed.wait(), 10)
    assert "maximum subscriptions exceeded" in str(files.nc.last_error)


async def test_agents_cannot_use_up_the_brokers_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_config, "KEPT_CONNECTIONS", MAX_CONNECTIONS - 3)
    async with running_bus(tmp_path, {"alice": "agent"}) as bus:
        crowd = [await bus.client("alice"), await bus.client("alice")]  # the broker's own connection is the third
        with pytest.raises((nats.errors.Error, TimeoutError)):
            await bus.client("alice")
        assert all([await one.settled() == [] for one in crowd])
        again = await connect(bus.url, bus.keys, "core")
        await again.close()


async def test_the_brokers_own_users_are_confined_too(bus: Bus) -> None:
    """A confused broker cannot be made to speak as an agent, nor into the ledger or an API, from the agents' account."""
    said: list[str] = []

    async def keep(problem: Exception) -> None:
        said.append(str(problem))

    bus.broker.bus._error_cb = bus.broker.auth._error_cb = keep
    forbidden = [
        "req.alice.new.agent.bob.x",
        f"res.alice.r1.{TXN}.{HOP}",
        f"ctl.alice.r1.{TXN}.{HOP}",
        f"ledger.default.{TXN}",
        "$JS.API.INFO",
    ]
    for subject in forbidden:
        await bus.broker.bus.publish(subject, MARK)
    await barrier(bus.broker.bus)
    assert refusals(said, "publish") == lower(*forbidden)
    said.clear()
    for subject in ("req.alice.x", "$SYS.REQ.USER.AUTH", "$JS.API.INFO", "anything"):
        await bus.broker.auth.publish(subject, MARK)
    await barrier(bus.broker.auth)
    assert len(refusals(said, "publish")) == 4


def test_every_forbidden_prefix_is_denied_in_both_directions() -> None:
    assert {"$JS.>", "$SYS.>", "$KV.>", "$O.>", "_INBOX.>"} <= set(NEVER)


async def test_headers_that_name_another_caller_change_no_subject(bus: Bus) -> None:
    ears = await observe(bus)
    alice = await bus.client("alice", connection_name())
    subject = subjects.request("alice", "new", "agent", "bob", "brief")
    forged = {"Nats-Request-Info": '{"user":"bob"}', "Nats-Client-Info": "bob", "Remit-Caller": "bob"}
    await alice.nc.publish(subject, MARK, headers=forged)
    await alice.settled()
    assert await heard(bus, ears) == [f"bus:{subject}"]
