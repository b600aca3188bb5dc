"""The login page of the development issuer, as a newcomer meets it and as an attacker does: through the running broker."""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import pytest_asyncio

from remit_broker.core.issuers import DEV_CLIENT, DEV_PATH
from remit_broker.testing import Lab, running_broker
from tests.support.browser import Browser, Pkce, registered, returned, tokens
from tests.support.mcp_client import HELLO

pytestmark = pytest.mark.asyncio(loop_scope="module")
DEVELOPMENT = {"issuer": True, "users": {"ann": {"roles": ["analyst"], "groups": ["research"]}, "<b>": {}}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lab]:
    config = {"http": {"port": 0, "auth": "issuer"}, "oauth": {"registration": "open"}, "development": DEVELOPMENT}
    async with running_broker(tmp_path_factory.mktemp("dev"), config) as found:
        yield found


class Person(Browser):
    """A browser, and a person who can read the data folder."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab.broker.http)
        self.secret = lab.broker.keys.local_token

    def sent(self, client: str, pkce: Pkce) -> httpx.Response:
        """The login page, where the browser is sent by the broker."""
        away = self.authorize(client, pkce)
        assert away.is_redirect and urlsplit(away.headers["location"]).path == f"{DEV_PATH}/authorize", away.text
        return self.http.get(away.headers["location"])

    def fields(self, page: httpx.Response, **changes: str) -> dict[str, str]:
        """What the form would send."""
        hidden = dict(re.findall(r'type="hidden" name="([^"]+)" value="([^"]*)"', page.text))
        return {**hidden, "user": "ann", "secret": self.secret, **changes}

    def press(self, page: httpx.Response, **changes: str) -> httpx.Response:
        """Fill in the form, and press the button."""
        return self.http.post(f"{self.home}{DEV_PATH}/authorize", data=self.fields(page, **changes))


async def person(lab: Lab) -> tuple[Person, str, Pkce]:
    return Person(lab), await asyncio.to_thread(registered, lab.broker.http), Pkce()


async def test_a_newcomer_logs_in_for_a_program_and_the_program_calls_as_them(lab: Lab) -> None:
    ann, client, pkce = await person(lab)

    def all_the_way() -> httpx.Response:
        page = ann.sent(client, pkce)
        assert page.status_code == 200 and "For development only" in page.text and "analyst" in page.text
        back = ann.press(page)
        assert back.status_code == 303 and urlsplit(back.headers["location"]).path == "/oauth/callback"
        ann.page = ann.http.get(back.headers["location"])
        assert "ann" in ann.page.text and ann.page.status_code == 200, ann.page.text
        return tokens(ann.home, client, returned(ann.decide("allow"))["code"], pkce)

    told = (await asyncio.to_thread(all_the_way)).json()
    headers = {"Authorization": f"Bearer {told['access_token']}", "Accept": "application/json, text/event-stream"}
    async with httpx.AsyncClient(base_url=lab.broker.http, trust_env=False, headers=headers) as http:
        hello = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": HELLO}
        assert (await http.post("/mcp", json=hello)).status_code == 200


async def test_the_page_is_plainly_for_development_has_no_script_and_is_in_no_frame(lab: Lab) -> None:
    ann, client, pkce = await person(lab)
    page = await asyncio.to_thread(ann.sent, client, pkce)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "script" not in policy
    assert page.headers["cache-control"] == "no-store" and page.headers["x-frame-options"] == "DENY"
    cookie = page.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and f"path={DEV_PATH}/authorize" in cookie
    assert "<b></label>" not in page.text and "&lt;b&gt;" in page.text and ann.secret not in page.text


async def test_the_login_page_wants_the_secret_of_the_data_folder(lab: Lab) -> None:
    ann, client, pkce = await person(lab)
    page = await asyncio.to_thread(ann.sent, client, pkce)
    wrongs: list[tuple[dict[str, str], int]] = [
        ({"secret": "x"}, 401), ({"secret": ann.secret[:-1]}, 401), ({"secret": "é"}, 401), ({"user": "root"}, 404),
    ]  # fmt: skip
    again = page
    for changes, status in wrongs:
        again = await asyncio.to_thread(functools.partial(ann.press, page, **changes))
        assert again.status_code == status and "location" not in again.headers and ann.secret not in again.text
        assert "role=alert" in again.text and 'name="ticket"' in again.text
    # And then rightly, on the very page that said so.
    assert (await asyncio.to_thread(ann.press, again)).status_code == 303


async def test_a_form_of_another_page_or_browser_logs_nobody_in(lab: Lab) -> None:
    ann, client, pkce = await person(lab)
    other = Person(lab)
    page = await asyncio.to_thread(ann.sent, client, pkce)
    theirs = await asyncio.to_thread(other.sent, client, pkce)
    fields = ann.fields(page)

    def tried() -> list[httpx.Response]:
        at = f"{ann.home}{DEV_PATH}/authorize"
        return [
            other.http.post(at, data=fields),
            httpx.post(at, data=fields, trust_env=False),
            ann.http.post(at, data={**fields, "ticket": other.fields(theirs)["ticket"]}),
            ann.http.post(at, data={**fields, "ticket": ""}),
            ann.http.post(at, data={**fields, "state": "another"}),
            ann.http.post(at, data=fields, headers={"Origin": "https://evil.example"}),
        ]

    for answer in await asyncio.to_thread(tried):
        assert answer.status_code in (401, 403) and "location" not in answer.headers


async def test_a_browser_is_sent_back_to_this_broker_alone(lab: Lab) -> None:
    ann, client, pkce = await person(lab)
    page = await asyncio.to_thread(ann.sent, client, pkce)
    right = {name: said for name, said in ann.fields(page).items() if name not in ("ticket", "user", "secret")}
    wrongs: list[dict[str, str]] = [
        {"redirect_uri": "https://evil.example/oauth/callback"}, {"redirect_uri": f"{ann.home}/oauth/callback?x=1"},
        {"redirect_uri": ""}, {"client_id": "another"}, {"response_type": "token"}, {"code_challenge_method": "plain"},
        {"code_challenge": ""}, {"state": ""}, {"nonce": ""}, {"state": "x" * 600},
    ]  # fmt: skip
    for wrong in wrongs:
        at = f"{ann.home}{DEV_PATH}/authorize"
        answer = await asyncio.to_thread(functools.partial(ann.http.get, at, params={**right, **wrong}))
        assert answer.status_code == 400 and "location" not in answer.headers, wrong
        assert 'name="secret"' not in answer.text


async def test_a_code_of_the_development_issuer_counts_once(lab: Lab) -> None:
    ann, pkce = Person(lab), Pkce()
    right = {
        "response_type": "code", "client_id": DEV_CLIENT, "redirect_uri": f"{ann.home}/oauth/callback", "state": "s",
        "nonce": "n", "code_challenge": pkce.challenge, "code_challenge_method": "S256",
    }  # fmt: skip
    page = await asyncio.to_thread(lambda: ann.http.get(f"{ann.home}{DEV_PATH}/authorize", params=right))

    async def code() -> str:
        return returned(await asyncio.to_thread(ann.press, page))["code"]

    async def redeemed(code: str, **changes: str) -> httpx.Response:
        form = {"grant_type": "authorization_code", "code": code, "client_id": DEV_CLIENT, "code_verifier": pkce.verifier,
                "redirect_uri": right["redirect_uri"], **changes}  # fmt: skip
        async with httpx.AsyncClient(base_url=lab.broker.http, trust_env=False) as http:
            return await http.post(f"{DEV_PATH}/token", data=form)

    wrongs: list[dict[str, str]] = [
        {"code_verifier": "x" * 43}, {"redirect_uri": "https://evil.example"}, {"client_id": "x"},
    ]  # fmt: skip
    for changes in wrongs:
        tried = await code()
        assert (await redeemed(tried, **changes)).status_code == 401
        # Whoever tries it has had the one turn.
        assert (await redeemed(tried)).status_code == 401
    good = await code()
    assert (await redeemed(good)).json()["id_token"].count(".") == 2
    assert (await redeemed(good)).status_code == 401 and (await redeemed("made-up")).status_code == 401


async def test_beside_a_real_issuer_nobody_logs_in_at_the_development_issuer(tmp_path: Path) -> None:
    real = {
        "name": "corp", "issuer": "https://login.example.com", "audience": ["remit"],
        "claims": {"user": {"claim": "sub", "prefix": "corp:"}},
    }  # fmt: skip
    config = {"issuers": [real], "development": {**DEVELOPMENT, "beside_real": True}}
    async with (
        running_broker(tmp_path, config) as lab,
        httpx.AsyncClient(base_url=lab.broker.http, trust_env=False) as http,
    ):
        about: dict[str, Any] = (await http.get(f"{DEV_PATH}/.well-known/openid-configuration")).json()
        assert "authorization_endpoint" not in about and about["grant_types_supported"] == ["password"]
        for verb in ("GET", "POST"):
            assert (await http.request(verb, f"{DEV_PATH}/authorize")).status_code == 404
        form = {"grant_type": "authorization_code", "code": "x"}
        assert (await http.post(f"{DEV_PATH}/token", data=form)).status_code == 400
        assert "authorization_endpoint" not in (await http.get("/.well-known/oauth-authorization-server")).json()
