"""Requests that are no requests: bombs, foreign reply subjects, lies in headers, and bytes that break a client library."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest
import pytest_asyncio

from remit_broker.hop.txn import Opened
from remit_schemas import subjects
from remit_schemas.envelope import Result
from remit_schemas.errors import ErrorBody
from remit_schemas.subjects import NEW
from tests.support.raw import Arena, RawAgent, error_of, skill, tool

pytestmark = pytest.mark.asyncio(loop_scope="module")

READ = "mcp/files/read"


class Stage:
    """Alice holds root grants, Bob is somebody to be impersonated, Files answers whatever reaches it."""

    def __init__(self, arena: Arena, alice: RawAgent, bob: RawAgent, files: RawAgent) -> None:
        self.arena, self.alice, self.bob, self.files = arena, alice, bob, files

    async def root(self, *scopes: str, **options: Any) -> Opened:
        return await self.arena.lab.grant("alice", *(scopes or ("mcp/**", "agent/**")), **options)

    async def raw(self, root: Opened, data: bytes, **options: Any) -> ErrorBody:
        """The error that ``data`` is answered with."""
        return error_of(await self.alice.ask(self.alice.subject(READ, root.txn), data, **options))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(arena: Arena) -> Stage:
    alice, bob = await arena.agent("alice"), await arena.agent("bob")
    files = await arena.agent("files", "mcp")
    files.handlers["read"] = lambda taken: taken.done("content")
    await files.serve(tool("read"))
    await bob.serve(skill("brief"))
    await alice.overhear()
    await bob.overhear()
    return Stage(arena, alice, bob, files)


def request(root: Opened, args: str = "{}", extra: str = "") -> bytes:
    """A request in which ``args`` is any text."""
    return f'{{"v":1,"grant":{json.dumps(root.grant)},"args":{args}{extra}}}'.encode("utf-8", "surrogatepass")


# JSON

BOMBS: dict[str, tuple[str, str, str]] = {
    "nested 100,000 deep": ('{"a":' + "[" * 100_000 + "]" * 100_000 + "}", "MALFORMED", "json.depth"),
    "nested 100,000 deep, never closed": ('{"a":' + "[" * 100_000, "MALFORMED", ""),
    "objects nested 65 deep": ('{"a":' * 65 + "1" + "}" * 65, "MALFORMED", "json.depth"),
    "over the cap": ('{"a":"' + "x" * 930_000 + '"}', "TOO_LARGE", "json.size"),
    "an integer of a million digits": ('{"a":' + "9" * 800_000 + "}", "MALFORMED", "json.number"),
    "an integer beyond 2^53": ('{"a":9007199254740993}', "MALFORMED", "json.number"),
    "NaN": ('{"a":NaN}', "MALFORMED", "json.number"),
    "Infinity": ('{"a":-Infinity}', "MALFORMED", "json.number"),
    "a float out of range": ('{"a":1e999}', "MALFORMED", "json.number"),
    "a name twice": ('{"path":"docs/a","path":"/etc/shadow"}', "MALFORMED", "json.duplicate"),
    "a name twice, once escaped": ('{"path":"docs/a","p\\u0061th":"/etc/shadow"}', "MALFORMED", "json.duplicate"),
    "a lone surrogate": ('{"a":"\\ud800"}', "", ""),
    "a lone surrogate in a name": ('{"\\udfff":1}', "", ""),
    "a lone surrogate, deep": ('{"a":[[{"b":"x\\udc00y"}]]}', "", ""),
    "arguments that are a list": ("[1]", "MALFORMED", "envelope.request"),
    "arguments that are null": ("null", "MALFORMED", "envelope.request"),
    "a control character in a string": ('{"a":"\x01"}', "MALFORMED", "json.syntax"),
    "a byte order mark": ("\ufeff{}", "MALFORMED", "json.syntax"),
    "something after the end": ("{}}{", "MALFORMED", "json.syntax"),
    "a comment": ("{/* */}", "MALFORMED", "json.syntax"),
}


@pytest.mark.parametrize("name", BOMBS)
async def test_a_bomb_is_refused_and_nothing_opens(stage: Stage, name: str) -> None:
    args, code, rule = BOMBS[name]
    root = await stage.root()
    body = await stage.raw(root, request(root, args))
    assert body.code in ((code,) if code else ("MALFORMED", "ARGUMENTS_INVALID")), body
    assert body.rule == rule if rule else body.rule
    await stage.arena.refused_before_opening(body, body.code, body.rule, root.txn)
    assert stage.files.work(root.txn) == []


BYTES: dict[str, bytes] = {
    "nothing": b"",
    "nonsense": b"\x00\x01\x02",
    "not UTF-8": b'{"v":1,"args":{"a":"\xff\xfe"}}',
    "an encoded surrogate": b'{"v":1,"args":{"a":"\xed\xa0\x80"}}',
    "UTF-16": '{"v":1}'.encode("utf-16"),
    "a list": b"[]",
    "a number": b"1",
    "an unknown field": b'{"v":1,"caller":"bob"}',
    "an unknown field with a lone surrogate": b'{"v":1,"\\ud800":"bob"}',
    "an unknown field of 800 kB": b'{"v":1,"' + b"x" * 800_000 + b'":1}',
    "another version": b'{"v":2}',
    "a version that is true": b'{"v":true}',
    "a negative deadline": b'{"v":1,"deadline":-1}',
    "a deadline in words": b'{"v":1,"deadline":"tomorrow"}',
    "a negative budget": b'{"v":1,"want":{"budget":{"usd_micros":-1,"tokens":0,"calls":1}}}',
    "a budget that is a float": b'{"v":1,"want":{"budget":{"usd_micros":0.5,"tokens":0,"calls":1}}}',
    "half a budget": b'{"v":1,"want":{"budget":{"calls":1}}}',
    "a depth of 17": b'{"v":1,"want":{"max_depth":17}}',
    "a lifetime of 0": b'{"v":1,"want":{"ttl_ms":0}}',
    "a key of 129 characters": b'{"v":1,"key":"' + b"k" * 129 + b'"}',
    "a key that is a number": b'{"v":1,"key":1}',
    "a trace that is too long": b'{"v":1,"trace":{"traceparent":"' + b"0" * 56 + b'"}}',
    "a key that is a lone surrogate": b'{"v":1,"key":"\\ud800"}',
    "a trace that is a lone surrogate": b'{"v":1,"trace":{"traceparent":"\\ud800"}}',
    "a grant that is a lone surrogate": b'{"v":1,"grant":"\\ud800"}',
    "an approval that is a lone surrogate": b'{"v":1,"approval":"\\ud800"}',
}


@pytest.mark.parametrize("name", BYTES)
async def test_bytes_that_are_no_request_are_answered_and_recorded(stage: Stage, name: str) -> None:
    root = await stage.root()
    body = await stage.raw(root, BYTES[name])
    await stage.arena.refused_before_opening(body, "MALFORMED", body.rule, root.txn)
    assert body.rule.startswith(("json.", "envelope."))
    assert len(body.message) < 2000


@pytest.mark.parametrize("field", ["key", "trace", "approval", "want"])
async def test_text_that_is_not_unicode_is_refused_beside_a_good_grant(stage: Stage, field: str) -> None:
    """Such text has no bytes to be recorded as: wherever it stands, the call is refused, with a record."""
    bad = {
        "key": '"\\ud800"',
        "trace": '{"traceparent":"\\ud800"}',
        "approval": '"\\ud800"',
        "want": '{"scopes":[{"resource":"mcp/files/read","args":{"\\ud800":{"eq":1}}}]}',
    }
    root = await stage.root()
    body = await stage.raw(root, request(root, extra=f',"{field}":{bad[field]}'))
    await stage.arena.refused_before_opening(body, "MALFORMED", body.rule, root.txn)


async def test_a_request_just_under_the_cap_is_decided_on_not_dropped(stage: Stage) -> None:
    """What fits as a request may not fit as a dispatch or be scanned: either way there is an answer and a closed book."""
    root = await stage.root()
    room = 900 * 1024 - len(request(root, '{"a":""}'))
    body = await stage.raw(root, request(root, '{"a":"' + "x" * room + '"}'))
    assert body.code in ("TOO_LARGE", "CONTENT_DENIED")
    kinds = await stage.arena.kinds(root.txn)
    assert kinds in (["txn.opened"], ["txn.opened", "hop.opened", "hop.closed"])
    assert stage.files.work(root.txn) == []


# Where the answer goes


def foreign(stage: Stage, txn: str) -> dict[str, str]:
    """Reply subjects that are not an inbox of Alice's own."""
    bob, alice = stage.bob, stage.alice
    own = f"_INBOX_alice.{alice.connection}"
    return {
        "a service": "svc.agent.bob.brief",
        "a service of one's own": "svc.agent.alice.brief",
        "the ledger": f"ledger.default.{txn}",
        "the refusals": "refusals.default",
        "the JetStream API": "$JS.API.STREAM.PURGE.LEDGER",
        "the system account": "$SYS.REQ.SERVER.PING",
        "the registry": "$KV.registry.principal.mallory",
        "another's inbox": bob.inbox(),
        "an inbox of the broker": "_INBOX_remit_bus.aaaaaaaaaaaaaaaaaaaaaaaa.x",
        "the shared inbox": "_INBOX.x.y",
        "a reply of a callee": f"res.bob.{stage.arena.lab.broker.replica}.{txn}.{'1' * 16}",
        "a request": f"req.alice.{txn}.mcp.files.read",
        "a wildcard": f"{own}.*",
        "a full wildcard": f"{own}.>",
        "any connection": "_INBOX_alice.*.x",
        "no token": f"{own}",
        "an empty token": f"{own}..x",
        "a name that begins alike": f"_INBOX_alice2.{alice.connection}.x",
        "a short connection": "_INBOX_alice.short.x",
        "a long subject": f"{own}." + "x" * 300,
    }


