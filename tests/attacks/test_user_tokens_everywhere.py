"""The same attacks on users' tokens over every way in: the bus, the API for a user, and the API as an operator.

Where one transport checks and another does not, only the second matters.
"""

from __future__ import annotations

import collections
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from remit import Agent, Refused, open_task
from remit_broker.core.issuers import DEV_PATH
from remit_broker.core.times import rfc3339
from remit_broker.edges.http.turned_away import AT_THE_DOOR
from remit_broker.testing import Lab, running_broker
from remit_schemas.errors import Code, refusal
from tests.support.issuers import Issuer, b64, rsa_key, serving
from tests.support.oauth import ACCESS, EXCHANGE, claims_of, error_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

POLICY = """@id("analysts")
@reason("analysts of the research group may, with the portal")
permit (principal, action, resource) when
  { context.user in Role::"analyst" && context.user in Group::"research" && context.client == "portal" };
@id("release")
@reason("results may pass")
permit (principal, action == Action::"release", resource);
@id("payers")
@reason("payers may, if somebody else agrees")
@approve("look at it; role=approver; four-eyes")
permit (principal, action == Action::"delegate", resource) when { context.user in Role::"payer" };
@id("approvers")
@reason("approvers may decide")
permit (principal in Role::"approver", action == Action::"approve", resource);
"""


class House:
    """A broker that knows one issuer, for users and for operators."""

    def __init__(self, lab: Lab, issuer: Issuer, credentials: Path, http: httpx.AsyncClient) -> None:
        self.lab, self.issuer, self.credentials, self.http = lab, issuer, credentials, http

    async def by_bus(self, token: str) -> str:
        """Open a task as an agent that was handed ``token``; the user of its first record. Raises Refused."""
        async with open_task(
            token=token, scopes=["agent/portal/*"], as_="portal", credentials=self.credentials
        ) as task:
            user: str = (await self.lab.records(task.txn))[0]["user"]
            return user

    async def by_body(self, token: str) -> str:
        """The same over HTTP, with a good operator's own token in the header."""
        body = {"agent": "portal", "scopes": [{"type": "remit", "resource": "agent/portal/*"}], "token": token,
                "budget": {"usd_micros": 1, "tokens": 1, "calls": 1}}  # fmt: skip
        return await self._opened(body, self.issuer.token(sub="olga", roles=["operator"]))

    async def by_header(self, token: str) -> str:
        """For the caller themself."""
        body = {"agent": "portal", "scopes": [{"type": "remit", "resource": "agent/portal/*"}],
                "budget": {"usd_micros": 1, "tokens": 1, "calls": 1}}  # fmt: skip
        return await self._opened(body, token)

    async def by_exchange(self, token: str) -> str:
        """By the exchange of OAuth, for whoever has the token in hand."""
        form = {
            "grant_type": EXCHANGE, "subject_token": token, "subject_token_type": ACCESS, "audience": "portal",
            "scope": "agent/portal/*",
        }  # fmt: skip
        response = await self.http.post("/oauth/token", data=form)
        if response.status_code != 200:
            assert error_of(response) in ("invalid_request", "temporarily_unavailable"), response.text
            raise Rejected(response.json()["remit"], response.text)
        txn = claims_of(response.json()["access_token"])["txn"]
        user: str = (await self.lab.records(txn))[0]["user"]
        return user

    async def _opened(self, body: dict[str, Any], bearer: str) -> str:
        response = await self.http.post("/api/grants", json=body, headers={"Authorization": f"Bearer {bearer}"})
        told = response.json()
        if response.status_code != 200:
            assert response.status_code in (400, 401, 403, 413, 503), response.text
            raise Rejected(told["error"], response.text)
        user: str = (await self.lab.records(told["txn"]))[0]["user"]
        return user


