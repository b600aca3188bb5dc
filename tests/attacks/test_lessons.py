"""What went wrong elsewhere, tried here. Each test names its source; what the other modules of attacks hold is not repeated.

The advisories are public; what is here is the mistake, not the product.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio
from nats.aio.client import Client

from remit_broker.adapters.jetstream import Unreachable
from remit_broker.adapters.keyfiles import KeyFiles, new_user_seed
from remit_broker.edges.http.operators import LocalToken
from remit_broker.hop.txn import Opened
from remit_schemas.base64url import encode
from remit_schemas.envelope import Error, Result
from remit_schemas.grant import mint, parse
from remit_schemas.names import Jti
from tests.support.raw import Arena, RawAgent, connection_name, error_of, skill, tool

pytestmark = pytest.mark.asyncio(loop_scope="module")

READ = "mcp/files/read"


class Stage:
    """Alice calls, Files answers at once, Bob waits."""

    def __init__(self, arena: Arena, alice: RawAgent, bob: RawAgent, files: RawAgent) -> None:
        self.arena, self.alice, self.bob, self.files = arena, alice, bob, files
        self.ports = arena.lab.broker.ports

    async def root(self, *scopes: str, **options: Any) -> Opened:
        return await self.arena.lab.grant("alice", *(scopes or ("mcp/**", "agent/**")), **options)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(arena: Arena) -> AsyncIterator[Stage]:
    alice, bob = await arena.agent("alice"), await arena.agent("bob")
    files = await arena.agent("files", "mcp")
    files.handlers["read"] = lambda taken: taken.done({"said": taken.dispatch.args.get("say")})
    await files.serve(tool("read"))
    await bob.serve(skill("brief"))
    yield Stage(arena, alice, bob, files)


# NATS

PREFIXES = [
    "$JS.API.INFO", "$JS.API.STREAM.LIST", "$JS.API.STREAM.PURGE.LEDGER", "$JS.API.STREAM.DELETE.LEDGER",
    "$JS.API.STREAM.MSG.GET.LEDGER", "$JS.API.DIRECT.GET.LEDGER", "$JS.API.CONSUMER.CREATE.LEDGER", "$JS.CORE.API.INFO",
    "$SYS.REQ.SERVER.PING", "$SYS.REQ.USER.AUTH", "$SYS.REQ.ACCOUNT.BUS.CONNZ", "$KV.registry.principal.alice", "$O.x.C.y",
    "$MQTT.x", "$NRG.x", "refusals.default",
]  # fmt: skip


async def test_the_interfaces_of_the_server_are_out_of_reach_of_agents(stage: Stage) -> None:
    """NATS: foreign ``$JS.API`` reachable across accounts (CVE-2025-30215, CVE-2026-33222)."""
    before = await stage.arena.lab.broker.nats.core.jetstream().stream_info("LEDGER")
    for who in (stage.alice, stage.files):
        who.errors.clear()
        for subject in PREFIXES:
            await who.nc.publish(subject, b"{}", reply=who.inbox())
        async with asyncio.timeout(4):
            while len([said for said in who.errors if "permissions violation" in said.lower()]) < len(PREFIXES):
                await who.nc.flush()
        who.errors.clear()
    after = await stage.arena.lab.broker.nats.core.jetstream().stream_info("LEDGER")
    assert after.state.messages == before.state.messages


async def test_a_trace_destination_makes_the_broker_write_nowhere(stage: Stage) -> None:
    """NATS: the trace destination header writes anywhere (CVE-2026-33249). Also: no header of an agent is passed on."""
    root = await stage.root()
    target = f"_INBOX_bob.{stage.bob.connection}.trace"
    ear = await stage.bob.nc.subscribe(target)
    await stage.bob.nc.flush()
    headers = {"Nats-Trace-Dest": target, "Nats-Trace-Hop": "1", "Nats-Anything": "x"}
    request = json.dumps({"v": 1, "grant": root.grant, "args": {}}).encode()
    inbox = stage.alice.inbox()
    answers = await stage.alice.nc.subscribe(inbox)
    await stage.alice.nc.publish(stage.alice.subject(READ, root.txn), request, reply=inbox, headers=headers)
    await stage.alice.nc.flush()
    await stage.alice.result(
        READ, root.txn, root.grant
    )  # an honest one after it, so that the first has passed or never will
    await stage.arena.silent(stage.bob)
    assert ear.pending_msgs == 0
    for taken in stage.files.work(root.txn):
        assert not any(name.lower().startswith("nats-") for name in taken.message.headers or {})
    await answers.unsubscribe()


# Tokens


async def test_a_flood_of_unknown_keys_fetches_nothing_and_stops_nobody(stage: Stage) -> None:
    """PyJWT and others: a flood of unknown ``kid`` (CVE-2026-48523, -48524)."""
    root = await stage.root()
    _, payload, signature = root.grant.split(".")

    def token(number: int) -> str:
        header = json.dumps({"alg": "Ed25519", "typ": "dlg+jwt", "kid": f"{number:043d}"}).encode()
        return f"{encode(header)}.{payload}.{signature}"

    flood = [stage.bob.call(READ, root.txn, token(number)) for number in range(200)]
    *ends, honest = await asyncio.gather(*flood, stage.alice.call(READ, root.txn, root.grant))
    assert isinstance(honest[-1], Result)
    assert {(error_of(e).code, error_of(e).rule) for e in ends} <= {
        ("GRANT_INVALID", "grant.kid"),
        ("RATE_LIMITED", "admit.rate"),
    }
    assert len(await stage.arena.lab.records(root.txn)) == 3


async def test_remembered_signatures_decide_as_fresh_ones_would(stage: Stage) -> None:
    """OpenFGA: cache collisions gave wrong decisions. The cache of verified grants is keyed by the whole token."""
    root = await stage.root()
    await stage.alice.result(READ, root.txn, root.grant)
    head, _, signature = root.grant.rpartition(".")
    last = "A" if signature[-1] != "A" else "Q"
    for altered in (
        f"{head}.{signature[:-1]}{last}",
        f"{head}.{last}{signature[1:]}",
        f"{head.swapcase()}.{signature}",
    ):
        assert (await stage.alice.error(READ, root.txn, altered)).code == "GRANT_INVALID"
    assert (await stage.bob.error(READ, root.txn, root.grant)).rule == "grant.audience"


async def test_an_id_in_the_body_that_is_not_the_paths_is_refused(stage: Stage) -> None:
    """Keycloak: the id in the body is not the id in the path. On the bus the subject is the path, the grant the body."""
    one, two = await stage.root(), await stage.root()
    assert (await stage.alice.error(READ, two.txn, one.grant)).rule == "grant.txn"
    token = {"Authorization": f"Bearer {stage.arena.lab.broker.keys.local_token}"}
    async with httpx.AsyncClient(base_url=stage.arena.lab.broker.http, headers=token, trust_env=False) as http:
        response = await http.post(f"/api/chains/{one.txn}/close", json={"txn": two.txn})
        assert response.status_code == 400
        both = await http.post("/api/revocations", json={"txn": one.txn, "grant": parse(two.grant).claims.jti})
        assert both.status_code == 400
    for root in (one, two):
        assert await stage.arena.kinds(root.txn) == ["txn.opened"]


async def test_a_key_in_another_case_is_another_key(stage: Stage) -> None:
    """Envoy: policy bypassed by duplicate or differently cased keys."""
    root = await stage.root('mcp/files/read{"say":{"eq":"hello"}}')
    for args in ({"Say": "hello"}, {"SAY": "hello"}, {"say": "other", "Say": "hello"}, {"\u017fay": "hello"}):
        assert (await stage.alice.error(READ, root.txn, root.grant, args)).rule == "narrow.scope"
    for field in ("Grant", "GRANT", "gr\u0061nt ", "ARGS", "Want"):
        data = json.dumps({"v": 1, "grant": root.grant, "args": {"say": "hello"}, field: {}}).encode()
        body = error_of(await stage.alice.ask(stage.alice.subject(READ, root.txn), data))
        assert (body.code, body.rule) == ("MALFORMED", "envelope.request")


async def test_a_grant_whose_ancestors_are_unknown_is_refused(stage: Stage) -> None:
    """Vault: the child of a missing parent became a live orphan."""
    root = await stage.root()
    claims = parse(root.grant).claims
    lost = str(Jti(root.txn, "a" * 16, 1))
    token = mint(msgspec.structs.replace(claims, jti=lost), stage.arena.lab.broker.keys.signing)
    body = await stage.alice.error(READ, root.txn, token)
    await stage.arena.refused_before_opening(body, "GRANT_INVALID", "grant.unknown", root.txn)


# Failing closed

FAULTS = [
    ("mint", "verify"), ("ledger", "fold"), ("ledger", "turn"), ("registry", "target"), ("registry", "principal"),
    ("schemas", "arguments"), ("detectors", "scan"), ("policy", "decide"), ("digester", "digest"), ("mint", "mint"),
    ("rates", "admit"),
]  # fmt: skip


@pytest.mark.parametrize(("port", "method"), FAULTS)
async def test_a_fault_in_any_step_refuses(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, port: str, method: str
) -> None:
    """Gateways where an exception in a check let the request through (CVE-2026-12773)."""
    root = await stage.root()

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a fault whose text is nobody's business")

    monkeypatch.setattr(type(getattr(stage.ports, port)), method, fail)
    body = await stage.alice.error(READ, root.txn, root.grant)
    monkeypatch.undo()
    assert (body.code, body.rule, body.effect) == ("INTERNAL", "broker.fault", "none")
    assert "nobody's business" not in str(body)
    record = await stage.arena.refused.until(hop=body.hop)
    assert "nobody's business" in record["cause"]
    assert await stage.arena.kinds(root.txn) == ["txn.opened"] and stage.files.work(root.txn) == []
    await stage.alice.result(READ, root.txn, root.grant)


@pytest.mark.parametrize(("port", "method"), [("detectors", "scan"), ("policy", "decide"), ("digester", "digest")])
async def test_a_fault_after_the_effect_releases_nothing_and_closes_the_hop(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, port: str, method: str
) -> None:
    """The same, on the way back: what could not be inspected is not released."""
    root = await stage.root()

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("fault")

    calling = asyncio.ensure_future(stage.alice.call("agent/bob/brief", root.txn, root.grant))
    taken = await stage.bob.took(root.txn)
    monkeypatch.setattr(type(getattr(stage.ports, port)), method, fail)
    await taken.done("unseen")
    frames = await calling
    monkeypatch.undo()
    body = error_of(frames)
    assert (body.code, body.effect) == ("INTERNAL", "unknown") and "unseen" not in str(frames)
    assert await stage.arena.kinds(root.txn) == ["txn.opened", "hop.opened", "hop.closed"]


async def test_a_fault_in_knowing_an_operator_refuses(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, over HTTP: a check that breaks is no check passed."""

    def fail(*_: Any) -> str:
        raise RuntimeError("fault")

    monkeypatch.setattr(LocalToken, "known", fail)
    token = {"Authorization": f"Bearer {stage.arena.lab.broker.keys.local_token}"}
    async with httpx.AsyncClient(base_url=stage.arena.lab.broker.http, headers=token, trust_env=False) as http:
        response = await http.get("/api/agents")
    assert response.status_code == 500 and response.json()["error"]["code"] == "INTERNAL"
    assert "agents" not in response.json()