FOREIGN = [
    "a service", "a service of one's own", "the ledger", "the refusals", "the JetStream API", "the system account",
    "the registry", "another's inbox", "an inbox of the broker", "the shared inbox", "a reply of a callee", "a request",
    "a wildcard", "a full wildcard", "any connection", "no token", "an empty token", "a name that begins alike",
    "a short connection", "a long subject",
]  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
async def test_a_reply_subject_that_is_not_ones_own_inbox_is_never_answered(stage: Stage, name: str) -> None:
    root = await stage.root()
    reply = foreign(stage, root.txn)[name]
    bus = stage.arena.lab.broker.nats.bus
    known, said = len(stage.arena.refused.records), bus.stats["out_msgs"]
    heard = len(stage.alice.heard), len(stage.bob.heard)
    await stage.alice.nc.publish(stage.alice.subject(READ, root.txn), request(root), reply=reply)
    await stage.alice.nc.flush()
    record = await stage.arena.refused.number(known)
    assert (record["code"], record["rule"], record["caller"]) == ("MALFORMED", "admit.reply", "alice")
    assert await stage.arena.kinds(root.txn) == ["txn.opened"]
    await stage.arena.silent(stage.bob)
    await stage.arena.silent(stage.alice)
    assert bus.stats["out_msgs"] == said, "the broker published something"
    assert (len(stage.alice.heard), len(stage.bob.heard)) == heard
    assert stage.files.work(root.txn) == []


