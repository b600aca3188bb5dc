"""Users of a real OpenID provider: logged in as a browser does it, and everything that happens to a provider while a broker runs.

The broker runs in the loop of the test: what a browser or Node takes its time for is done in a thread.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
import pytest_asyncio

from remit import Refused, open_task
from remit_broker.testing import Lab, running_broker
from tests.support.openid import RESOURCE, OpenIdProvider, openid_provider

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenIdProvider]:
    with openid_provider(tmp_path_factory.mktemp("provider")) as running:
        yield running


class House:
    """A broker that knows the provider twice: for access tokens of one application, and for nothing else."""

    def __init__(self, lab: Lab, credentials: Path) -> None:
        self.lab, self.credentials = lab, credentials

    async def opened(self, token: str) -> dict[str, Any]:
        """The first record of a task begun with ``token``. Raises Refused."""
        async with open_task(token=token, scopes=["agent/**"], as_="desk", credentials=self.credentials) as task:
            return (await self.lab.records(task.txn))[0]

    async def refused(self, token: str) -> str:
        """The rule that refuses it."""
        with pytest.raises(Refused) as caught:
            await self.opened(token)
        return caught.value.rule

    def later(self, seconds: float) -> None:
        """As if the keys had been fetched that long ago: what a test cannot wait for."""
        (source,) = self.lab.broker.health.issuers.sources  # type: ignore[union-attr]
        source._fetched -= seconds
        source._tried -= seconds
        source._asked_for -= seconds


def table(provider: OpenIdProvider, **changes: Any) -> dict[str, Any]:
    return {
        "name": "corp", "issuer": provider.url, "audience": [RESOURCE], "clients": ["portal"], "outage": 600.0,
        "claims": {"roles": "roles", "groups": "groups", "tenant": {"claim": "org", "map": {"main": "default"}}},
    } | changes  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(provider: OpenIdProvider, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    async with running_broker(tmp_path_factory.mktemp("house"), {"issuers": [table(provider)]}) as lab:
        yield House(lab, await lab.agent("desk"))


async def test_whoever_logged_in_opens_a_task_as_themself(house: House, provider: OpenIdProvider) -> None:
    first = await house.opened((await asyncio.to_thread(provider.login, "ann"))["access_token"])
    assert {name: first[name] for name in ("user", "tenant", "roles", "groups", "client", "issuer", "auth")} == {
        "user": "ann", "tenant": "default", "roles": ["analyst"], "groups": ["audit", "research"], "client": "portal",
        "issuer": provider.url, "auth": "oidc:corp",
    }  # fmt: skip
    assert (await house.opened((await asyncio.to_thread(provider.login, "bob"))["access_token"]))["roles"] == ["guest"]


async def test_other_tokens_of_the_same_provider_are_refused(house: House, provider: OpenIdProvider) -> None:
    """All genuine, all signed by the right key: for another audience, another application, of another kind, with too many groups."""
    tokens = await asyncio.to_thread(provider.login, "ann")
    assert await house.refused(tokens["id_token"]) == "identity.type"
    assert (
        await house.refused(
            (await asyncio.to_thread(provider.login, "ann", resource="https://mail.example"))["access_token"]
        )
        == "identity.audience"
    )
    assert (
        await house.refused((await asyncio.to_thread(provider.login, "ann", client="stranger"))["access_token"])
        == "identity.client"
    )
    assert await house.refused((await asyncio.to_thread(provider.login, "many"))["access_token"]) == "identity.overage"
    head, payload, signature = tokens["access_token"].split(".")
    other = (await asyncio.to_thread(provider.login, "bob"))["access_token"].split(".")
    assert await house.refused(f"{head}.{other[1]}.{signature}") == "identity.signature"
    assert await house.refused(f"{head}.{payload}.{other[2]}") == "identity.signature"


async def test_id_tokens_are_accepted_where_the_table_says_so(provider: OpenIdProvider, tmp_path: Path) -> None:
    ids = table(provider, accept=["id"], audience=["portal"], claims={"roles": "roles"})
    async with running_broker(tmp_path, {"issuers": [ids]}) as lab:
        house = House(lab, await lab.agent("desk"))
        tokens = await asyncio.to_thread(provider.login, "ann")
        assert (await house.opened(tokens["id_token"]))["roles"] == ["analyst"]
        assert await house.refused(tokens["access_token"]) == "identity.type"


async def test_keys_that_change_while_the_broker_runs_are_noticed(house: House, provider: OpenIdProvider) -> None:
    old = (await asyncio.to_thread(provider.login, "ann"))["access_token"]
    await house.opened(old)
    await asyncio.to_thread(provider.rotate, "second")
    fresh = (await asyncio.to_thread(provider.login, "ann"))["access_token"]
    assert jwt.get_unverified_header(fresh)["kid"] == "second-rsa"
    house.later(11)
    assert (await house.opened(fresh))["user"] == "ann"
    # The provider took the old key back: a token that it signed is worth nothing, though it has not expired.
    assert await house.refused(old) == "identity.key"


async def test_an_outage_is_bridged_with_known_keys_and_not_for_ever(house: House, provider: OpenIdProvider) -> None:
    token = (await asyncio.to_thread(provider.login, "ann"))["access_token"]
    await house.opened(token)
    await asyncio.to_thread(provider.stop)
    house.later(400)
    assert (await house.opened(token))["user"] == "ann"
    assert "corp" in house.lab.broker.health.issuers.troubles()  # type: ignore[union-attr]
    house.later(600)
    assert await house.refused(token) == "identity.unavailable"
    await asyncio.to_thread(provider.start)
    house.later(20)
    assert (await house.opened(token))["user"] == "ann"


async def test_a_provider_that_hangs_holds_nobody_up_for_long(house: House, provider: OpenIdProvider) -> None:
    """It takes connections and says nothing: known keys are used after one time-out, and the others do not wait for it again."""
    token = (await asyncio.to_thread(provider.login, "ann"))["access_token"]
    await house.opened(token)
    process = provider._process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    try:
        house.later(400)
        assert (await house.opened(token))["user"] == "ann"
        before = house.lab.broker.ports.clock.monotonic()
        for _ in range(3):
            assert (await house.opened(token))["user"] == "ann"
        assert house.lab.broker.ports.clock.monotonic() - before < 4
    finally:
        os.kill(process.pid, signal.SIGCONT)
    house.later(400)
    assert (await house.opened(token))["user"] == "ann"


async def test_another_provider_at_the_same_address_is_another(
    house: House, provider: OpenIdProvider, tmp_path: Path
) -> None:
    """An issuer is its keys, not its port: after a fetch nothing that the old ones signed counts."""
    token = (await asyncio.to_thread(provider.login, "ann"))["access_token"]
    await house.opened(token)
    await asyncio.to_thread(provider.stop)
    provider.draw_keys("third")
    await asyncio.to_thread(provider.start)
    house.later(400)
    assert await house.refused(token) == "identity.key"
    assert (await house.opened((await asyncio.to_thread(provider.login, "ann"))["access_token"]))["user"] == "ann"
