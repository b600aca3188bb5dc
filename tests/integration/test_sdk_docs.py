"""The examples of docs/sdk.md run, in their order, as they stand there."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from remit_schemas.budget import Budget
from remit_schemas.envelope import Error, Event, Progress, Result
from remit_schemas.errors import Code
from tests.support.local_nats import local_nats
from tests.support.sdk_broker import ScriptedBroker, accepted, dispatch, no, root

PAGE = Path(__file__).parents[2] / "docs" / "sdk.md"


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[ScriptedBroker]:
    async with local_nats(tmp_path) as server:
        running = ScriptedBroker(server.url, tmp_path)
        await running.start()
        yield running
        await running.stop()


async def test_the_examples_run(broker: ScriptedBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMIT_CREDENTIALS", str(broker.folder))
    broker.credentials("researcher")
    broker.credentials("planner")
    namespace: dict[str, Any] = {"__name__": "example"}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S):
        exec(block, namespace)
    page = {"content": [{"type": "text", "text": "page"}], "isError": False}
    broker.scripts["mcp/web/fetch"] = lambda _: [accepted(), Result(value=page)]
    broker.scripts["agent/critic/review"] = lambda _: [no(Code.POLICY_DENIED, ask="ask ann")]
    async with namespace["me"]:
        heard = await broker.call("agent/researcher/brief", topic="nats")
        final = await heard.final()
        assert isinstance(final, Result) and final.value == "page\npage"
        assert Event(data={"note": "not reviewed: ask ann"}) in heard.frames
        assert Progress(message="searching for ann@example.org") in heard.frames
        budgets = {str(at.name): request.want.budget for at, request in broker.requests if at.kind != "remit"}
        assert budgets == {"web": Budget(125_000, 125, 1), "critic": Budget(50_000, 0, 3)}
        unknown = await (await broker.send(dispatch("agent/researcher/lookup", {"word": "x"}))).final()
        assert isinstance(unknown, Error) and (unknown.error.rule, unknown.error.effect) == ("lookup.word", "none")
        broker.scripts["agent/researcher/brief"] = lambda _: [accepted(), Progress(message="…"), Result(value="brief")]
        assert await namespace["main"](root("planner")) == "brief"