async def test_a_ledger_that_hangs_refuses_in_time_and_health_stays_up(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vault: a blocking audit device hung everything."""
    root = await stage.root()
    ledger = stage.arena.lab.broker.ledger

    async def never(*_: Any, **__: Any) -> Any:
        raise Unreachable("no answer")

    monkeypatch.setattr(ledger._js, "publish", never)
    monkeypatch.setattr(ledger, "_patience", 0.3)
    calling = asyncio.ensure_future(stage.alice.call(READ, root.txn, root.grant))
    async with httpx.AsyncClient(base_url=stage.arena.lab.broker.http, trust_env=False) as http:
        assert (await http.get("/healthz")).status_code == 200
    body = error_of(await calling)
    monkeypatch.undo()
    assert (body.code, body.effect, body.retryable) == ("LEDGER_UNAVAILABLE", "none", True)
    assert stage.files.work(root.txn) == []
    await stage.alice.result(READ, root.txn, root.grant)


# Secrets and suppliers


async def test_no_two_installations_share_a_secret(stage: Stage, tmp_path: Path) -> None:
    """Kuadrant: a default secret in the manifest."""
    folders = [tmp_path / "a", tmp_path / "b"]
    made = [KeyFiles.open(folder, create=True) for folder in folders]
    secrets = [
        {keys.digest_key, keys.results_key, keys.local_token, keys.signing.kid,
         *(keys.seed(n) for n in ("issuer", "core", "bus", "auth", "sys"))}
        for keys in made
    ]  # fmt: skip
    assert not secrets[0] & secrets[1] and all(len(found) == 9 for found in secrets)
    assert len(made[0].local_token) >= 32
    for folder in folders:
        for file in (folder / "keys").iterdir():
            assert file.stat().st_mode & 0o077 == 0, file.name


async def test_no_library_that_was_poisoned_is_loaded_by_the_broker() -> None:
    """litellm 1.82.7/8: a poisoned release of a dependency. It is not in the broker's process, nor starts with Python."""
    code = "import remit_broker.app, sys; print([m for m in ('litellm', 'openai', 'anthropic') if m in sys.modules])"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=20, check=True
    )
    assert done.stdout.strip() == "[]"


