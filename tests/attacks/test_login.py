"""Logging in for a program, through a running broker and a real OpenID provider; and everything somebody else may try on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import pytest_asyncio
from starlette.requests import Request

from remit_broker.testing import Lab, running_broker
from remit_schemas.errors import Refusal
from tests.support.browser import BACK, Browser, Pkce, refreshed, registered, returned, tokens
from tests.support.oauth import error_of
from tests.support.openid import OpenIdProvider, openid_provider

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

T = TypeVar("T")


def config(provider: OpenIdProvider, **oauth: Any) -> dict[str, Any]:
    return {
        "issuers": [
            {"name": "corp", "issuer": provider.url, "audience": ["https://remit.example"], "claims": {"roles": "roles"},
             "login": {"client_id": "remit"}}
        ],
        "oauth": oauth,
    }  # fmt: skip


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenIdProvider]:
    with openid_provider(tmp_path_factory.mktemp("provider")) as running:
        yield running


class House:
    """A broker with a login; what a browser takes its time for is done in a thread."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.home = lab, lab.broker.http
        self.browsers: list[Browser] = []

    def browser(self, user: str = "ann") -> Browser:
        self.browsers.append(Browser(self.home, user))
        return self.browsers[-1]

    async def do(self, work: Callable[..., T], *args: Any, **more: Any) -> T:
        return await asyncio.to_thread(work, *args, **more)

    async def client(self, **changes: Any) -> str:
        return await self.do(registered, self.home, **changes)

    async def logged_in(self, client: str, pkce: Pkce | None = None, **changes: str | None) -> dict[str, Any]:
        """The tokens of a login that goes well."""
        proof = pkce or Pkce()
        code = await self.do(self.browser().code, client, proof, **changes)
        response = await self.do(tokens, self.home, client, code, proof)
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    async def state(self, token: str) -> dict[str, Any]:
        local = {"Authorization": f"Bearer {self.lab.broker.keys.local_token}"}
        response = await self.do(
            httpx.post, f"{self.home}/oauth/introspect", data={"token": token}, headers=local, trust_env=False
        )
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(provider: OpenIdProvider, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    allowed = {"redirects": ["cursor://anysphere.cursor-mcp/*", "https://claude.example/back"]}
    async with running_broker(tmp_path_factory.mktemp("login"), config(provider, **allowed)) as lab:
        found = House(lab)
        yield found
        for browser in found.browsers:
            browser.close()


# What it is for


async def test_a_person_logs_in_for_a_program_and_sees_what_it_may(house: House) -> None:
    client, pkce, browser = await house.client(client_name="Editor <b>"), Pkce(), house.browser()
    page = await house.do(lambda: browser.log_in(browser.authorize(client, pkce)))
    assert page.status_code == 200
    for said in (
        "Editor &lt;b&gt;",
        "<b>ann</b>",
        f"{house.home}/mcp",
        "mcp/*/*",
        BACK,
        "Nobody has checked that name",
    ):
        assert said in page.text, said
    back = returned(await house.do(browser.decide, "allow"))
    assert back["state"] == "s-1" and back["iss"] == house.home
    answer = await house.do(tokens, house.home, client, back["code"], pkce)
    assert answer.status_code == 200 and answer.headers["cache-control"] == "no-store"
    body = answer.json()
    assert body["token_type"] == "Bearer" and body["scope"] == "mcp/*/*" and body["expires_in"] <= 3600
    state = await house.state(body["access_token"])
    assert state["active"] and (state["sub"], state["client_id"], state["aud"]) == ("ann", client, f"{house.home}/mcp")
    fresh = (await house.do(refreshed, house.home, client, body["refresh_token"])).json()
    assert (await house.state(fresh["access_token"]))["active"]
    for ends in (fresh["access_token"], fresh["refresh_token"]):
        done = await house.do(
            httpx.post, f"{house.home}/oauth/revoke", data={"token": ends, "client_id": client}, trust_env=False
        )
        assert done.status_code == 200
    for token in (body["access_token"], fresh["access_token"]):
        assert await house.state(token) == {"active": False}


async def test_the_metadata_says_how_to_log_in(house: House) -> None:
    about = (await house.do(httpx.get, f"{house.home}/.well-known/oauth-authorization-server", trust_env=False)).json()
    assert about["authorization_endpoint"] == f"{house.home}/oauth/authorize"
    assert (
        about["code_challenge_methods_supported"] == ["S256"] and "authorization_code" in about["grant_types_supported"]
    )
    assert about["registration_endpoint"] == f"{house.home}/oauth/register"


async def test_a_user_who_says_no_is_believed(house: House) -> None:
    client, browser = await house.client(), house.browser()
    await house.do(lambda: browser.log_in(browser.authorize(client, Pkce())))
    back = returned(await house.do(browser.decide, "deny"))
    assert back["error"] == "access_denied" and "code" not in back and back["state"] == "s-1"


# The client


@pytest.mark.parametrize(
    "uri",
    [
        "https://evil.example/back", "http://evil.example/back", "http://127.0.0.1.evil.example/", "http://127.0.0.1@evil.example/",
        "javascript:alert(1)", "data:text/html,x", "file:///etc/passwd", "cursor://evil/*", "cursor://anysphere.cursor-mcp.evil/x",
        "https://claude.example.evil/back", "https://claude.example/back/../../x", "https://claude.example/back?x", "//evil.example",
        "http://[::1", "http://127.0.0.1/\r\nSet-Cookie: x", "", "https://", "ws://127.0.0.1/", "cursor://anysphere.cursor-mcp/%2e%2e/x",
    ],
)  # fmt: skip
async def test_a_redirection_that_nobody_allowed_is_not_registered(house: House, uri: str) -> None:
    body = {"redirect_uris": [BACK, uri], "client_name": "x"}
    no = await house.do(httpx.post, f"{house.home}/oauth/register", json=body, trust_env=False)
    assert no.status_code == 400 and error_of(no) == "invalid_redirect_uri"


async def test_what_the_configuration_names_is_registered(house: House) -> None:
    for uri in (
        "cursor://anysphere.cursor-mcp/oauth/callback",
        "https://claude.example/back",
        "http://localhost:3000/x",
    ):
        assert await house.client(redirect_uris=[uri])
    bads: list[dict[str, Any]] = [
        {"redirect_uris": []}, {"redirect_uris": "x"}, {"redirect_uris": [BACK], "client_secret": "s"},
        {"redirect_uris": [BACK], "token_endpoint_auth_method": "private_key_jwt"},
    ]  # fmt: skip
    for bad in bads:
        no = await house.do(httpx.post, f"{house.home}/oauth/register", json=bad, trust_env=False)
        assert no.status_code == 400, bad
    for raw in (b"[]", b"{", b'{"redirect_uris":["http://127.0.0.1/"],"redirect_uris":["x"]}', b"x" * 20_000):
        no = await house.do(httpx.post, f"{house.home}/oauth/register", content=raw, trust_env=False)
        assert no.status_code in (400, 413) and error_of(no) == "invalid_client_metadata"


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:7777/other", "http://localhost:7777/back", "https://127.0.0.1:7777/back", "http://evil.example/back",
            "http://127.0.0.1:7777/back?x=1", "http://x@127.0.0.1:7777/back", "http://127.0.0.1:7777/back#x", "cursor://x"],
)  # fmt: skip
async def test_nobody_is_sent_to_a_redirection_that_is_not_the_clients(house: House, uri: str) -> None:
    client = await house.client()
    for changes in (
        {"redirect_uri": uri},
        {"redirect_uri": uri, "response_type": "x"},
        {"redirect_uri": uri, "client_id": "c_x"},
    ):
        page = await house.do(lambda c=changes: house.browser().authorize(client, Pkce(), **c))
        assert page.status_code == 400 and "location" not in page.headers and "script" not in page.text
    # Only the port of this very machine may be another one: applications take one that is free.
    page = await house.do(lambda: house.browser().authorize(client, Pkce(), redirect_uri="http://127.0.0.1:61234/back"))
    assert page.status_code == 303