async def test_a_call_without_a_reply_subject_does_nothing(stage: Stage) -> None:
    root = await stage.root()
    known = len(stage.arena.refused.records)
    await stage.alice.nc.publish(stage.alice.subject(READ, root.txn), request(root))
    assert (await stage.arena.refused.number(known))["rule"] == "admit.reply"
    assert await stage.arena.kinds(root.txn) == ["txn.opened"]


# Subjects

SUBJECTS = {
    "a txn that is none": "req.alice.deadbeef.mcp.files.read",
    "a txn of zeros": f"req.alice.{'0' * 32}.mcp.files.read",
    "a txn in upper case": f"req.alice.{'A' * 32}.mcp.files.read",
    "another kind": "req.alice.new.tool.files.read",
    "a name in upper case": "req.alice.new.mcp.FILES.read",
    "the broker as a target": "req.alice.new.agent.remit.attach",
    "an operation with an escape too many": "req.alice.new.mcp.files.=72ead",
    "an operation with a half escape": "req.alice.new.mcp.files.=7",
    "an escaped slash": "req.alice.new.mcp.files.a=2Fb",
    "an escaped wildcard": "req.alice.new.mcp.files.=2A",
    "two dots": "req.alice.new.mcp.files.=2E=2E",
    "a name that is not NFKC": "req.alice.new.mcp.files.=EF=AC=81",
    "an operation that is not UTF-8": "req.alice.new.mcp.files.=FF",
    "a line feed": "req.alice.new.mcp.files.a=0Ab",
    "an invisible character": "req.alice.new.mcp.files.a=E2=80=8Bb",
    "a lower-case escape": "req.alice.new.mcp.files.a=2eb",
}


