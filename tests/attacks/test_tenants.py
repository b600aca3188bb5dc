"""Two tenants on one broker, with agents of the same names in both: what one of them cannot see, say, use or stop of the other."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import nats
import pytest
import pytest_asyncio

from remit_broker.adapters import nats_config
from remit_broker.core.bus_permissions import account_of
from remit_broker.core.evidence import read, verify_evidence
from remit_broker.core.issuers import ALL
from remit_broker.core.registry import Principal
from remit_broker.core.user_tokens import Identity
from remit_broker.edges.http.operators import Caller, LocalToken
from remit_broker.hop.txn import Opened
from remit_broker.testing import running_broker
from remit_schemas import subjects
from remit_schemas.envelope import Result
from remit_schemas.errors import Refusal
from remit_schemas.keys import KeySet
from tests.support.raw import Arena, RawAgent, arena_on, error_of, skill, tool

pytestmark = pytest.mark.asyncio(loop_scope="module")

READ, ASK = "mcp/files/read", "agent/bob/ask"
A, B = "default", "acme"
MARK = "what only acme may know"
CONFIG = {
    "tenants": {B: {}, "globex": {}},
    "caps": {"user": {"capped": {"day": "calls=3"}}, "tenant": {"globex": {"day": "calls=1000"}}},
}


class Town:
    """Alice, Bob and a server of files in two tenants each."""

    def __init__(self, arena: Arena, people: dict[tuple[str, str], RawAgent]) -> None:
        self.arena, self.lab, self._people = arena, arena.lab, people

    def __getitem__(self, who: tuple[str, str]) -> RawAgent:
        return self._people[who]

    async def grant(self, tenant: str, to: str = "alice", user: str = "ann", **rest: Any) -> Opened:
        return await self.lab.grant(to, "mcp/**", "agent/**", user=user, tenant=tenant, **rest)

    async def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """The API, as the operator of this machine."""
        token = {"Authorization": f"Bearer {self.lab.broker.keys.local_token}"}
        async with httpx.AsyncClient(base_url=self.lab.broker.http, headers=token, trust_env=False) as http:
            return await http.request(method, path, json=body)

    async def told(self, path: str) -> Any:
        answer = await self.ask("GET", path)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def town(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Town]:
    async with running_broker(tmp_path_factory.mktemp("town"), CONFIG) as lab, arena_on(lab) as arena:
        people = {}
        for tenant in (A, B):
            for name, kind in (("alice", "agent"), ("bob", "agent"), ("files", "mcp")):
                people[tenant, name] = await arena.agent(name, kind, tenant=tenant)  # type: ignore[arg-type]
            for name, what in (("bob", skill("ask")), ("files", tool("read"))):
                person = people[tenant, name]

                async def work(taken: Any, whose: str = tenant) -> None:
                    await taken.done(MARK if whose == B else "default")

                person.handlers = {"read": work}
                await person.serve(what)
        yield Town(arena, people)


# The bus


async def test_the_same_names_work_in_both_and_each_meets_its_own(town: Town) -> None:
    for tenant, said in ((A, "default"), (B, MARK)):
        root = await town.grant(tenant)
        result = await town[tenant, "alice"].result(READ, root.txn, root.grant)
        assert result.value == said
        records = await town.lab.records(root.txn, tenant)
        assert {record["tenant"] for record in records} == {tenant}
        assert [record["kind"] for record in records] == ["txn.opened", "hop.opened", "hop.closed"]


async def test_nothing_that_one_tenant_says_is_heard_by_another(town: Town) -> None:
    """On every subject an agent may use, and with an ear on everything in the other's account."""
    broker = town.lab.broker.nats
    ears = {name: await broker.of(name).subscribe(">") for name in (A, B)}
    for name in (A, B):
        await broker.of(name).flush()
        await broker.of(name).flush()
    mark = MARK.encode()
    alice = town[B, "alice"]
    for subject in (
        subjects.request("alice", "new", "agent", "bob", "ask"),
        subjects.reply("alice", "r1", "1" * 32, "1" * 16),
        subjects.control("alice", "r1", "1" * 32, "1" * 16),
    ):
        await alice.nc.publish(subject, mark)
    await alice.nc.flush()
    await alice.nc.flush()
    for name in (A, B):
        await broker.of(name).flush()
        await broker.of(name).flush()
    heard: dict[str, list[str]] = {}
    for name, ear in ears.items():
        heard[name] = []
        while ear.pending_msgs:
            message = await ear.next_msg(1)
            if mark in message.data:
                heard[name].append(message.subject)
        await ear.unsubscribe()
    assert len(heard[B]) == 3 and heard[A] == []