async def test_a_login_without_pkce_does_not_begin(house: House) -> None:
    client, pkce = await house.client(), Pkce()
    for changes in (
        {"code_challenge": None}, {"code_challenge_method": "plain"}, {"code_challenge_method": None}, {"code_challenge": "short"},
        {"code_challenge": pkce.challenge + "="}, {"response_type": "token"}, {"response_mode": "fragment"}, {"request": "x"},
        {"resource": "https://elsewhere.example/mcp"}, {"resource": f"{house.home}/api"}, {"resource": f"{house.home}.evil/mcp"},
        {"scope": "**"}, {"scope": "agent/**"}, {"scope": "mcp/**", "resource": f"{house.home}/mcp/git"},
    ):  # fmt: skip
        page = await house.do(lambda c=changes: house.browser().authorize(client, pkce, **c))
        back = returned(page)
        assert page.headers["location"].startswith(BACK) and back["error"] and back["state"] == "s-1", changes


async def test_a_client_document_is_fetched_from_where_it_may_be_alone(house: House) -> None:
    for url in (
        "https://evil.example/client.json",
        "https://127.0.0.1/client.json",
        "https://169.254.169.254/latest/meta-data",
    ):
        page = await house.do(lambda u=url: house.browser().authorize(u, Pkce()))
        assert page.status_code == 400 and "not known here" in page.text