class Rejected(Exception):  # noqa: N818
    """What the API said."""

    def __init__(self, error: dict[str, Any], text: str) -> None:
        super().__init__(error["rule"])
        self.error, self.text = error, text


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    folder = tmp_path_factory.mktemp("house")
    with serving(Issuer()) as issuer:
        config = {
            "http": {"port": 0, "auth": "issuer"},
            "issuers": [
                {
                    "name": "corp", "issuer": issuer.url, "audience": ["remit"], "agents": ["portal", "desk"],
                    "claims": {"roles": "roles", "groups": "groups", "tenant": {"claim": "org", "map": {"1": "default", "2": "acme"}}},
                    "operators": {name: [f"role:{name}"] for name in ("viewer", "approver", "operator", "admin")},
                }
            ],
        }  # fmt: skip
        issuer_claims = issuer.claims

        def claims(**changes: Any) -> dict[str, Any]:
            return issuer_claims(**{"org": "1"} | changes)

        issuer.claims = claims  # type: ignore[method-assign]
        async with running_broker(folder, config, [("p.cedar", POLICY)]) as lab:
            credentials = await lab.agent("portal")
            await lab.agent("desk")
            await lab.agent("rogue")
            async with httpx.AsyncClient(base_url=lab.broker.http, trust_env=False) as http:
                yield House(lab, issuer, credentials, http)


WAYS = ["by_bus", "by_body", "by_header", "by_exchange"]
Forged = Callable[[Issuer], str]


def swapped(issuer: Issuer) -> str:
    """Somebody else's name over a good signature."""
    head, _, signature = issuer.token().split(".")
    return f"{head}.{b64(issuer.claims(sub='root'))}.{signature}"


def unsigned(issuer: Issuer) -> str:
    return f"{b64({'alg': 'none', 'typ': 'at+jwt'})}.{b64(issuer.claims())}.{b64(b'x')}"


def twice(issuer: Issuer) -> str:
    head, _, signature = issuer.token().split(".")
    return f"{head}.{b64(json.dumps(issuer.claims())[:-1] + ',' + json.dumps({'sub': 'root'})[1:])}.{signature}"