async def test_everybody_is_in_the_account_of_their_tenant(town: Town) -> None:
    answer = await town.lab.broker.nats.sys.request("$SYS.REQ.SERVER.PING.CONNZ", b'{"auth":true}', timeout=5)
    there = json.loads(answer.data)["data"]["connections"]
    for (tenant, name), person in town._people.items():
        mine = [(one["account"], one["authorized_user"]) for one in there if one["name"] == person.connection]
        assert mine == [(account_of(tenant), name)]


async def test_a_client_cannot_ask_for_another_account(town: Town) -> None:
    """What it says of an account, a tenant or a user at connect is not looked at."""
    raw = RawAgent(town.lab, "alice", "agent", A)
    await raw.connect(user=account_of(B), password="x")
    try:
        root = await town.grant(A)
        assert (await raw.result(READ, root.txn, root.grant)).value == "default"
    finally:
        await raw.close()


# Grants


async def test_a_grant_of_another_tenant_is_refused_to_the_namesake(town: Town) -> None:
    root = await town.grant(B)
    for subject_txn in (root.txn, (await town.grant(A)).txn):
        body = await town[A, "alice"].error(READ, subject_txn, root.grant)
        assert (body.code, body.rule) == ("GRANT_INVALID", "grant.tenant")
    assert await town.lab.records(root.txn, A) == []
    assert [record["kind"] for record in await town.lab.records(root.txn, B)] == ["txn.opened"]
    # The owner goes on.
    assert (await town[B, "alice"].result(READ, root.txn, root.grant)).value == MARK


async def test_a_grant_of_a_hop_of_another_tenant_is_refused(town: Town) -> None:
    """The grant of a running hop, renewed and used by the namesake of its callee."""
    root = await town.grant(B)
    call = asyncio.create_task(town[B, "alice"].call(ASK, root.txn, root.grant))
    taken = await town[B, "bob"].took(root.txn)
    for resource in (READ, "remit/grant/renew", "remit/result/get"):
        body = await town[A, "bob"].error(resource, root.txn, taken.grant)
        assert (body.code, body.rule) == ("GRANT_INVALID", "grant.tenant")
    await taken.done(1)
    assert isinstance((await call)[-1], Result)


@pytest.mark.parametrize("service", ["txn/close"])
async def test_a_task_of_another_tenant_cannot_be_closed(town: Town, service: str) -> None:
    root = await town.grant(B)
    body = await town[A, "alice"].error(f"remit/{service}", root.txn, root.grant)
    assert (body.code, body.rule) == ("GRANT_INVALID", "grant.tenant")
    assert (await town.lab.broker.ledger.newest(B, root.txn)).state == "open"


async def test_a_hop_of_another_tenant_is_neither_ended_nor_fed(town: Town) -> None:
    """The namesake of its caller cancels it, answers as its callee would, and hands in an input."""
    root = await town.grant(B)
    alice, bob = town[A, "alice"], town[A, "bob"]
    call = asyncio.create_task(town[B, "alice"].call(ASK, root.txn, root.grant))
    taken = await town[B, "bob"].took(root.txn)
    replica, hop = town.lab.broker.replica, taken.dispatch.hop
    await alice.nc.publish(subjects.control("alice", replica, root.txn, hop), b'{"cancel":true}')
    await bob.nc.publish(subjects.reply("bob", replica, root.txn, hop), b'{"type":"result","v":1,"value":"forged"}')
    body = error_of(
        await alice.ask(
            subjects.control("alice", replica, root.txn, hop),
            json.dumps({"v": 1, "args": {}, "grant": root.grant, "resume": hop, "input": "forged"}).encode(),
        )
    )
    assert body.code in ("GRANT_INVALID", "MALFORMED", "UNKNOWN_TARGET")
    await alice.nc.flush()
    assert not call.done()
    await taken.done("genuine")
    final = (await call)[-1]
    assert isinstance(final, Result) and final.value == "genuine"