# Somebody else


async def test_a_stolen_code_is_worth_nothing(house: House) -> None:
    """Without the verifier, as another client, for another resource or redirection; and the theft ends it for its owner too."""
    client, other = await house.client(), await house.client(client_name="Thief")
    for changes in (
        {"code_verifier": Pkce().verifier}, {"code_verifier": ""}, {"client_id": other}, {"redirect_uri": "http://127.0.0.1:1/back"},
    ):  # fmt: skip
        pkce = Pkce()
        code = await house.do(house.browser().code, client, pkce)
        no = await house.do(tokens, house.home, client, code, pkce, **changes)
        assert error_of(no) == "invalid_grant", changes
        assert error_of(await house.do(tokens, house.home, client, code, pkce)) == "invalid_grant"
    pkce = Pkce()
    code = await house.do(house.browser().code, client, pkce)
    wrong = await house.do(tokens, house.home, client, code, pkce, resource="https://elsewhere.example/mcp")
    assert error_of(wrong) == "invalid_target"
    for junk in ("x", code[:-1] + "A", code.replace("remit_ac_", "remit_rt_"), "remit_ac_.", code + "A"):
        assert error_of(await house.do(tokens, house.home, client, junk, pkce)) == "invalid_grant"


async def test_a_code_that_comes_twice_ends_the_login(house: House) -> None:
    client, pkce = await house.client(), Pkce()
    code = await house.do(house.browser().code, client, pkce)
    first = (await house.do(tokens, house.home, client, code, pkce)).json()
    assert (await house.state(first["access_token"]))["active"]
    assert error_of(await house.do(tokens, house.home, client, code, pkce)) == "invalid_grant"
    assert not (await house.state(first["access_token"]))["active"]
    assert error_of(await house.do(refreshed, house.home, client, first["refresh_token"])) == "invalid_grant"


async def test_a_refresh_token_that_comes_twice_ends_the_login(house: House) -> None:
    client = await house.client()
    first = await house.logged_in(client)
    second = (await house.do(refreshed, house.home, client, first["refresh_token"])).json()
    # A client that is in the middle of something keeps the token before for a while.
    assert (await house.state(first["access_token"]))["active"] and (await house.state(second["access_token"]))[
        "active"
    ]
    assert error_of(await house.do(refreshed, house.home, client, first["refresh_token"])) == "invalid_grant"
    for token in (first["access_token"], second["access_token"]):
        assert not (await house.state(token))["active"]
    stolen = await house.logged_in(client)
    other = await house.client(client_name="Thief")
    assert error_of(await house.do(refreshed, house.home, other, stolen["refresh_token"])) == "invalid_grant"
    assert error_of(await house.do(refreshed, house.home, client, stolen["refresh_token"])) == "invalid_grant"
    wide = await house.logged_in(client, resource=f"{house.home}/mcp/git")
    assert wide["scope"] == "mcp/git/*"
    assert (
        error_of(await house.do(refreshed, house.home, client, wide["refresh_token"], scope="mcp/**"))
        == "invalid_scope"
    )


