"""The examples of docs/sdk.md run, in their order, as they stand there."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from remit_schemas.budget import Budget
from remit_schemas.callee import control_subject
from remit_schemas.envelope import Error, Event, InputRequired, Progress, Request, Result, Resumed
from remit_schemas.errors import Code
from tests.support.local_nats import local_nats
from tests.support.sdk_broker import ScriptedBroker, accepted, dispatch, grant, no, root

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
        await _long_work(broker, namespace)
        broker.scripts["agent/researcher/brief"] = lambda _: [accepted(), Progress(message="…"), Result(value="brief")]
        assert await namespace["main"](root("planner")) == "brief"


async def _long_work(broker: ScriptedBroker, namespace: dict[str, Any]) -> None:
    call = dispatch("agent/researcher/publish", {"draft": "hops"})
    heard = await broker.send(call)
    asked = await heard.until(InputRequired)
    assert isinstance(asked, InputRequired) and asked.request == {"publish this?": "hops"}
    later = grant(call.txn, call.hop, "researcher", jti=f"{call.txn}.{call.hop}.2")
    again = msgspec.structs.replace(call, grant=later, resumed=Resumed(n=2, input=True))
    leaving = {"txn": "9" * 32, "grant": root("researcher"), "exp": int(time.time()) + 14_400}

    def archivist(request: Request) -> list[Any]:
        return [accepted(), Result(value=leaving if request.detach else "filed")]

    broker.scripts["agent/archivist/file"] = archivist
    await broker.send(again, control_subject("researcher", heard.connection, call.txn, call.hop))
    final = await heard.until(Result)
    assert isinstance(final, Result) and final.value == f"published, filed in {'9' * 32}"

    def publish(request: Request) -> list[Any]:
        if request.resume is None:
            return [accepted("a" * 16), InputRequired(request={"publish this?": "hops"})]
        return [accepted(request.resume), Result(value=f"answered {request.input}")]

    broker.scripts["agent/researcher/publish"] = publish
    assert await namespace["confirm"](root("planner")) == "answered True"