async def test_the_ledger_of_one_tenant_does_not_know_a_txn_of_another(town: Town) -> None:
    root = await town.grant(B)
    with pytest.raises(Refusal) as no:
        await town.lab.broker.ledger.newest(A, root.txn)
    assert no.value.body.rule == "ledger.unknown-txn"


# Who exists


async def test_a_task_is_opened_for_agents_of_the_tenant_alone(town: Town) -> None:
    await town.lab.agent("loner", tenant=B)
    body = {"user": "ann", "agent": "loner", "scopes": [{"type": "remit", "resource": "mcp/*/*"}],
            "budget": {"usd_micros": 0, "tokens": 0, "calls": 1}}  # fmt: skip
    refused = await town.ask("POST", "/api/grants", body)
    assert refused.status_code == 404 and refused.json()["error"]["rule"] == "txn.agent"
    assert (await town.ask("POST", f"/api/grants?tenant={B}", body)).status_code == 200


async def test_a_target_of_another_tenant_is_not_there(town: Town) -> None:
    secret = await town.arena.agent("vault", "mcp", tenant=B)
    await secret.serve(tool("open"))
    root = await town.grant(A)
    body = await town[A, "alice"].error("mcp/vault/open", root.txn, root.grant)
    assert body.code == "UNKNOWN_TARGET"
    assert "vault/open" not in body.ask and "vault" not in body.ask


async def test_a_key_belongs_to_one_principal_of_all_tenants(town: Town) -> None:
    registries = town.lab.broker.registries
    known = registries.of(B).principal("alice")
    assert known is not None
    with pytest.raises(Refusal) as no:
        await registries.of(A).add(Principal(name="thief", kind="agent", nkey=known.nkey))
    body = no.value.body
    assert (body.code, body.rule) == ("CONFLICT", "agents.key")
    assert B not in f"{body.message} {body.ask}" and "alice" not in f"{body.message} {body.ask}"


async def test_a_key_that_two_tenants_claim_lets_nobody_in(town: Town) -> None:
    """Two replicas registered it at the same moment: written past the check."""
    await town.lab.agent("twin", tenant=B)
    registries = town.lab.broker.registries
    twin = registries.of(B).principal("twin")
    assert twin is not None
    await registries.of(A)._put("principal.twin", msgspec.structs.replace(twin, tenant=A))
    with pytest.raises(nats.errors.Error):
        await RawAgent(town.lab, "twin", "agent", B).connect()
    await registries.of(A).remove("twin")
    await (await RawAgent(town.lab, "twin", "agent", B).connect()).close()


async def test_a_principal_in_the_bucket_of_another_tenant_is_nobody(town: Town) -> None:
    await town.lab.agent("stray", tenant=B)
    stray = town.lab.broker.registries.of(B).principal("stray")
    assert stray is not None
    await town.lab.broker.registries.of(A)._put("principal.stray", stray)
    assert town.lab.broker.registries.of(A).principal("stray") is None
    assert town.lab.broker.registries.by_nkey(stray.nkey) == stray


# Revocations


async def test_revoking_an_agent_of_one_tenant_does_not_touch_its_namesake(town: Town) -> None:
    doomed = {tenant: await town.arena.agent("doomed", tenant=tenant) for tenant in (A, B)}
    roots = {tenant: await town.grant(tenant, "doomed") for tenant in (A, B)}
    assert (await town.ask("POST", "/api/revocations", {"agent": "doomed", "why": "a drill"})).status_code == 200
    async with asyncio.timeout(5):
        while doomed[A].nc.is_connected:
            await asyncio.sleep(0.02)
    with pytest.raises(nats.errors.Error):
        await RawAgent(town.lab, "doomed", "agent", A).connect()
    result = await doomed[B].result(READ, roots[B].txn, roots[B].grant)
    assert result.value == MARK and doomed[B].nc.is_connected
    await (await RawAgent(town.lab, "doomed", "agent", B).connect()).close()
    assert "doomed" not in json.dumps(await town.told(f"/api/revocations?tenant={B}"))
    mine = await town.told(f"/api/revocations?tenant={A}")
    assert mine["chain"]["broken"] is None and mine["history"][-1]["name"] == "doomed"


