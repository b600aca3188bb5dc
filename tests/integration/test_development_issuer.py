"""The development issuer: a provider like any other to the broker, and never one by accident."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import pytest_asyncio

from remit import open_task
from remit_broker.core.issuers import DEV_PATH
from remit_broker.testing import Lab, running_broker

pytestmark = pytest.mark.asyncio(loop_scope="module")

USERS = {"ann": {"roles": ["analyst"], "groups": ["research"]}, "olga": {"roles": ["boss"]}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lab]:
    config = {
        "http": {"port": 0, "auth": "issuer"},
        "development": {"issuer": True, "users": USERS, "operators": {"admin": ["role:boss"]}},
    }
    async with running_broker(tmp_path_factory.mktemp("dev"), config) as found:
        yield found


async def ask(lab: Lab, **form: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=lab.broker.http, trust_env=False) as http:
        return await http.post(f"{DEV_PATH}/token", data=form)


async def token(lab: Lab, user: str) -> str:
    response = await ask(lab, grant_type="password", username=user, client_secret=lab.broker.keys.local_token)
    assert response.status_code == 200, response.text
    text: str = response.json()["access_token"]
    return text


async def test_a_library_that_knows_nothing_of_it_verifies_its_tokens(lab: Lab) -> None:
    """Discovery and keys as published are enough for PyJWT."""
    async with httpx.AsyncClient(trust_env=False) as http:
        url = f"{lab.broker.http}{DEV_PATH}"
        about = (await http.get(f"{url}/.well-known/openid-configuration")).json()
        keys = jwt.PyJWKSet.from_dict((await http.get(about["jwks_uri"])).json())
    text = await token(lab, "ann")
    kid = jwt.get_unverified_header(text)["kid"]
    claims = jwt.decode(text, keys[kid], algorithms=["ES256"], audience="remit", issuer=about["issuer"])
    assert about["issuer"] == url and claims["sub"] == "ann" and claims["roles"] == ["analyst"]


async def test_its_users_open_tasks_and_operate(lab: Lab) -> None:
    credentials = await lab.agent("portal")
    async with open_task(
        token=await token(lab, "ann"), scopes=["agent/*/*"], as_="portal", credentials=credentials
    ) as task:
        first = (await lab.records(task.txn))[0]
    assert (first["user"], first["roles"], first["groups"], first["auth"]) == (
        "ann", ["analyst"], ["research"], "oidc:development",
    )  # fmt: skip
    assert first["issuer"] == lab.broker.http + DEV_PATH
    async with httpx.AsyncClient(base_url=lab.broker.http, trust_env=False) as http:
        for user, status in (("ann", 403), ("olga", 200)):
            bearer = {"Authorization": f"Bearer {await token(lab, user)}"}
            assert (await http.get("/api/agents", headers=bearer)).status_code == status


async def test_the_development_issuer_gives_no_token_without_the_secret_of_the_data_folder(lab: Lab) -> None:
    secret = lab.broker.keys.local_token
    for form, status, rule in (
        ({"grant_type": "password", "username": "ann", "client_secret": ""}, 401, "development.secret"),
        ({"grant_type": "password", "username": "ann", "client_secret": secret[:-1]}, 401, "development.secret"),
        ({"grant_type": "password", "username": "ann"}, 401, "development.secret"),
        ({"grant_type": "client_credentials", "client_secret": secret}, 400, "development.grant"),
        ({"grant_type": "password", "username": "root", "client_secret": secret}, 404, "development.user"),
    ):
        response = await ask(lab, **form)
        assert (response.status_code, response.json()["error"]["rule"]) == (status, rule)
        assert secret not in response.text and "access_token" not in response.text
    async with httpx.AsyncClient(base_url=lab.broker.http, trust_env=False) as http:
        for body in (b"", b"x" * 5000, b"a=1&a=2", b"\xff", b"{}"):
            assert (await http.post(f"{DEV_PATH}/token", content=body)).status_code in (400, 413)


async def test_nobody_overlooks_it(tmp_path: Path, caplog: pytest.LogCaptureFixture, lab: Lab) -> None:
    url = lab.broker.http + DEV_PATH
    assert lab.broker.ready["development_issuer"] == url
    async with httpx.AsyncClient(base_url=lab.broker.http, trust_env=False) as http:
        assert (await http.get("/readyz")).json()["development_issuer"] == url
        about = await http.get(f"{DEV_PATH}/.well-known/openid-configuration")
        assert about.json()["remit_development"] is True and about.headers["Remit-Development-Issuer"] == "true"
        status: Any = await http.get("/api/status", headers={"Authorization": f"Bearer {await token(lab, 'olga')}"})
        assert status.json()["users"]["development"] is True
    caplog.set_level(logging.WARNING)
    async with running_broker(
        tmp_path, {"development": {"issuer": True}, "http": {"port": 0, "auth": "open"}}
    ) as other:
        assert other.broker.ready["open"] == "everybody"
        async with httpx.AsyncClient(base_url=other.broker.http, trust_env=False) as http:
            assert (await http.get("/api/agents")).status_code == 200
            assert (await http.get("/api/agents", headers={"Host": "evil.example"})).status_code == 403
            assert (await http.get("/readyz")).json()["open"] == "everybody"
    assert "DEVELOPMENT ISSUER" in caplog.text and "OPEN" in caplog.text


async def test_its_key_is_the_same_after_a_restart_and_another_in_another_folder(tmp_path: Path) -> None:
    kids = []
    for folder in ("one", "one", "two"):
        (tmp_path / folder).mkdir(exist_ok=True)
        async with running_broker(tmp_path / folder, {"development": {"issuer": True, "users": USERS}}) as lab:
            kids.append(jwt.get_unverified_header(await token(lab, "ann"))["kid"])
    assert kids[0] == kids[1] != kids[2]
