"""Token exchange (RFC 8693) through a running broker: what a chain of exchanges may become, and everything that it may not."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from remit_broker.adapters.cedar import Policies
from remit_broker.adapters.jetstream_ledger import Turn
from remit_broker.hop.exchange import asked, exchange, to
from remit_broker.hop.hop import Ask, Hop
from remit_broker.hop.renew import renew
from remit_broker.hop.scan import close_abandoned
from remit_broker.hop.txn import revoke
from remit_broker.testing import Lab, running_broker
from remit_schemas.bundle import verify_bundle
from remit_schemas.envelope import Want
from remit_schemas.errors import Refusal
from remit_schemas.keys import KeySet
from tests.support.oauth import ACCESS, ASSERTION, EXCHANGE, JWT, OAuthClient, assertion, claims_of, error_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

AGENTS = ("alice", "bob", "carol", "dave")
USERS = {"ann": {"roles": ["analyst"]}, "ben": {}, "cap": {}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lab]:
    config = {"limits": {"burst": 1_000_000}, "development": {"issuer": True, "users": USERS}}
    config["caps"] = {"user": {"cap": {"day": "calls=2"}}}
    async with running_broker(tmp_path_factory.mktemp("oauth"), config) as found:
        for name in AGENTS:
            await found.agent(name)
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def web(lab: Lab) -> AsyncIterator[OAuthClient]:
    async with httpx.AsyncClient(base_url=lab.broker.http, trust_env=False) as http:
        yield OAuthClient(lab, http)


async def user_token(web: OAuthClient, user: str) -> str:
    secret = web.lab.broker.keys.local_token
    form = {"grant_type": "password", "username": user, "client_secret": secret}
    token: str = (await web.http.post("/development/token", data=form)).json()["access_token"]
    return token


async def root(web: OAuthClient, *scopes: str, to: str = "alice", **more: Any) -> str:
    return (await web.lab.grant(to, *(scopes or ("mcp/git/*", "agent/**")), **more)).grant


# What it is for


async def test_a_users_token_becomes_a_task_and_each_grant_the_next_ones(web: OAuthClient) -> None:
    """Three agents, one after the other, over HTTP alone; and the chain verifies as one that came about on the bus."""
    first = await web.exchange(await user_token(web, "ann"), "alice", scope="mcp/git/* agent/**")
    assert first.status_code == 200, first.text
    body = first.json()
    assert (
        body["token_type"] == "Bearer"
        and body["issued_token_type"] == ACCESS
        and body["scope"] == "agent/*/* mcp/git/*"
    )
    chain = [body["access_token"]]
    for holder, following in (("alice", "bob"), ("bob", "carol")):
        chain.append(await web.grant(chain[-1], holder, audience=following))
    leaf = claims_of(chain[-1])
    assert (leaf["sub"], leaf["aud"], leaf["act"], leaf["depth"]) == (
        "ann", "carol", {"sub": "bob", "act": {"sub": "alice"}}, 2,
    )  # fmt: skip
    keys = KeySet.from_jwks(web.lab.broker.keys.jwks())
    verify_bundle(chain, keys, issuer=web.lab.broker.settings.config.issuer, now=time.time(), audience="carol")
    records = await web.lab.records(leaf["txn"])
    assert [record["kind"] for record in records] == ["txn.opened", "hop.opened", "hop.opened"]
    # Record before token: each names the hash of what is in the ledger.
    assert [claims_of(token)["rec"] for token in chain] == [record["hash"] for record in records]
    assert records[0]["roles"] == ["analyst"] and records[0]["auth"] == "oidc:development"


async def test_what_was_handed_on_is_of_use_on_the_bus(web: OAuthClient) -> None:
    """The grant that bob got over HTTP is bob's: renewed by him, ended by him, and then its budget is back."""
    parent = await root(web)
    child = await web.grant(parent, "alice", audience="bob", budget="calls=5,usd=0.1")
    assert claims_of(child)["budget"]["calls"] == 5
    assert await web.active(child, "carol")
    early = await web.post("/oauth/token", "bob", grant_type="refresh_token", refresh_token=child)
    assert error_of(early) == "slow_down" and early.json()["remit"]["rule"] == "renew.early"
    done = await web.post("/oauth/revoke", "bob", token=child)
    assert done.status_code == 200
    assert not await web.active(child, "carol")
    txn = claims_of(child)["txn"]
    fold = await web.lab.broker.ports.ledger.newest("default", txn)
    closed = next(r for r in await web.lab.records(txn) if r["kind"] == "hop.closed")
    assert closed["outcome"] == "ok" and closed["unmetered"] and fold.totals.left.calls == 99
    assert await web.active(parent, "alice")