@pytest.mark.parametrize("what", [{"user": "only-there"}, {"tool": "mcp/elsewhere/*"}, {"agent": "elsewhere"}])
async def test_what_is_of_another_tenant_cannot_be_revoked_nor_guessed(town: Town, what: dict[str, str]) -> None:
    if "elsewhere" not in {person.name for person in town._people.values()} and not town.lab.seeds.get(
        f"{B}/elsewhere"
    ):
        server = await town.arena.agent("elsewhere", "mcp", tenant=B)
        await server.serve(tool("do"))
        await town.grant(B, user="only-there")
    near = {key: value[:-1] + ("x" if value[-1] != "*" else "*") for key, value in what.items()}
    for wish in (what, near):
        refused = await town.ask("POST", "/api/revocations", wish)
        assert refused.status_code == 404, refused.text
        said = refused.json()["error"]
        assert "elsewhere" not in said["ask"] and "only-there" not in said["ask"], said
    assert (await town.ask("POST", f"/api/revocations?tenant={B}", what)).status_code == 200
    assert (await town.ask("POST", f"/api/revocations/reinstate?tenant={B}", what)).status_code == 200


async def test_a_revoked_tenant_stops_alone(town: Town) -> None:
    roots = {tenant: await town.grant(tenant) for tenant in (A, B)}
    assert (await town.ask("POST", "/api/revocations", {"tenant": "globex"})).status_code == 200
    assert (await town.ask("POST", f"/api/revocations?tenant={A}", {"tenant": "nowhere"})).status_code == 404
    for tenant, said in ((A, "default"), (B, MARK)):
        result = await town[tenant, "alice"].result(READ, roots[tenant].txn, roots[tenant].grant)
        assert result.value == said
    with pytest.raises(Refusal) as no:
        await town.lab.agent("g", tenant="globex")
        await town.grant("globex", "g")
    assert no.value.body.rule == "revoked.tenant"
    assert (await town.ask("POST", "/api/revocations/reinstate", {"tenant": "globex"})).status_code == 200
    await town.grant("globex", "g")


# Accounts, rates and connections


async def test_one_tenant_cannot_use_up_the_accounts_of_another(town: Town) -> None:
    """A user of the same name: the cap is each one's own."""
    roots = {tenant: await town.grant(tenant, user="capped") for tenant in (A, B)}
    alice = town[A, "alice"]
    for _ in range(3):
        await alice.result(READ, roots[A].txn, roots[A].grant)
    body = await alice.error(READ, roots[A].txn, roots[A].grant)
    assert (body.code, body.rule) == ("BUDGET_EXCEEDED", "caps.user.day")
    assert (await town[B, "alice"].result(READ, roots[B].txn, roots[B].grant)).value == MARK
    rows = {tenant: (await town.told(f"/api/budgets?tenant={tenant}&name=capped"))["budgets"] for tenant in (A, B)}
    assert [row["spent"]["calls"] for row in (*rows[A], *rows[B])] == [3, 1]


async def test_one_tenant_cannot_use_up_the_rates_of_another(tmp_path: Path) -> None:
    config = {"tenants": {B: {}}, "limits": {"calls_per_second": 0.01, "burst": 3}}
    async with running_broker(tmp_path, config) as lab, arena_on(lab) as arena:
        alice = {tenant: await arena.agent("alice", tenant=tenant) for tenant in (A, B)}
        roots = {tenant: await lab.grant("alice", "mcp/**", tenant=tenant) for tenant in (A, B)}
        rules = [(await alice[A].error(READ, roots[A].txn, roots[A].grant)).code for _ in range(4)]
        assert rules == ["UNKNOWN_TARGET"] * 3 + ["RATE_LIMITED"]
        assert (await alice[B].error(READ, roots[B].txn, roots[B].grant)).code == "UNKNOWN_TARGET"