@pytest.mark.parametrize("name", SUBJECTS)
async def test_a_subject_that_is_no_request_is_refused(stage: Stage, name: str) -> None:
    root = await stage.root()
    body = error_of(await stage.alice.ask(SUBJECTS[name], request(root)))
    record = await stage.arena.refused_before_opening(body, "MALFORMED", "admit.subject", root.txn)
    assert (record["caller"], record["resource"]) == ("alice", SUBJECTS[name])


WIRE = {
    "a subject that is not UTF-8": b"PUB req.alice.new.mcp.files.\xff\xfe 2",
    "a reply that is not UTF-8": b"PUB req.alice.new.mcp.files.read _INBOX_alice.\xff.x 2",
    "a frame's subject that is not UTF-8": b"PUB res.alice.%(replica)s.%(txn)s.\xff 2",
    "a vertical tab that looks like a subscription": b"PUB req.alice.new.mcp.files.x\x0b1 2",
    "a vertical tab before a reply": b"PUB req.alice.new.mcp.files.x\x0by %(inbox)s 2",
    "a form feed in a reply": b"PUB req.alice.new.mcp.files.read x\x0cy 2",
    "a vertical tab in a frame's subject": b"PUB res.alice.%(replica)s.%(txn)s.x\x0b1 2",
    "a file separator": b"PUB req.alice.new.mcp.files.x\x1cy %(inbox)s 2",
    "a NUL": b"PUB req.alice.new.mcp.files.x\x00y %(inbox)s 2",
    "no-break space": b"PUB req.alice.new.mcp.files.x\xc2\xa0y %(inbox)s 2",
}


@pytest.mark.parametrize("name", WIRE)
async def test_no_bytes_on_the_wire_cut_the_broker_off(stage: Stage, name: str) -> None:
    """What one agent publishes reaches the broker's one connection: it must neither end its reading nor be misread."""
    root = await stage.root()
    broker = stage.arena.lab.broker
    cut = asyncio.Event()

    async def disconnected() -> None:
        cut.set()

    broker.nats.bus._disconnected_cb = disconnected
    fill = {b"replica": broker.replica.encode(), b"txn": root.txn.encode(), b"inbox": stage.alice.inbox().encode()}
    line = WIRE[name]
    for key, value in fill.items():
        line = line.replace(b"%(" + key + b")s", value)
    await stage.alice.wire(line, b"{}")
    assert await honest(stage) == "content"
    assert not cut.is_set()
    assert stage.alice.errors == []


HEADERS = {
    "a header of one byte": b"x",
    "a header without an end": b"NATS/1.0",
    "an empty header": b"NATS/1.0\r\n\r\n",
    "a status that is not UTF-8": b"NATS/1.0 \xff\xff\xff\r\n\r\n",
    "a description that is not UTF-8": b"NATS/1.0 503 \xff\xfe\r\n\r\n",
    "a name without a value": b"NATS/1.0\r\nname\r\n\r\n",
    "a name that is not UTF-8": b"NATS/1.0\r\n\xff\xfe: 1\r\n\r\n",
    "ten thousand headers": b"NATS/1.0\r\n" + b"a: b\r\n" * 10_000 + b"\r\n",
}


@pytest.mark.parametrize("name", HEADERS)
async def test_no_header_cuts_the_broker_off(stage: Stage, name: str) -> None:
    header = HEADERS[name]
    line = b"HPUB req.alice.new.mcp.files.read %b %d %d" % (stage.alice.inbox().encode(), len(header), len(header) + 2)
    await stage.alice.wire(line, header + b"{}")
    assert await honest(stage) == "content"


async def honest(stage: Stage) -> Any:
    """What an honest call gets now."""
    root = await stage.root()
    frames = await stage.alice.call(READ, root.txn, root.grant)
    return frames[-1].value if isinstance(frames[-1], Result) else frames[-1]


# Headers

LIES = {
    "Nats-Client-Info": '{"user":"bob"}',
    "Nats-Request-Info": '{"acc":"CORE","user":"bob"}',
    "Nats-Expected-Last-Subject-Sequence": "0",
    "Nats-Msg-Id": "1",
    "Nats-Rollup": "all",
    "Remit-Caller": "bob",
    "Remit-User": "root",
    "Remit-Tenant": "other",
    "X-Forwarded-For": "127.0.0.1",
    "Authorization": "Bearer x",
    "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
}