# Scope, budget, depth, time: only narrower


async def test_a_wider_scope_is_refused_and_not_cut(web: OAuthClient) -> None:
    held = await root(web, "mcp/git/*", "agent/**")
    for wider in ("mcp/**", "**", "mcp/git/* mcp/mail/*", "mcp/mail/send"):
        assert error_of(await web.exchange(held, "alice", audience="bob", scope=wider)) == "invalid_scope"
    details = [{"type": "remit", "resource": "mcp/git/log", "args": {"repo": {"prefix": "a/"}}}]
    narrow = await web.grant(
        held,
        "alice",
        audience="bob",
        authorization_details=json.dumps([*details, {"type": "remit", "resource": "agent/carol/*"}]),
    )
    assert claims_of(narrow)["authorization_details"][1]["args"] == details[0]["args"]
    # And what was narrowed once stays so.
    for wider in ("mcp/git/log", "mcp/git/*"):
        assert error_of(await web.exchange(narrow, "bob", audience="carol", scope=wider)) == "invalid_scope"
    other = json.dumps([{**details[0], "args": {"repo": {"prefix": "b/"}}}])
    assert error_of(await web.exchange(narrow, "bob", audience="carol", authorization_details=other)) == "invalid_scope"


async def test_nothing_else_grows_either(web: OAuthClient) -> None:
    held = await root(web, max_depth=2, budget="calls=10,usd=0.5", ttl=30)
    assert error_of(await web.exchange(held, "alice", audience="bob", budget="calls=11")) == "invalid_request"
    assert error_of(await web.exchange(held, "alice", audience="bob", budget="usd=0.6")) == "invalid_request"
    assert error_of(await web.exchange(held, "alice", audience="bob", max_depth="3")) == "invalid_target"
    child = claims_of(await web.grant(held, "alice", audience="bob", ttl="600", budget="calls=9"))
    assert child["exp"] <= claims_of(held)["exp"] and child["max_depth"] == 2
    # What one exchange holds, another cannot hold again.
    again = await web.exchange(held, "alice", audience="carol", budget="calls=9")
    assert again.json()["remit"]["code"] == "BUDGET_EXCEEDED"


async def test_an_agent_that_the_scope_does_not_name_gets_nothing(web: OAuthClient) -> None:
    held = await root(web, "mcp/git/*", "agent/bob/*")
    assert error_of(await web.exchange(held, "alice", audience="carol")) == "invalid_scope"
    assert await web.grant(held, "alice", audience="bob")
    assert error_of(await web.exchange(await root(web, "mcp/git/*"), "alice", audience="bob")) == "invalid_scope"


# The chain


async def test_depth_ends_and_nobody_comes_twice(web: OAuthClient) -> None:
    held = await root(web, max_depth=2)
    bob = await web.grant(held, "alice", audience="bob")
    for again in ("bob", "alice"):
        no = await web.exchange(bob, "bob", audience=again)
        assert error_of(no) == "invalid_target" and no.json()["remit"]["code"] == "CYCLE"
    carol = await web.grant(bob, "bob", audience="carol")
    deep = await web.exchange(carol, "carol", audience="dave")
    assert error_of(deep) == "invalid_target" and deep.json()["remit"]["code"] == "DEPTH_EXCEEDED"