async def test_answers_are_not_mixed_up_between_two_clients(stage: Stage) -> None:
    """MCP SDKs: responses mixed up by equal ids. Two callers with equal keys and equal inbox tokens each get their own."""
    eve = await stage.arena.agent("eve")
    mine, hers = await stage.root(), await stage.arena.lab.grant("eve", "mcp/**")
    same = connection_name()

    async def ask(who: RawAgent, root: Opened, say: str) -> list[str]:
        inbox = f"_INBOX_{who.name}.{who.connection}.{same}"
        ear = await who.nc.subscribe(inbox)
        request = {"v": 1, "grant": root.grant, "args": {"say": say}, "key": "1"}
        await who.nc.publish(who.subject(READ, root.txn), json.dumps(request).encode(), reply=inbox)
        frames = [json.loads((await ear.next_msg(4)).data) for _ in range(2)]
        await stage.arena.silent(who)
        assert ear.pending_msgs == 0
        return [frames[0]["txn"], frames[1]["value"]["said"]]

    for _ in range(5):
        got = await asyncio.gather(ask(stage.alice, mine, "alice's"), ask(eve, hers, "eve's"), return_exceptions=False)
        assert list(got) == [[mine.txn, "alice's"], [hers.txn, "eve's"]]
        mine, hers = await stage.root(), await stage.arena.lab.grant("eve", "mcp/**")