async def test_connections_are_counted_for_each_tenant_by_itself(tmp_path: Path) -> None:
    config = {"tenants": {B: {}}, "limits": {"connections_per_agent": 1}}
    async with running_broker(tmp_path, config) as lab, arena_on(lab) as arena:
        for tenant in (A, B):
            await arena.agent("alice", tenant=tenant)
        for tenant in (A, B):
            with pytest.raises(nats.errors.Error):
                await RawAgent(lab, "alice", "agent", tenant).connect()


# Listings


async def test_listings_tell_of_no_other_tenant(town: Town) -> None:
    """Every listing of one tenant, with what the other has in all of them: no id, no name, no count of it."""
    root = await town.grant(B, user="secretive-user")
    await town[B, "alice"].result(READ, root.txn, root.grant)
    refused = await town[B, "alice"].error("mcp/files/nothing", root.txn, root.grant)
    found = await town.told(f"/api/chains?tenant={B}&user=secretive-user")
    assert [row["txn"] for row in found["chains"]] == [root.txn]
    hop = refused.hop or ""
    for path in (
        "/api/chains?limit=500", "/api/chains?user=secretive-user", f"/api/find/{root.txn[:6]}", f"/api/find/{hop[:6]}",
        f"/api/find/{root.txn}", "/api/agents", "/api/servers", "/api/budgets", "/api/revocations",
    ):  # fmt: skip
        text = json.dumps(await town.told(path))
        for secret in (root.txn, hop, "secretive-user", "vault", "loner", B):
            assert secret not in text, f"{path} tells of {secret}"
    assert (await town.told("/api/chains?user=secretive-user")) == {"chains": [], "cursor": None}
    assert "globex" not in json.dumps(await town.told(f"/api/budgets?tenant={B}"))


@pytest.mark.parametrize("known", [A, B])
async def test_a_chain_of_another_tenant_cannot_be_read_by_its_id(town: Town, known: str) -> None:
    other = B if known == A else A
    root = await town.grant(known)
    body = await town[known, "alice"].error("mcp/files/nothing", root.txn, root.grant)
    for method, path in (
        ("GET", f"/api/chains/{root.txn}"), ("GET", f"/api/chains/{root.txn}/evidence"), ("POST", f"/api/chains/{root.txn}/close"),
        ("GET", f"/api/records/{body.hop}"),
    ):  # fmt: skip
        refused = await town.ask(method, f"{path}?tenant={other}")
        assert refused.status_code == 404, path
        assert root.txn not in refused.json()["error"]["ask"]
        near = await town.ask(method, f"{path[:-2]}00?tenant={other}")
        assert root.txn not in near.text or root.txn in path
    jti = f"{root.txn}.{root.txn[:16]}.1"
    for wish in ({"txn": root.txn}, {"grant": jti}):
        refused = await town.ask("POST", f"/api/revocations?tenant={other}", wish)
        assert refused.status_code in (401, 404) and root.txn not in refused.json()["error"]["ask"]
    assert (await town.ask("GET", f"/api/chains/{root.txn}?tenant={known}")).status_code == 200


@pytest.mark.parametrize("name", ["nowhere", "", "ACME", "acme/", "%2e%2e", "*", "acme&tenant=globex", "BUS_acme"])
async def test_a_tenant_that_is_not_there_is_refused(town: Town, name: str) -> None:
    refused = await town.ask("GET", f"/api/chains?tenant={name}")
    assert refused.status_code in (400, 404) and refused.json()["error"]["rule"] == "api.tenant"


ROUTES = [
    ("GET", "/api/chains"), ("GET", "/api/agents"), ("GET", "/api/servers"), ("GET", "/api/budgets"), ("GET", "/api/revocations"),
    ("GET", "/api/status"), ("GET", "/api/find/abcd"), ("POST", "/api/servers/reload"), ("DELETE", "/api/agents/alice"),
    ("POST", "/api/servers/files/accept"),
]  # fmt: skip