async def test_grants_of_two_chains_are_not_spliced(web: OAuthClient) -> None:
    """A grant of one task as the subject, one of another task as the actor: neither chain becomes part of the other."""
    anns, bens = await root(web), await root(web, to="bob", user="ben")
    for actor in (bens, await web.grant(anns, "alice", audience="bob")):
        for kind in (ACCESS, JWT):
            no = await web.exchange(anns, "alice", audience="bob", actor_token=actor, actor_token_type=kind)
            assert error_of(no) == "invalid_request" and no.json()["remit"]["rule"] == "oauth.actor"
    # Parts of two grants are no grant.
    head, payload, _ = anns.split(".")
    for token in (f"{head}.{payload}.{bens.split('.')[2]}", f"{head}.{bens.split('.')[1]}.{anns.split('.')[2]}"):
        assert error_of(await web.exchange(token, "alice", audience="bob")) == "invalid_request"


async def test_no_actor_is_lost_or_made_up(web: OAuthClient) -> None:
    """An ``act`` that is taken out, cut or replaced makes no grant; nor does any that the request brings."""
    child = await web.grant(await root(web), "alice", audience="bob")
    from tests.support.issuers import b64

    head, _, signature = child.split(".")
    claims = claims_of(child)
    for change in (
        {"act": None},
        {"act": {"sub": "mallory"}},
        {"act": {"sub": "alice", "act": {"sub": "x"}}},
        {"depth": 0},
    ):
        forged = {name: value for name, value in {**claims, **change}.items() if value is not None}
        assert (
            error_of(await web.exchange(f"{head}.{b64(forged)}.{signature}", "bob", audience="carol"))
            == "invalid_request"
        )
    grown = claims_of(await web.grant(child, "bob", audience="carol", act='{"sub":"mallory"}', actor="mallory"))
    assert grown["act"] == {"sub": "bob", "act": {"sub": "alice"}} and grown["sub"] == "ann"


async def test_a_grant_of_somebody_else_is_not_handed_on(web: OAuthClient) -> None:
    held = await root(web)
    for thief in ("bob", "carol"):
        no = await web.exchange(held, thief, audience=thief)
        assert error_of(no) == "invalid_request" and no.json()["remit"]["rule"] == "oauth.holder"
    child = await web.grant(held, "alice", audience="bob")
    assert error_of(await web.exchange(child, "alice", audience="carol")) == "invalid_request"
    assert (
        error_of(await web.post("/oauth/token", "carol", grant_type="refresh_token", refresh_token=child))
        == "invalid_request"
    )


async def test_an_actor_token_of_somebody_else_names_nobody(web: OAuthClient) -> None:
    held = await root(web)

    async def with_actor(token: str, **form: str) -> httpx.Response:
        return await web.exchange(held, "alice", actor_token=token, actor_token_type=JWT, **form)

    assert claims_of((await with_actor(assertion(web.lab, "bob"))).json()["access_token"])["aud"] == "bob"
    assert error_of(await with_actor(assertion(web.lab, "bob"), audience="carol")) == "invalid_target"
    assert error_of(await with_actor(assertion(web.lab, "bob", key="carol"))) == "invalid_request"
    assert error_of(await with_actor(await user_token(web, "ann"), audience="bob")) == "invalid_request"
    # A user's task for another agent: only with that one's word.
    token = await user_token(web, "ann")
    assert error_of(await web.exchange(token, "alice", audience="bob", scope="mcp/git/*")) == "invalid_target"
    form = {"actor_token": assertion(web.lab, "bob"), "actor_token_type": JWT, "scope": "mcp/git/*"}
    assert claims_of(await web.grant(token, "alice", **form))["aud"] == "bob"


