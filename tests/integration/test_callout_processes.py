"""The callout as processes of its own: who connects does not depend on a broker, and nobody is let in by one that cannot know."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import pytest

from remit_broker.config import settings
from remit_broker.edges.callout import Admitted, Refused
from remit_broker.gate import Gate
from remit_broker.testing import Lab, running_broker
from tests.integration.test_external_bus import serving
from tests.support.attach_fixture import eventually
from tests.support.raw import RawAgent

pytestmark = pytest.mark.slow

REFUSED = (nats.errors.Error, TimeoutError, OSError)
"""How the client library tells of a connection that was not let in: by what it heard before the server hung up."""


@contextlib.asynccontextmanager
async def callout(folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """``remit callout`` on a folder, ready."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "remit_broker.cli.main", "callout", "-c", str(folder / "remit.toml"), "--json", "--quiet",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        ready = json.loads(await asyncio.wait_for(process.stdout.readline(), 30))
        assert ready["ready"] is True and ready["pid"] == process.pid
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGCONT)
            await asyncio.wait_for(process.wait(), 20)


def callouts(lab: Lab) -> list[int]:
    """The processes that a broker knows to answer the callout beside it."""
    return [one["pid"] for one in lab.broker.health.replicas() if one.get("role") == "callout"]


async def connects(lab: Lab, name: str) -> float:
    """Connect as an agent and disconnect; how long it took, in seconds."""
    began = time.monotonic()
    agent = await RawAgent(lab, name, "agent").connect()
    await agent.close()
    return time.monotonic() - began


async def test_agents_connect_while_no_broker_runs_and_while_a_callout_is_killed(tmp_path: Path):
    async with serving(tmp_path) as url:
        config = {"bus": {"url": url, "callout": "process"}}
        (tmp_path / "remit.toml").write_text(f'[http]\nport = 0\n[bus]\nurl = "{url}"\ncallout = "process"\n')
        async with callout(tmp_path) as first:
            async with running_broker(tmp_path, config) as lab:
                await lab.agent("alice")
                await connects(lab, "alice")
                await eventually(lambda: callouts(lab) == [first.pid])  # with its next heartbeat
            await connects(lab, "alice")  # the broker is gone
            async with callout(tmp_path):
                first.send_signal(signal.SIGKILL)
                await first.wait()
                took = [await connects(lab, "alice") for _ in range(10)]
                assert max(took) < 2.0
            with pytest.raises(REFUSED):
                await connects(lab, "alice")  # nobody answers any more


async def test_the_broker_leaves_the_callout_to_them(tmp_path: Path):
    async with serving(tmp_path) as url, running_broker(tmp_path, {"bus": {"url": url, "callout": "process"}}) as lab:
        await lab.agent("alice")
        with pytest.raises(REFUSED):
            await connects(lab, "alice")
        wanted = settings(tmp_path / "remit.toml", {"bus": {"url": url, "callout": "process"}})
        async with Gate(wanted, url):
            await connects(lab, "alice")


async def test_many_who_connect_at_once_are_all_answered_in_time(tmp_path: Path):
    async with serving(tmp_path) as url, running_broker(tmp_path, {"bus": {"url": url}}) as lab:
        await lab.agent("alice")
        took = await asyncio.gather(*(connects(lab, "alice") for _ in range(100)))
        assert len(took) == 100, "the server waits two seconds for each: one that was answered later would not be in"


def test_a_callout_that_cannot_hear_lets_nobody_in():
    class Deaf:
        fresh = False

        def agent(self, name: str) -> None:
            return None

        def tenant(self, name: str) -> None:
            return None

        def of(self, tenant: str) -> Deaf:
            return self

        def take(self, name: str, tenant: str) -> str:
            return ""

        def by_nkey(self, public: str) -> None:
            raise AssertionError("nobody is looked up")

    with pytest.raises(Refused, match="has not heard"):
        Admitted(Deaf(), Deaf(), Deaf()).by_nkey("U")