async def test_of_two_refreshes_at_once_one_gets_tokens(house: House) -> None:
    client = await house.client()
    first = await house.logged_in(client)
    both = await asyncio.gather(*(house.do(refreshed, house.home, client, first["refresh_token"]) for _ in range(4)))
    assert sorted(response.status_code for response in both)[0] <= 200
    assert sum(response.status_code == 200 for response in both) <= 1


async def test_a_login_that_somebody_else_began_ends_nowhere(house: House) -> None:
    """A link that an attacker began, opened in the victim's browser: nobody's account becomes anybody else's."""
    client, attacker, victim = await house.client(), house.browser("bob"), house.browser("ann")
    began = await house.do(attacker.authorize, client, Pkce())
    page = await house.do(victim.log_in, began)
    assert page.status_code == 400 and "cannot go on" in page.text


async def test_a_callback_counts_once(house: House) -> None:
    client, browser = await house.client(), house.browser()
    await house.do(lambda: browser.log_in(browser.authorize(client, Pkce())))
    assert browser.page is not None
    again = await house.do(browser.http.get, str(browser.page.url))
    assert again.status_code == 400 and "cannot go on" in again.text
    for query in ("", "?code=x", "?state=x&code=y", "?state=&code=", "?error=access_denied&state=x"):
        page = await house.do(browser.http.get, f"{house.home}/oauth/callback{query}")
        assert page.status_code == 400, query


async def test_consent_cannot_be_given_for_somebody(house: House) -> None:
    """Not by another site's form, not from another browser, not twice, not in a frame, and not by a script: there is none."""
    client, browser = await house.client(), house.browser()
    page = await house.do(lambda: browser.log_in(browser.authorize(client, Pkce())))
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "script-src" not in policy
    assert (
        page.headers["x-frame-options"] == "DENY"
        and "<script" not in page.text
        and page.headers["cache-control"] == "no-store"
    )
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}):
        assert (await house.do(browser.decide, "allow", **headers)).status_code == 403
    stranger = house.browser("bob")
    assert (await house.do(stranger.decide, "allow", page)).status_code == 400
    # Whoever's guess it was: what was asked is over.
    assert (await house.do(browser.decide, "allow")).status_code == 400
    page = await house.do(lambda: browser.log_in(browser.authorize(client, Pkce())))
    assert (await house.do(browser.decide, "allow")).status_code == 303
    assert (await house.do(browser.decide, "allow")).status_code == 400


async def test_every_login_asks_the_person(house: House) -> None:
    """A program that calls itself the same, and even the same one again: nothing is allowed that nobody was asked for."""
    client, browser = await house.client(), house.browser()
    for _ in range(2):
        page = await house.do(lambda: browser.log_in(browser.authorize(client, Pkce())))
        assert page.status_code == 200 and "Allow access?" in page.text
        await house.do(browser.decide, "allow")


async def test_a_user_who_is_revoked_gets_no_more_tokens(house: House) -> None:
    client = await house.client()
    first = await house.logged_in(client)
    local, what = {"Authorization": f"Bearer {house.lab.broker.keys.local_token}"}, {"user": "ann", "unseen": True}
    post = httpx.post
    done = await house.do(post, f"{house.home}/api/revocations", json=what, headers=local, trust_env=False)
    assert done.status_code == 200, done.text
    try:
        no = await house.do(refreshed, house.home, client, first["refresh_token"])
        assert no.status_code == 400 and no.json()["remit"]["rule"] == "revoked.user"
        browser = house.browser()
        page = await house.do(lambda: browser.log_in(browser.authorize(client, Pkce())))
        assert page.status_code == 403 and "Nobody is logged in" in page.text
    finally:
        await house.do(
            post, f"{house.home}/api/revocations/reinstate", json={"user": "ann"}, headers=local, trust_env=False
        )


async def test_a_token_of_a_login_opens_nothing_of_the_api(house: House) -> None:
    access = (await house.logged_in(await house.client()))["access_token"]
    for path in ("/api/agents", "/api/chains"):
        no = await house.do(
            httpx.get, f"{house.home}{path}", headers={"Authorization": f"Bearer {access}"}, trust_env=False
        )
        assert no.status_code == 401