async def test_a_grant_for_nobody_known_is_refused(web: OAuthClient) -> None:
    held = await root(web)
    await web.lab.agent("files", kind="mcp")
    for audience in ("nobody", "files", "remit", "Bob", "bob carol", "../bob", "https://bob.example", "*"):
        assert error_of(await web.exchange(held, "alice", audience=audience)) == "invalid_target", audience
    assert error_of(await web.exchange(held, "alice")) == "invalid_target"


# What ends


async def test_a_grant_is_active_while_its_hop_is_open(web: OAuthClient) -> None:
    """Introspection asks the ledger: after the revocation of any ancestor, everything below is dead at once, and can do nothing."""
    for cut in range(3):
        chain = [await root(web)]
        for holder, following in (("alice", "bob"), ("bob", "carol")):
            chain.append(await web.grant(chain[-1], holder, audience=following))
        assert [await web.active(token, "dave") for token in chain] == [True] * 3
        response = await web.post("/oauth/revoke", "alice", token=chain[cut])
        assert response.status_code == 200
        assert [await web.active(token, "dave") for token in chain] == [at < cut for at in range(3)]
        no = await web.exchange(chain[2], "carol", audience="dave")
        assert no.json()["remit"]["code"] == "GRANT_REVOKED"
    held = await root(web)
    child = await web.grant(held, "alice", audience="bob")
    txn = claims_of(held)["txn"]
    await revoke("default", f"{txn}.{claims_of(held)['jti'].split('.')[1]}.1", "an operator", "", web.lab.broker.ports)
    assert not await web.active(child, "dave")


async def test_nothing_is_handed_on_for_what_is_revoked(web: OAuthClient) -> None:
    held, local = await root(web), {"Authorization": f"Bearer {web.lab.broker.keys.local_token}"}
    child = await web.grant(held, "alice", audience="bob")
    for what in ({"agent": "carol"}, {"user": "ann"}, {"agent": "alice"}):
        assert (await web.http.post("/api/revocations", json=what, headers=local)).status_code == 200
        try:
            no = await web.exchange(held, "alice", audience="carol")
            assert no.json()["remit"]["code"] in ("POLICY_DENIED", "GRANT_REVOKED"), no.text
            assert await web.active(child, "dave") is (what == {"agent": "carol"})
        finally:
            await web.http.post("/api/revocations/reinstate", json=what, headers=local)
    assert await web.active(child, "dave")


FORBID = """
@id("no-dave")
@reason("not Dave any more")
forbid (principal, action == Action::"delegate", resource == Skill::"agent/dave/$delegate");
"""