async def test_headers_that_name_another_caller_change_nothing(stage: Stage) -> None:
    root = await stage.root()
    frames = await stage.alice.ask(stage.alice.subject(READ, root.txn), request(root), headers=LIES)
    assert isinstance(frames[-1], Result)
    opened = (await stage.arena.lab.records(root.txn))[1]
    assert (opened["caller"], opened["tenant"], opened["link"]) == ("alice", "default", None)
    assert (await stage.files.took(root.txn)).message.headers is None


async def test_headers_lend_a_grant_to_nobody(stage: Stage) -> None:
    root = await stage.root()
    body = error_of(
        await stage.bob.ask(stage.bob.subject(READ, root.txn), request(root), headers={"Remit-Caller": "alice"})
    )
    record = await stage.arena.refused_before_opening(body, "GRANT_INVALID", "grant.audience", root.txn)
    assert record["caller"] == "bob"


async def test_a_trace_context_of_the_caller_is_a_link_and_no_id(stage: Stage) -> None:
    root = await stage.root()
    theirs = f"00-{'a' * 32}-{'b' * 16}-00"
    frames = await stage.alice.call(READ, root.txn, root.grant, trace={"traceparent": theirs})
    assert isinstance(frames[-1], Result)
    opened = (await stage.arena.lab.records(root.txn))[1]
    assert opened["link"] == theirs and opened["txn"] == root.txn and opened["hop"] != "b" * 16


# Time


async def test_a_request_after_its_deadline_is_refused(stage: Stage) -> None:
    root = await stage.root()
    now = int(stage.arena.lab.broker.ports.clock.now() * 1000)
    for deadline in (1, now - 1000, now - 1):
        body = await stage.alice.error(READ, root.txn, root.grant, deadline=deadline)
        await stage.arena.refused_before_opening(body, "DEADLINE_EXCEEDED", "admit.deadline", root.txn)


async def test_a_deadline_far_away_is_cut_to_what_a_hop_may_take(stage: Stage) -> None:
    root = await stage.root(ttl=8 * 3600)
    frames = await stage.alice.call(READ, root.txn, root.grant, deadline=2**53 - 1, want={"ttl_ms": 2**53 - 1})
    assert isinstance(frames[-1], Result)
    opened = (await stage.arena.lab.records(root.txn))[1]
    now = stage.arena.lab.broker.ports.clock.now()
    assert opened["deadline"] <= (now + 3600) * 1000 and opened["exp"] <= now + 60


async def test_a_call_that_names_no_time_has_a_minute(stage: Stage) -> None:
    root = await stage.root(ttl=8 * 3600)
    await stage.alice.call(READ, root.txn, root.grant)
    opened = (await stage.arena.lab.records(root.txn))[1]
    assert 0 < opened["deadline"] - stage.arena.lab.broker.ports.clock.now() * 1000 <= 60_000


@pytest.mark.parametrize("ttl_ms", [1, 2, 3, 5])
async def test_a_lifetime_of_a_moment_ends_as_a_deadline_and_nothing_else(stage: Stage, ttl_ms: int) -> None:
    root = await stage.root()
    frames = await stage.alice.call(READ, root.txn, root.grant, want={"ttl_ms": ttl_ms})
    if not isinstance(frames[-1], Result):
        assert error_of(frames).code == "DEADLINE_EXCEEDED"
    kinds = await stage.arena.kinds(root.txn)
    assert kinds.count("hop.opened") == kinds.count("hop.closed")


async def test_a_call_whose_deadline_passes_while_it_waits_for_its_turn_is_not_opened(stage: Stage) -> None:
    root = await stage.root()
    async with stage.arena.lab.broker.ledger.turn("default", root.txn):
        calling = asyncio.ensure_future(stage.alice.call(READ, root.txn, root.grant, want={"ttl_ms": 100}))
        await asyncio.sleep(0.2)
    body = error_of(await calling)
    await stage.arena.refused_before_opening(body, "DEADLINE_EXCEEDED", "open.deadline", root.txn)


# The broker lives on


async def test_after_all_of_this_the_broker_still_works_and_saw_no_fault(stage: Stage) -> None:
    assert await honest(stage) == "content"
    assert [record for record in stage.arena.refused.records if record["code"] == "INTERNAL"] == []
    with contextlib.suppress(TimeoutError):
        assert (await stage.alice.error("remit/nothing/here", NEW, None)).code == "UNKNOWN_TARGET"
    assert subjects.is_own_inbox(stage.alice.inbox(), "alice")