async def test_a_token_is_for_its_resource_alone(house: House) -> None:
    """What was allowed for one server is refused at another; and a token that is changed, or a refresh token, is none anywhere."""
    one = await house.logged_in(await house.client(), resource=f"{house.home}/mcp/git")
    everything = await house.logged_in(await house.client())
    users = house.lab.broker.oauth.users(house.lab.broker.oauth.standing._operator)

    async def at(path: str, token: str) -> str:
        headers = [(b"authorization", f"Bearer {token}".encode())]
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": headers,
            "query_string": b"",
            "server": ("127.0.0.1", 80),
        }
        try:
            caller = await users.known(Request(scope))
        except Refusal as no:
            return no.body.rule
        assert caller.identity is not None and not caller.abilities
        return f"{caller.identity.user} {caller.scope}"

    assert await at("/mcp/git", one["access_token"]) == "ann ('mcp/git/*',)"
    for path in ("/mcp", "/mcp/gitlab", "/mcp/mail", "/", "/api/agents"):
        assert await at(path, one["access_token"]) == "oauth.token", path
    assert await at("/mcp/mail", everything["access_token"]) == "ann ('mcp/*/*',)"
    for token in (one["access_token"][:-1] + "A", one["access_token"] + "A", "remit_at_x"):
        assert await at("/mcp/git", token) == "oauth.token"
    assert await at("/mcp/git", one["refresh_token"]) == "http.local"


async def test_what_is_kept_of_logins_cannot_be_read_or_moved(house: House) -> None:
    """On the disk stands neither a token nor a code nor a user; and a value in another place is none."""
    from remit_broker.adapters.login_store import LoginStore
    from remit_broker.core.login import Login

    client = await house.client(client_name="Seldom-named")
    found = await house.logged_in(client)
    stored = b"".join(
        path.read_bytes() for path in (house.lab.folder / "data" / "jetstream").rglob("*") if path.is_file()
    )
    for secret in (found["access_token"], found["refresh_token"]):
        assert secret.rpartition(".")[2].encode() not in stored
    assert b"Seldom-named" not in stored
    js = house.lab.broker.nats.core.jetstream()
    kv, store = await js.key_value("oauth_logins"), LoginStore(house.lab.broker.keys.results_key)
    await store.start(js, 1)
    id_ = found["access_token"].removeprefix("remit_at_").partition(".")[0]
    value = (await kv.get(f"login.{id_}")).value
    assert value is not None and await store.get("login", id_, Login) is not None
    await kv.put("login.AAAAAAAAAAAAAAAAAAAAAA", value)
    assert await store.get("login", "AAAAAAAAAAAAAAAAAAAAAA", Login) is None


# Where nobody logs in


async def test_without_a_provider_it_is_said_that_nobody_logs_in(tmp_path: Path) -> None:
    async with running_broker(tmp_path) as lab, httpx.AsyncClient(base_url=lab.broker.http, trust_env=False) as http:
        page = await http.get("/oauth/authorize?client_id=x")
        assert page.status_code == 404 and "no provider" in page.text
        no = await http.post("/oauth/register", json={"redirect_uris": [BACK]})
        assert no.status_code == 403 and error_of(no) == "access_denied"
        about = (await http.get("/.well-known/oauth-authorization-server")).json()
        assert "authorization_endpoint" not in about and "registration_endpoint" not in about


async def test_where_registration_is_closed_nobody_registers(provider: OpenIdProvider, tmp_path: Path) -> None:
    async with running_broker(tmp_path, config(provider, registration="closed")) as lab:
        no = await asyncio.to_thread(
            httpx.post, f"{lab.broker.http}/oauth/register", json={"redirect_uris": [BACK]}, trust_env=False
        )
        assert no.status_code == 403 and error_of(no) == "access_denied"


async def test_registrations_are_limited(provider: OpenIdProvider, tmp_path: Path) -> None:
    async with running_broker(tmp_path, config(provider)) as lab, httpx.AsyncClient(trust_env=False) as http:
        answers = [
            await http.post(f"{lab.broker.http}/oauth/register", json={"redirect_uris": [BACK]}) for _ in range(80)
        ]
        assert {answer.status_code for answer in answers} == {201, 429}
        assert sum(answer.status_code == 201 for answer in answers) < 75