@pytest.mark.parametrize("what", ["policy", "key"])
async def test_nothing_is_handed_on_that_policy_forbids_by_then(
    web: OAuthClient, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Between the decision and the durable record a policy comes in force, or another key is registered under the agent's name."""
    held, broker = await root(web), web.lab.broker
    folder = broker.policy.folder

    async def change(turn: Turn, record: Any, grant: Any) -> Any:
        monkeypatch.undo()
        if what == "policy":
            (folder / "no-dave.cedar").write_text(FORBID)
            broker.policy.put(Policies.read(folder))
        else:
            await broker.registries.of("default").remove("dave")
            await web.lab.agent("dave")
        return await turn.append(record, grant)

    monkeypatch.setattr(Turn, "append", change)
    try:
        no = (await web.exchange(held, "alice", audience="dave")).json()
    finally:
        (folder / "no-dave.cedar").unlink(missing_ok=True)
        broker.policy.put(Policies.read(folder))
    assert no["remit"]["code"] == "POLICY_DENIED", no
    closed = (await web.lab.records(claims_of(held)["txn"]))[-1]
    assert (closed["kind"], closed["outcome"], closed["code"]) == ("hop.closed", "error", "POLICY_DENIED")
    assert (closed["effect"], closed["spent"]) == ("none", {"usd_micros": 0, "tokens": 0, "calls": 1})


async def test_an_exchange_whose_caller_goes_away_leaves_nothing_handed_on(
    web: OAuthClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, ports = await root(web), web.lab.broker.ports_of("default")
    claims, asking = claims_of(held), asyncio.Event()

    async def slow(turn: Turn, record: Any, grant: Any) -> Any:
        monkeypatch.undo()
        asking.set()
        appended = await turn.append(record, grant)
        await asyncio.sleep(0)
        return appended

    monkeypatch.setattr(Turn, "append", slow)
    ask = Ask(
        tenant="default", caller="alice", txn=claims["txn"], resource=to("bob"), reply="", data=b"", at=ports.clock.now(),
        mono=ports.clock.monotonic(),
    )  # fmt: skip
    work = asyncio.ensure_future(exchange(ask, asked(held, Want()), ports, None))
    await asking.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    opened, closed = (await web.lab.records(claims["txn"]))[1:]
    assert (opened["kind"], closed["kind"], closed["outcome"]) == ("hop.opened", "hop.closed", "error")
    assert (closed["effect"], closed["code"], closed["spent"]["calls"]) == ("none", "CANCELLED", 1)
    (refused,) = await web.lab.refusals(claims["txn"])
    assert (refused["hop"], refused["code"], refused["stage"]) == (opened["hop"], "CANCELLED", "dispatch")


async def test_beginning_tasks_is_counted_in_the_caps(web: OAuthClient) -> None:
    """An agent with a user's token begins no tasks without end: each counts as a call of the user and of the agent."""
    token = await user_token(web, "cap")
    for _ in range(2):
        assert (await web.exchange(token, "alice", scope="mcp/git/*")).status_code == 200
    no = (await web.exchange(token, "alice", scope="mcp/git/*")).json()
    assert (no["remit"]["code"], no["remit"]["rule"]) == ("BUDGET_EXCEEDED", "caps.user.day"), no


async def test_what_was_handed_on_outlives_the_replica_that_minted_it(
    web: OAuthClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No replica waits for its end: one that falls silent neither ends it nor keeps its holder from renewing."""
    held, ports = await root(web), web.lab.broker.ports_of("default")
    child = claims_of(token := await web.grant(held, "alice", audience="bob"))
    monkeypatch.setattr(type(ports.revocations), "silence", lambda *_: 1e9)
    hop = child["jti"].split(".")[1]
    assert await close_abandoned([("default", child["txn"], hop)], -1e9, ports) == 0
    assert (await ports.ledger.newest("default", child["txn"])).is_open(hop)
    ask = Ask(
        tenant="default", caller="bob", txn=child["txn"], resource=to("bob"), reply="", data=b"", at=ports.clock.now(),
        mono=ports.clock.monotonic(),
    )  # fmt: skip
    with pytest.raises(Refusal) as no:
        await renew(Hop(ask=ask, id=ports.ids.hop(), request=asked(token, Want())), ports)
    assert no.value.body.rule == "renew.early", "it is only too early"


async def test_a_stranger_revokes_nothing(web: OAuthClient) -> None:
    child = await web.grant(await root(web), "alice", audience="bob")
    assert error_of(await web.post("/oauth/revoke", "carol", token=child)) == "invalid_grant"
    for junk in ("x", "a.b.c", child[:-4] + "AAAA", "null"):
        assert (await web.post("/oauth/revoke", "carol", token=junk)).status_code == 200
    assert await web.active(child, "carol")
    assert (await web.post("/oauth/revoke", "alice", token=child)).status_code == 200
    assert not await web.active(child, "carol")
    assert error_of(await web.post("/oauth/revoke", "alice")) == "invalid_request"


async def test_introspection_is_for_agents_and_operators(web: OAuthClient) -> None:
    held = await root(web)
    assert (await web.post("/oauth/introspect", token=held)).status_code in (400, 401)
    local = {"Authorization": f"Bearer {web.lab.broker.keys.local_token}"}
    found = (await web.http.post("/oauth/introspect", data={"token": held}, headers=local)).json()
    assert (
        found["active"] and found["sub"] == found["username"] == "ann" and found["aud"] == found["client_id"] == "alice"
    )
    assert found["scope"] == "agent/*/* mcp/git/*" and "authorization_details" in found
    for junk in ("x", held[:-4] + "AAAA", await user_token(web, "ann")):
        assert (await web.http.post("/oauth/introspect", data={"token": junk}, headers=local)).json() == {
            "active": False
        }


async def test_introspection_says_when_nobody_can_tell(web: OAuthClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that has not heard of revocations calls nothing active, and nothing inactive that may be active."""
    child = await web.grant(await root(web), "alice", audience="bob")
    proof = {"client_assertion_type": ASSERTION, "client_assertion": assertion(web.lab, "carol")}
    with monkeypatch.context() as deaf:
        deaf.setattr(type(web.lab.broker.ports.revocations), "fresh", False)
        no = await web.post("/oauth/introspect", token=child, **proof)
        assert no.status_code == 503 and error_of(no) == "temporarily_unavailable" and no.headers["retry-after"]
    assert await web.active(child, "carol")


# Who asks


async def test_an_assertion_counts_once_here_and_for_its_agent_alone(web: OAuthClient) -> None:
    held, now = await root(web), int(time.time())

    async def asked(proof: str, **form: str) -> httpx.Response:
        more = {"client_assertion_type": ASSERTION, "client_assertion": proof, "audience": "bob", **form}
        return await web.exchange(held, **more)

    good = assertion(web.lab, "alice")
    assert (await asked(good)).status_code == 200
    lies = {
        "used before": good,
        "signed by another": assertion(web.lab, "alice", key="bob"),
        "for another server": assertion(web.lab, "alice", aud="https://elsewhere.example/token"),
        "for several": assertion(
            web.lab, "alice", aud=[f"{web.lab.broker.http}/oauth/token", "https://elsewhere.example"]
        ),
        "expired": assertion(web.lab, "alice", exp=now - 1),
        "without an end": assertion(web.lab, "alice", exp=None),
        "lives for a day": assertion(web.lab, "alice", exp=now + 86400),
        "of tomorrow": assertion(web.lab, "alice", nbf=now + 3600),
        "without an id": assertion(web.lab, "alice", jti=None),
        "about another": assertion(web.lab, "alice", sub="bob"),
        "of nobody": assertion(web.lab, "mallory", key="alice"),
        "with a key of its own": assertion(web.lab, "alice", key="bob", header={"jwk": {"kty": "OKP"}}),
        "unsigned": assertion(web.lab, "alice", header={"alg": "none"}),
        "symmetric": assertion(web.lab, "alice", header={"alg": "HS256"}),
        "a grant": held,
        "nothing": "x",
    }
    for why, proof in lies.items():
        no = await asked(proof)
        assert no.status_code == 401 and error_of(no) == "invalid_client", why
        assert "www-authenticate" in no.headers
    assert error_of(await asked(assertion(web.lab, "alice"), client_id="bob")) == "invalid_client"
    assert error_of(await asked(assertion(web.lab, "alice"), client_assertion_type="other")) == "invalid_client"
    assert error_of(await web.exchange(held, client_id="alice", client_secret="x", audience="bob")) == "invalid_client"
    basic = await web.http.post("/oauth/token", data={"grant_type": EXCHANGE}, auth=("alice", "x"))
    assert error_of(basic) == "invalid_client"


async def test_where_a_proof_is_demanded_a_token_alone_is_not_enough(web: OAuthClient, tmp_path: Any) -> None:
    config = {"oauth": {"client_auth": "required"}, "development": {"issuer": True, "users": USERS}}
    async with running_broker(tmp_path, config) as lab:
        await lab.agent("alice"), await lab.agent("bob")
        async with httpx.AsyncClient(base_url=lab.broker.http, trust_env=False) as http:
            strict = OAuthClient(lab, http)
            held = await root(strict)
            for response in (
                await strict.exchange(held, audience="bob"),
                await strict.exchange(await user_token(strict, "ann"), audience="bob", scope="mcp/git/*"),
                await strict.post("/oauth/token", grant_type="refresh_token", refresh_token=held),
                await strict.post("/oauth/revoke", token=held),
            ):
                assert response.status_code == 401 and error_of(response) == "invalid_client"
            assert await strict.grant(held, "alice", audience="bob")
    # Where it is not, a grant is a bearer token here as it is at /mcp, and gives no more than it has.
    held = await root(web)
    assert claims_of(await web.grant(held, audience="bob"))["act"] == {"sub": "alice"}
    assert error_of(await web.exchange(held, audience="bob", scope="**")) == "invalid_scope"


async def test_a_token_that_is_not_the_users_begins_nothing(web: OAuthClient) -> None:
    token = await user_token(web, "ann")
    head, payload, signature = token.split(".")
    for bad in (token[:-6] + "AAAAAA", f"{head}.{payload}.", "x.y.z", "", f"{head}.{payload}.{signature}.x.y"):
        no = await web.exchange(bad, "alice", scope="mcp/git/*")
        assert error_of(no) == "invalid_request" and (token not in no.text)
    assert error_of(await web.exchange(token, "alice")) == "invalid_scope"
    assert error_of(await web.exchange(token, "alice", scope='mcp/git/log{"a":{"eq":1}}')) == "invalid_scope"


# The form of it


async def test_a_parameter_that_is_there_twice_is_refused(web: OAuthClient) -> None:
    held = await root(web)
    form = [("grant_type", EXCHANGE), ("subject_token", held), ("subject_token_type", ACCESS), ("audience", "bob")]
    from urllib.parse import urlencode

    async def raw(
        pairs: list[tuple[str, str]], kind: str = "application/x-www-form-urlencoded", at: str = "/oauth/token"
    ) -> httpx.Response:
        return await web.http.post(at, content=urlencode(pairs), headers={"Content-Type": kind})

    assert (await raw(form)).status_code == 200
    assert error_of(await raw([*form, ("audience", "carol")])) == "invalid_request"
    assert error_of(await raw([*form, ("subject_token", held)])) == "invalid_request"
    assert error_of(await raw(form, "application/json")) == "invalid_request"
    assert error_of(await raw(form, at=f"/oauth/token?audience=carol&x={secrets.token_hex(2)}")) == "invalid_request"
    assert error_of(await raw([("grant_type", "password"), ("username", "ann")])) == "unsupported_grant_type"
    assert error_of(await raw([("x", "y")])) == "invalid_request"
    assert error_of(await raw([("grant_type", EXCHANGE), ("x", "y" * 70_000)])) == "invalid_request"
    assert (await web.http.get("/oauth/token")).status_code == 405
    assert (
        error_of(await raw([*form[:2], ("subject_token_type", "urn:ietf:params:oauth:token-type:saml2"), form[3]]))
        == "invalid_request"
    )
    assert (
        error_of(await raw([*form, ("requested_token_type", "urn:ietf:params:oauth:token-type:saml2")]))
        == "invalid_request"
    )


async def test_the_metadata_says_what_there_is(web: OAuthClient) -> None:
    base = web.lab.broker.http
    about = (await web.http.get("/.well-known/oauth-authorization-server")).json()
    assert about["issuer"] == base and about["token_endpoint"] == f"{base}/oauth/token"
    assert EXCHANGE in about["grant_types_supported"]
    for path in ("/mcp", "/mcp/git"):
        found = (await web.http.get(f"/.well-known/oauth-protected-resource{path}")).json()
        assert found["resource"] == base + path and found["authorization_servers"] == [base]
    assert (await web.http.get("/.well-known/oauth-protected-resource")).json()["resource"] == f"{base}/mcp"
    for path in ("/mcp/Git", "/mcp/git/x", "/other", "/mcp/../x", "/mcp/"):
        assert (await web.http.get(f"/.well-known/oauth-protected-resource{path}")).status_code == 404, path