FORGED: dict[str, tuple[str, Forged]] = {
    "no token": ("identity.form", lambda _: "x" * 40),
    "unsigned": ("identity.algorithm", unsigned),
    "another's name": ("identity.signature", swapped),
    "a name twice": ("identity.form", twice),
    "another key": ("identity.signature", lambda i: i.token(key=rsa_key("attacker"))),
    "an unknown key": ("identity.key", lambda i: i.token(kid="nobody")),
    "a key in the header": ("identity.header", lambda i: i.token(header={"jku": "https://attacker.example/jwks"})),
    "another algorithm": ("identity.algorithm", lambda i: i.token(alg="RS512")),
    "another issuer": ("identity.issuer", lambda i: i.token(iss="https://attacker.example")),
    "another audience": ("identity.audience", lambda i: i.token(aud="mail")),
    "another kind": ("identity.type", lambda i: i.token(header={"typ": "JWT"})),
    "expired": ("identity.expired", lambda i: i.token(iat=int(time.time()) - 600, exp=int(time.time()) - 60)),
    "not yet": ("identity.future", lambda i: i.token(nbf=int(time.time()) + 600)),
    "no end": ("identity.time", lambda i: i.token(exp=None)),
    "no user": ("identity.claim", lambda i: i.token(sub=None)),
    "overage": ("identity.overage", lambda i: i.token(groups=None, _claim_names={"groups": "src1"})),
    "another tenant": ("identity.tenant", lambda i: i.token(org="2")),
    "no tenant": ("identity.claim", lambda i: i.token(org=None)),
    "a tenant nobody mapped": ("identity.claim", lambda i: i.token(org="default")),
    "with an actor": ("identity.actor", lambda i: i.token(act={"sub": "desk"})),
    "for another to act": ("identity.may_act", lambda i: i.token(may_act={"sub": "desk"})),
    "for nobody to act": ("identity.may_act", lambda i: i.token(may_act="portal")),
    "too large": ("identity.size", lambda i: i.token(pad="x" * 17_000)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FORGED)
async def test_no_forged_token_gets_in_anywhere(
    house: House, way: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    rule, forge = FORGED[name]
    token = forge(house.issuer)
    open_: Callable[[str], Awaitable[str]] = getattr(house, way)
    caplog.set_level(logging.DEBUG)
    with pytest.raises((Refused, Rejected)) as caught:
        await open_(token)
    no = caught.value
    if isinstance(no, Refused):
        said, text = no.rule, repr(no.body)
    else:
        assert isinstance(no, Rejected)
        said, text = no.error["rule"], no.text
    assert said == rule
    # INVARIANT of the whole thing: no text of a token is anywhere it does not belong.
    parts = [part for part in token.split(".") if len(part) > 12]
    assert not any(part in text or part in caplog.text for part in parts)


@pytest.mark.parametrize("way", WAYS)
async def test_may_act_names_the_only_agent(house: House, way: str) -> None:
    """RFC 8693 §4.4, through every door: the agent that the user's token names acts with it, and no other."""
    assert await getattr(house, way)(house.issuer.token(may_act={"sub": "portal"})) == "ann"
    for other in ("desk", "rogue", "Portal", "portal "):
        with pytest.raises((Refused, Rejected)):
            await getattr(house, way)(house.issuer.token(may_act={"sub": other}))


async def test_a_token_with_an_actor_begins_no_task(house: House) -> None:
    """RFC 8693 §4.1: in the chain of the task, whoever acts with it already would be missing."""
    for act in ({"sub": "portal"}, {}, "portal"):
        with pytest.raises(Rejected) as caught:
            await house.by_exchange(house.issuer.token(act=act))
        assert caught.value.error["rule"] == "identity.actor"


@pytest.mark.parametrize("way", WAYS)
async def test_a_good_token_gets_in_everywhere(house: House, way: str) -> None:
    assert await getattr(house, way)(house.issuer.token()) == "ann"


async def test_the_record_says_who_with_which_roles_and_by_which_token(house: House) -> None:
    token = house.issuer.token(jti="t-7", groups=["research", "audit"])
    async with open_task(
        token=token, scopes=["agent/*/*"], budget="usd=0.5,calls=7", ttl=60, as_="portal", credentials=house.credentials
    ) as task:
        txn = task.txn
    first, last = await house.lab.records(txn)
    assert {name: first[name] for name in ("user", "auth", "issuer", "client", "token", "roles", "groups", "agent")} == {
        "user": "ann", "auth": "oidc:corp", "issuer": house.issuer.url, "client": "portal", "token": "t-7",
        "roles": ["analyst"], "groups": ["audit", "research"], "agent": "portal",
    }  # fmt: skip
    assert last["kind"] == "txn.closed" and last["who"] == "portal"
    stored = b"".join(path.read_bytes() for path in house.lab.folder.rglob("*") if path.is_file())
    assert all(part.encode() not in stored for part in token.split("."))


async def test_an_agent_that_the_issuer_does_not_name_begins_no_task(house: House) -> None:
    rogue = house.lab.folder / "credentials" / "rogue.json"
    with pytest.raises(Refused) as caught:
        async with open_task(token=house.issuer.token(), scopes=["agent/*/*"], as_="rogue", credentials=rogue):
            pass
    assert caught.value.rule == "identity.agent"
    # Nor does the API give it one.
    body = {
        "agent": "rogue",
        "scopes": [{"type": "remit", "resource": "**"}],
        "budget": {"usd_micros": 1, "tokens": 1, "calls": 1},
    }
    bearer = {"Authorization": f"Bearer {house.issuer.token()}"}
    assert (await house.http.post("/api/grants", json=body, headers=bearer)).json()["error"]["rule"] == "identity.agent"


async def test_policy_sees_the_roles_of_the_user_at_every_hop(house: House) -> None:
    """An analyst's call is permitted, the same call of somebody else is not; two hops deep."""
    desk = Agent("desk", credentials=house.lab.folder / "credentials" / "desk.json")
    portal = Agent("portal", credentials=house.credentials)

    @desk.skill
    async def look(hop: Any) -> str:
        return "seen"

    @portal.skill
    async def ask(hop: Any) -> str:
        return str(await hop.call("agent/desk/look"))

    await desk.start()
    await portal.start()
    try:
        for roles, good in ((["analyst"], True), (["guest"], False)):
            grant = await portal.open(house.issuer.token(roles=roles), scopes=["agent/**"])
            async with portal.task(grant) as task:
                if good:
                    assert await task.call("agent/desk/look") == "seen"
                else:
                    with pytest.raises(Refused) as caught:
                        await task.call("agent/desk/look")
                    assert caught.value.code == "POLICY_DENIED"
                await task.close()
    finally:
        await desk.stop()
        await portal.stop()


# Operators

READ, OPERATE = ("GET", "/api/agents"), ("POST", "/api/servers/reload")


@pytest.mark.parametrize(
    ("roles", "reads", "operates"),
    [
        ([], 403, 403),
        (["analyst"], 403, 403),
        (["viewer"], 200, 403),
        (["approver"], 200, 403),
        (["operator"], 200, 200),
        (["admin"], 200, 200),
    ],
)
async def test_an_operator_does_what_the_role_permits_and_no_more(
    house: House, roles: list[str], reads: int, operates: int
) -> None:
    bearer = {"Authorization": f"Bearer {house.issuer.token(roles=roles)}"}
    for (method, path), status in ((READ, reads), (OPERATE, operates)):
        response = await house.http.request(method, path, headers=bearer)
        assert response.status_code == status, response.text
        if status == 403:
            assert response.json()["error"]["rule"] in ("operators.read", "operators.operate")


async def test_every_route_of_the_api_asks_for_a_role(house: House) -> None:
    """A valid token without any role opens nothing, whatever the route."""
    routes = [
        (route.path, next(iter(route.methods - {"HEAD"}))) for route in _routes(house) if route.path.startswith("/api/")
    ]
    bearer = {"Authorization": f"Bearer {house.issuer.token(roles=[])}"}
    assert len(routes) > 10
    for path, method in routes:
        concrete = (
            path.replace("{txn}", "0" * 31 + "1")
            .replace("{hop}", "0" * 15 + "1")
            .replace("{name}", "x")
            .replace("{id}", "abcd")
            .replace("{prefix}", "ab")
        )
        response = await house.http.request(method, concrete, headers=bearer, json={} if method == "POST" else None)
        if path == "/api/grants":
            assert response.status_code == 400  # may open tasks for themself; this one names no agent
        elif path == "/api/secrets" and method == "GET":
            assert response.json() == {"secrets": []}  # everybody's own, and nobody else's
        elif path.startswith("/api/secrets"):
            assert response.status_code == 400, (
                method,
                path,
                response.text,
            )  # may keep secrets of their own; this names no server
        else:
            assert response.status_code == 403, (method, path, response.text)
        assert (await house.http.request(method, concrete)).status_code == 401


def _routes(house: House) -> Any:
    server = house.lab.broker._stack._exit_callbacks  # type: ignore[attr-defined]
    for _, callback in server:
        owner = getattr(getattr(callback, "__wrapped__", callback), "__self__", None)
        found = getattr(owner, "_server", None)
        if found is not None:
            return found.config.app.routes
    raise AssertionError("no HTTP server")


async def test_a_user_opens_tasks_for_nobody_else(house: House) -> None:
    body = {
        "agent": "portal",
        "scopes": [{"type": "remit", "resource": "**"}],
        "budget": {"usd_micros": 1, "tokens": 1, "calls": 1},
    }
    for roles, more, rule in (
        (["analyst"], {"user": "root"}, "operators.operate"),
        (["analyst"], {"roles": ["admin"]}, "operators.administer"),
        (["viewer"], {"user": "root"}, "operators.operate"),
        (["operator"], {"user": "root", "roles": ["admin"]}, "operators.administer"),
        (["admin"], {"roles": ["analyst"]}, "grants.user"),
        (["operator"], {"user": "root", "token": house.issuer.token()}, "grants.user"),
    ):
        bearer = {"Authorization": f"Bearer {house.issuer.token(roles=roles)}"}
        response = await house.http.post("/api/grants", json=body | more, headers=bearer)
        assert response.json()["error"]["rule"] == rule, response.text
    bearer = {"Authorization": f"Bearer {house.issuer.token(roles=['admin'], sub='olga')}"}
    told = (
        await house.http.post("/api/grants", json=body | {"user": "bob", "roles": ["analyst"]}, headers=bearer)
    ).json()
    first = (await house.lab.records(told["txn"]))[0]
    assert (first["user"], first["roles"], first["auth"], first["issuer"]) == ("bob", ["analyst"], "corp:olga", "")


async def test_a_user_closes_their_own_tasks_and_no_others(house: House) -> None:
    ann, bob = ({"Authorization": f"Bearer {house.issuer.token(roles=[], sub=user)}"} for user in ("ann", "bob"))
    body = {
        "agent": "portal", "scopes": [{"type": "remit", "resource": "**"}], "budget": {"usd_micros": 1, "tokens": 1, "calls": 1},
    }  # fmt: skip
    txn = (await house.http.post("/api/grants", json=body, headers=ann)).json()["txn"]
    at = f"/api/chains/{txn}/close"
    refused = await house.http.post(at, headers=bob)
    assert (refused.status_code, refused.json()["error"]["rule"]) == (403, "operators.operate")
    assert (await house.http.get(f"/api/chains/{txn}", headers=ann)).status_code == 403
    closed = await house.http.post(at, headers=ann)
    assert closed.status_code == 200 and closed.json()["state"] == "closed"


async def test_a_ledger_that_does_not_answer_is_no_want_of_a_role(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    bearer = {"Authorization": f"Bearer {house.issuer.token(roles=[], sub='ann')}"}

    async def hangs(*_: Any) -> Any:
        raise refusal(Code.LEDGER_UNAVAILABLE, "it does not answer", rule="ledger.timeout", ask="wait")

    monkeypatch.setattr(house.lab.broker.ledger, "newest", hangs)
    response = await house.http.post(f"/api/chains/{'0' * 31}1/close", headers=bearer)
    assert (response.status_code, response.json()["error"]["rule"]) == (503, "ledger.timeout")


async def test_whoever_is_turned_away_at_the_api_is_in_the_refusals(house: House) -> None:
    """A token that is none, one of a user without the role, and one in a body; many of each are a few records."""
    await (
        house.lab.broker.refusals.stop()
    )  # what others were refused at the door a moment ago counts as kinds of the same caller
    began = rfc3339(time.time())
    viewer = {"Authorization": f"Bearer {house.issuer.token(roles=['viewer'], sub='eve')}"}
    forged = {"Authorization": f"Bearer {swapped(house.issuer)}"}
    operator = {"Authorization": f"Bearer {house.issuer.token(roles=['operator'], sub='olga')}"}
    body = {"agent": "portal", "scopes": [{"type": "remit", "resource": "**"}], "token": swapped(house.issuer),
            "budget": {"usd_micros": 1, "tokens": 1, "calls": 1}}  # fmt: skip
    for _ in range(20):
        assert (await house.http.get("/api/agents", headers=forged)).status_code == 401
        assert (await house.http.post("/api/servers/reload", headers=viewer)).status_code == 403
        assert (await house.http.post("/api/grants", json=body, headers=operator)).status_code == 401
    await house.lab.broker.refusals.stop()  # what was counted is written
    await house.lab.broker.caught_up()
    found = [
        one
        for one in await house.lab.broker.index.recent_refusals("default", began, 1000)
        if one["caller"] == AT_THE_DOOR
    ]
    told = collections.Counter[tuple[str, str]]()
    for one in found:
        told[one["resource"], one["rule"]] += one["count"]
    assert told["remit/api/agents", "identity.signature"] == 20
    assert told["remit/api/servers/reload", "operators.operate"] == 20
    assert told["remit/api/grants", "identity.signature"] == 20
    assert len(found) < 30 and "corp:eve" in str(found)
    assert not any(token["Authorization"][20:60] in str(found) for token in (viewer, forged))


async def test_a_user_who_is_revoked_is_no_operator(house: House) -> None:
    """Nor opens a task, at any door, until they are reinstated."""
    admin = {"Authorization": f"Bearer {house.issuer.token(roles=['admin'], sub='olga')}"}
    mallory = house.issuer.token(roles=["admin", "analyst"], sub="mallory")
    bearer = {"Authorization": f"Bearer {mallory}"}
    assert (await house.http.get("/api/agents", headers=bearer)).status_code == 200
    stop: dict[str, Any] = {"user": "mallory", "why": "left"}
    unseen = await house.http.post("/api/revocations", json=stop, headers=admin)
    assert (unseen.status_code, unseen.json()["error"]["rule"]) == (404, "revoke.unknown")
    stop["unseen"] = True
    assert (await house.http.post("/api/revocations", json=stop, headers=admin)).status_code == 200
    try:
        refused = await house.http.get("/api/agents", headers=bearer)
        assert (refused.status_code, refused.json()["error"]["rule"]) == (403, "revoked.user")
        assert (
            await house.http.post("/api/revocations/reinstate", json={"user": "mallory"}, headers=bearer)
        ).status_code == 403
        for way in WAYS:
            with pytest.raises((Refused, Rejected)) as caught:
                await getattr(house, way)(mallory)
            assert "revoked.user" in (getattr(caught.value, "rule", ""), str(caught.value))
    finally:
        back = await house.http.post("/api/revocations/reinstate", json={"user": "mallory"}, headers=admin)
    assert back.status_code == 200, back.text
    assert (await house.http.get("/api/agents", headers=bearer)).status_code == 200


async def test_the_secret_of_the_data_folder_is_no_key_to_this_door(house: House) -> None:
    """With http.auth = "issuer" the local token opens nothing."""
    bearer = {"Authorization": f"Bearer {house.lab.broker.keys.local_token}"}
    assert (await house.http.get("/api/agents", headers=bearer)).status_code == 401
    two = [("Authorization", f"Bearer {house.issuer.token(roles=['admin'])}"), ("Authorization", "Bearer x")]
    assert (await house.http.get("/api/agents", headers=two)).status_code == 401


async def test_there_is_no_development_issuer_where_nobody_asked_for_one(house: House) -> None:
    assert (await house.http.get(f"{DEV_PATH}/.well-known/openid-configuration")).status_code == 404
    assert (await house.http.post(f"{DEV_PATH}/token", content=b"x")).status_code == 404
    assert "development_issuer" not in house.lab.broker.ready


async def test_nobody_approves_their_own_call_by_another_door(house: House) -> None:
    """Ann's task, begun with her token by an agent; Ann again, with her own token at the API; then somebody else."""
    desk = Agent("desk", credentials=house.lab.folder / "credentials" / "desk.json")

    @desk.skill
    async def pay(hop: Any) -> str:
        return "paid"

    await desk.start()
    try:
        token = house.issuer.token(roles=["payer"])
        async with open_task(token=token, scopes=["agent/desk/*"], as_="portal", credentials=house.credentials) as task:
            with pytest.raises(Refused) as caught:
                await task.call("agent/desk/pay")
            assert caught.value.code == "APPROVAL_REQUIRED"
            first = {"Authorization": f"Bearer {house.issuer.token(roles=['approver'])}"}
            (waiting,) = (await house.http.get("/api/approvals", headers=first)).json()["approvals"]
            at = f"/api/approvals/{waiting['id']}"
            no = await house.http.post(at, json={"verdict": "approve"}, headers=first)
            assert no.status_code == 403, no.text
            other = {"Authorization": f"Bearer {house.issuer.token(roles=['viewer'], sub='eve')}"}
            assert (await house.http.post(at, json={"verdict": "approve"}, headers=other)).status_code == 403
            second = {"Authorization": f"Bearer {house.issuer.token(roles=['approver'], sub='olga')}"}
            yes = await house.http.post(at, json={"verdict": "approve"}, headers=second)
            assert yes.status_code == 200, yes.text
            assert await task.call("agent/desk/pay") == "paid"
            decided = [r for r in await house.lab.records(task.txn) if r["kind"] == "approval.decided"]
        assert [(r["user"], r["auth"], "approver" in r["roles"]) for r in decided] == [("olga", "oidc:corp", True)]
    finally:
        await desk.stop()