async def test_an_operator_of_one_tenant_reaches_no_other(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a way of knowing operators tells it that belongs to one tenant: every route, for another and for one that is not there."""
    _bound(town, monkeypatch, A)
    for method, path in ROUTES:
        told = [await town.ask(method, f"{path}?tenant={name}") for name in (B, "nowhere")]
        assert [one.status_code for one in told] == [404, 404], path
        said = [one.json()["error"]["message"].replace(B, "?").replace("nowhere", "?") for one in told]
        assert said[0] == said[1], "whether it is there shows"
    for method, path in ROUTES[:7]:
        own = await town.ask(method, path)
        assert own.status_code == 200
        assert B not in own.text and "globex" not in own.text, path
    status = await town.told("/api/status")
    assert status["tenant"] == A and not {"replicas", "tenants", "index", "orphans"} & set(status)


async def test_an_operator_of_one_tenant_stops_no_other(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    _bound(town, monkeypatch, A)
    wishes: list[dict[str, Any]] = [{"tenant": B}, {"all": True}, {"tenant": "nowhere"}]
    for path, wish in itertools.product(("/api/revocations", "/api/revocations/reinstate"), wishes):
        refused = await town.ask("POST", path, wish)
        assert refused.status_code in (403, 404), (path, wish)
        assert B not in refused.json()["error"]["ask"]
    monkeypatch.undo()
    assert (await town.told("/api/revocations"))["revocations"] == [
        one for one in (await town.told("/api/revocations"))["revocations"] if one["kind"] not in ("tenant", "all")
    ]
    root = await town.grant(B)
    assert (await town[B, "alice"].result(READ, root.txn, root.grant)).value == MARK


async def test_who_is_named_for_it_stops_all_tenants(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whichever tenant they are; and it stands in the one history where everybody looks for it."""
    _bound(town, monkeypatch, B, everything=True)
    told = await town.ask("POST", "/api/revocations", {"all": True, "why": "fire"})
    assert told.status_code == 200, told.text
    monkeypatch.undo()
    try:
        for tenant in (A, B):
            assert (await town.told(f"/api/status?tenant={tenant}"))["paused"]["who"] == "corp:admin"
        history = (await town.told("/api/revocations"))["history"]
        assert [(one["kind"], one["who"], one["why"]) for one in history if one["kind"] == "all"] == [
            ("all", "corp:admin", "fire")
        ]
    finally:
        _bound(town, monkeypatch, B, everything=True)
        assert (await town.ask("POST", "/api/revocations/reinstate", {"all": True})).status_code == 200
        monkeypatch.undo()
    root = await town.grant(B)
    assert (await town[B, "alice"].result(READ, root.txn, root.grant)).value == MARK


async def test_an_operator_of_another_tenant_has_its_own_without_naming_it(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = await town.grant(B)
    _bound(town, monkeypatch, B)
    assert (await town.ask("GET", f"/api/chains/{root.txn}")).status_code == 200
    assert (await town.ask("GET", f"/api/chains/{root.txn}?tenant={A}")).status_code == 404


def _bound(town: Town, monkeypatch: pytest.MonkeyPatch, tenant: str, everything: bool = False) -> None:
    """From now on the operator of this machine is one of ``tenant`` alone, as an issuer proves it."""

    async def known(self: LocalToken, request: Any) -> Caller:
        identity = Identity(issuer="corp", iss="https://corp", user="admin", tenant=tenant, token="jti")
        return Caller(who="corp:admin", abilities=ALL, identity=identity, everything=everything)

    monkeypatch.setattr(LocalToken, "known", known)


async def test_a_tenant_cannot_use_up_the_connections_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has three for agents of each: what one uses up, the other still has, and the broker its own."""
    monkeypatch.setattr(nats_config, "KEPT_CONNECTIONS", nats_config.MAX_CONNECTIONS - 6)
    async with running_broker(tmp_path, {"tenants": {B: {}}}) as lab, arena_on(lab) as arena:
        for _ in range(2):
            await arena.agent("alice")  # the broker's own connection is the third
        with pytest.raises((nats.errors.Error, TimeoutError)):
            await RawAgent(lab, "alice", "agent", A).connect()
        for _ in range(2):
            await arena.agent("alice", tenant=B)


async def test_tasks_of_a_removed_tenant_come_to_their_end(tmp_path: Path) -> None:
    async with running_broker(tmp_path, {"tenants": {B: {}}}) as lab:
        await lab.agent("alice", tenant=B)
        root = await lab.grant("alice", "mcp/**", tenant=B, ttl=1)
    async with running_broker(tmp_path) as lab:
        async with asyncio.timeout(30):
            while (await lab.broker.ledger.newest(B, root.txn)).state == "open":
                await asyncio.sleep(0.1)
        with pytest.raises(nats.errors.Error):
            raw = RawAgent(lab, "alice", "agent", B)
            lab.seeds[f"{B}/alice"] = json.loads((tmp_path / "credentials" / B / "alice.json").read_text())["nkey_seed"]
            await raw.connect()


async def test_one_id_in_two_tenants_is_two_tasks(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids are drawn at random; were they ever the same, each tenant would still have its own records, accounts and endings."""
    drawn = "c0ffee" * 5 + "ab"
    ids = type(town.lab.broker.ports.ids)
    with monkeypatch.context() as patch:
        patch.setattr(ids, "txn", lambda self: drawn)
        patch.setattr(ids, "hop", lambda self: "a1" * 8)
        roots = {tenant: await town.grant(tenant, user=f"of-{tenant}") for tenant in (A, B)}
        patch.setattr(ids, "hop", lambda self: "b2" * 8)
        calls, taken = {}, {}
        for tenant in (A, B):
            calls[tenant] = asyncio.create_task(town[tenant, "alice"].call(ASK, drawn, roots[tenant].grant))
            taken[tenant] = await town[tenant, "bob"].took(drawn)
    assert roots[A].txn == roots[B].txn == drawn
    assert taken[A].dispatch.hop == taken[B].dispatch.hop == "b2" * 8
    body = await town[A, "alice"].error(ASK, drawn, roots[B].grant)
    assert body.rule == "grant.tenant"
    assert (await town.ask("POST", f"/api/chains/{drawn}/close?tenant={A}")).status_code == 200
    assert error_of(await calls[A]).code == "CANCELLED"
    assert not calls[B].done()
    await taken[B].done("still here")
    final = (await calls[B])[-1]
    assert isinstance(final, Result) and final.value == "still here"
    for tenant in (A, B):
        records = (await town.told(f"/api/chains/{drawn}?tenant={tenant}"))["records"]
        assert {record["tenant"] for record in records} == {tenant} and records[0]["user"] == f"of-{tenant}"
        evidence = await town.told(f"/api/chains/{drawn}/evidence?tenant={tenant}")
        keys = KeySet.from_jwks(town.lab.broker.keys.jwks())
        found = verify_evidence(read(json.dumps(evidence).encode()), keys, frozenset())
        assert found.verified, found


async def test_an_approval_of_another_tenant_is_neither_shown_nor_decided(town: Town) -> None:
    mail = await town.arena.agent("mail", "mcp", tenant=B)
    await mail.serve({"name": "send", "inputSchema": {"type": "object"}})
    root = await town.grant(B)
    asked = await town[B, "alice"].error("mcp/mail/send", root.txn, root.grant)
    assert asked.code == "APPROVAL_REQUIRED" and asked.approval
    for name in (asked.approval, asked.approval[:6]):
        for method, body in (("GET", None), ("POST", {"verdict": "approve"})):
            refused = await town.ask(method, f"/api/approvals/{name}", body)
            assert refused.status_code == 404 and asked.approval not in refused.json()["error"]["ask"]
    assert (await town.told("/api/approvals?state=all"))["approvals"] == []
    listed = (await town.told(f"/api/approvals?tenant={B}"))["approvals"]
    assert [row["id"] for row in listed] == [asked.approval]
    assert (
        await town.ask("POST", f"/api/approvals/{asked.approval}?tenant={B}", {"verdict": "approve"})
    ).status_code == 200