async def test_a_stranger_with_a_key_of_ones_own_is_nobody(stage: Stage) -> None:
    """Anonymous access left open by default: a fresh key, no key and another's name all fail to connect."""
    for options in (
        {"nkeys_seed_str": new_user_seed()},
        dict[str, Any](),
        {"user": "bus", "password": "bus"},
        {"nkeys_seed_str": stage.arena.lab.seeds["alice"], "name": "short"},
        {"nkeys_seed_str": stage.arena.lab.seeds["alice"], "name": "*" * 24},
        {"nkeys_seed_str": stage.arena.lab.seeds["alice"], "name": ">"},
    ):
        nc = Client()
        with pytest.raises(Exception):  # noqa: B017 - which error is the client library's choice
            async with asyncio.timeout(3):
                await nc.connect(
                    stage.arena.lab.url, allow_reconnect=False, connect_timeout=2, error_cb=_quiet, **options
                )
                await nc.flush()
        assert not nc.is_connected


async def _quiet(_: Exception) -> None:
    return None


async def test_after_everything_an_honest_call_still_passes(stage: Stage) -> None:
    root = await stage.root()
    frames = await stage.alice.call(READ, root.txn, root.grant, {"say": "hello"})
    assert not isinstance(frames[-1], Error), frames
    assert parse(root.grant).claims.txn == root.txn
