"""The SDK on a bus that forbids: what is not permitted is said at once, and a key that comes back is taken back."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import nkeys
import pytest

from remit import Agent, Hop, Refused, open_task
from remit_schemas.envelope import Result
from remit_schemas.errors import Code
from tests.support.local_nats import LocalNats
from tests.support.sdk_broker import ScriptedBroker, accepted, new_user_seed, root


def public(seed: str) -> str:
    return str(nkeys.from_seed(bytearray(seed.encode())).public_key.decode())


class Guarded:
    """A server with nkey users, a broker who may do everything, and agents who may do what they are given."""

    def __init__(self, folder: Path) -> None:
        self.server = LocalNats(folder)
        self.seeds = {"broker": new_user_seed(), "researcher": new_user_seed()}
        self.broker = ScriptedBroker(self.server.url, folder)
        self.credentials = self.broker.credentials("researcher", seed=self.seeds["researcher"])

    def configure(self, *, publish: list[str], subscribe: list[str], knows: bool = True) -> None:
        allowed = {"publish": publish, "subscribe": subscribe}
        users = [{"nkey": public(self.seeds["broker"])}]
        if knows:
            users.append({"nkey": public(self.seeds["researcher"]), "permissions": allowed})  # type: ignore[dict-item]
        self.server.config.write_text(
            f'host: "127.0.0.1"\nport: {self.server.port}\nauthorization {json.dumps({"users": users})}\n'
        )

    async def start(self) -> None:
        await self.server.start()
        await self.broker.start(
            nkeys_seed_str=self.seeds["broker"], reconnect_time_wait=0.05, max_reconnect_attempts=-1
        )


class Said(logging.Handler):
    """Waits for a line in the log of the SDK."""

    def __init__(self, *parts: str) -> None:
        super().__init__()
        self.parts, self.seen = parts, asyncio.Event()
        logging.getLogger("remit").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if all(part in record.getMessage() for part in self.parts):
            self.seen.set()


INBOX = "_INBOX_researcher.>"
SERVICE = "svc.agent.researcher.> researcher"
OWN = ["req.researcher.>", "res.researcher.>", "ctl.researcher.>"]


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Guarded]:
    made = Guarded(tmp_path)
    yield made
    if made.broker._nc is not None:
        await made.broker.stop()
    await made.server.close()


async def test_a_permission_violation_reaches_the_request(guarded: Guarded) -> None:
    guarded.configure(publish=["req.researcher.*.mcp.web.fetch"], subscribe=[INBOX])
    await guarded.start()
    guarded.broker.scripts["mcp/web/fetch"] = lambda _: [accepted(), Result(value=1)]
    async with open_task(grant=root("researcher"), as_="researcher", credentials=guarded.credentials) as task:
        # Beside a call that is permitted, and with a name that the server writes in lower case.
        permitted, forbidden = await asyncio.wait_for(
            asyncio.gather(task.call("mcp/web/fetch"), task.call("mcp/web/Delete It"), return_exceptions=True), 5
        )
        assert permitted == 1
        assert isinstance(forbidden, Refused)
        assert (forbidden.code, forbidden.rule, forbidden.effect) == (Code.OUT_OF_SCOPE, "bus.permissions", "none")


async def test_an_agent_that_may_not_serve_does_not_start(guarded: Guarded) -> None:
    guarded.configure(publish=OWN, subscribe=[INBOX])
    await guarded.start()
    agent = Agent("researcher", guarded.credentials)

    @agent.skill
    async def brief(hop: Hop) -> str:
        return "x"

    with pytest.raises(Refused) as no:
        await asyncio.wait_for(agent.start(), 5)
    assert no.value.rule == "bus.permissions" and not agent.connected


async def test_an_unknown_key_is_refused_and_said_so(guarded: Guarded) -> None:
    guarded.configure(publish=OWN, subscribe=[INBOX, SERVICE], knows=False)
    await guarded.start()
    with pytest.raises(Refused) as no:
        await asyncio.wait_for(Agent("researcher", guarded.credentials).connect(), 5)
    assert no.value.code is Code.UNAUTHENTICATED and "remit agents add researcher" in no.value.ask


async def test_an_agent_that_was_refused_for_a_while_comes_back(guarded: Guarded) -> None:
    """As when the bus is up again before the one who judges credentials: the library would give up for good."""
    guarded.configure(publish=OWN, subscribe=[INBOX, SERVICE])
    await guarded.start()
    agent = Agent("researcher", guarded.credentials)

    @agent.skill
    async def brief(hop: Hop) -> str:
        return "still here"

    async with agent:
        await guarded.broker.until_attached()
        refused = Said("cannot connect to", "Authorization Violation")
        await guarded.server.kill()
        guarded.configure(publish=OWN, subscribe=[INBOX, SERVICE], knows=False)
        await guarded.server.start()
        async with asyncio.timeout(10):
            await refused.seen.wait()
        await guarded.server.kill()
        guarded.configure(publish=OWN, subscribe=[INBOX, SERVICE])
        await guarded.server.start()
        await guarded.broker.until_attached()
        final = await (await guarded.broker.call("agent/researcher/brief")).final()
        assert isinstance(final, Result) and final.value == "still here"
