"""Hostile clients and servers of tasks: an id is of use to nobody else, no call goes on for ever, and no server gives another's."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio

from remit_broker.edges.attach.source import source
from tests.integration.test_mcp_tasks import GENERATIONS, calling, in_session, once, started, until, until_alone
from tests.support.attach_fixture import SERVERS
from tests.support.mcp_client import PERMIT, Front, Raw, front_of
from tests.support.mcp_servers.working import SECRET

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]
RELEASE = (
    "release.cedar",
    '@id("masked")\n@reason("a test")\n@redact("secret")\npermit (principal, action == Action::"release", resource);',
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    async with AsyncExitStack() as stack:
        folder = tmp_path_factory.mktemp("front")
        running = await stack.enter_async_context(front_of(folder, policies=(PERMIT, RELEASE), servers=()))
        for name in (*GENERATIONS, "other"):
            generation = name if name in GENERATIONS else "sessions"
            await running.attach(name, source([sys.executable, str(SERVERS / "working.py"), generation]), stack)
        yield running


async def seen(raw: Raw) -> dict[str, Any]:
    """What the server has heard."""
    answer = await raw.ask("tools/call", calling("seen", ""))
    found: dict[str, Any] = json.loads(answer["result"]["content"][0]["text"])
    return found


async def until_cancelled(raw: Raw, text: str) -> None:
    """The server has heard that a task is not wanted any more."""
    async with asyncio.timeout(30):
        while text not in (await seen(raw))["cancelled"]:
            await asyncio.sleep(0.1)


async def granted(front: Front) -> str:
    if front.lab.broker.registry.principal("thief") is None:
        await front.lab.agent("thief")
    opened = await front.lab.grant("thief", "mcp/**", user="bob")
    return opened.grant


async def test_a_task_of_another_is_not_there(front: Front) -> None:
    mine = await in_session(front, "sessions")
    name = await started(mine, "work", "mine")
    same_user, elsewhere = await in_session(front, "sessions"), await in_session(front, "other")
    thief = front.raw("/mcp/sessions", await granted(front))
    await thief.begin()
    for other in (same_user, elsewhere, thief):
        for method in ("tasks/get", "tasks/result", "tasks/cancel"):
            answer = await other.ask(method, {"taskId": name})
            assert answer["error"]["code"] == -32602 and name not in str(answer)
        assert (await other.ask("tasks/list"))["result"]["tasks"] == []
    # Nor is it of use to a client without a session, nor the id that the server itself gave it.
    for given in (name, "server-1", "", None, ["x"], 7):
        assert (await mine.ask("tasks/get", {"taskId": given})).get("error" if given != name else "result")
    alone = front.raw("/mcp/sessions")
    assert (await once(alone, "tasks/get", {"taskId": name}))["error"]["code"] == -32602
    assert (await seen(mine))["cancelled"] == []
    assert (await mine.ask("tasks/get", {"taskId": name}))["result"]["status"] == "working"
    await mine.ask("tools/call", calling("finish", "mine"))
    assert "result" in await mine.ask("tasks/result", {"taskId": name})


async def test_a_task_without_a_session_is_its_users_alone(front: Front) -> None:
    mine, token = front.raw("/mcp/requests"), await granted(front)
    name = (await once(mine, "tools/call", calling("work", "alone")))["result"]["taskId"]
    for other in (front.raw("/mcp/requests", token), front.raw("/mcp/sessions"), front.raw("/mcp")):
        for method in ("tasks/get", "tasks/cancel", "tasks/update"):
            assert (await once(other, method, {"taskId": name, "inputResponses": {}}))["error"]["code"] == -32602
    # What a header says has to be what the body says.
    for wrong in ("another", ""):
        response = await mine.once("tasks/get", {"taskId": name}, {"Mcp-Name": wrong})
        assert response.json()["error"]["code"] == -32020
    await once(mine, "tools/call", calling("finish", "alone"))
    assert (await until_alone(mine, name, "completed"))["result"]["content"][0]["text"] == "result of alone"


async def test_a_task_without_end_ends_with_its_time(front: Front) -> None:
    raw = await in_session(front, "sessions")
    answer = await raw.ask("tools/call", calling("work", "endless", task={"ttl": 1500}))
    name = answer["result"]["task"]["taskId"]
    while "error" not in (said := await raw.ask("tasks/get", {"taskId": name})):
        assert said["result"]["status"] in ("working", "failed")
    assert said["error"]["code"] == -32602
    await until_cancelled(raw, "endless")
    while True:
        (txn, *_) = await front.txns()
        records = await front.lab.records(txn)
        opened = next(
            one["hop"] for one in records if one["kind"] == "hop.opened" and one["resource"].endswith("/work")
        )
        closed = [one for one in records if one["kind"] == "hop.closed" and one["hop"] == opened]
        if closed:
            assert closed[0]["outcome"] != "ok"
            break


@pytest.mark.parametrize("server", GENERATIONS)
async def test_a_cancelled_task_is_cancelled_at_its_server_and_gives_nothing_out(front: Front, server: str) -> None:
    raw, text = await in_session(front, server), f"unwanted-{server}"
    name = await started(raw, "work", text)
    assert (await raw.ask("tasks/cancel", {"taskId": name}))["result"]["status"] == "cancelled"
    assert (await raw.ask("tasks/cancel", {"taskId": name}))["error"]["code"] == -32602
    await until_cancelled(raw, text)
    await raw.ask("tools/call", calling("finish", text))
    result = (await raw.ask("tasks/result", {"taskId": name}))["result"]
    assert result["isError"] and result["_meta"]["dev.remit/error"]["code"] == "CANCELLED"
    assert (await raw.ask("tasks/get", {"taskId": name}))["result"]["status"] == "cancelled"


async def test_a_session_that_ends_takes_its_tasks_with_it(front: Front) -> None:
    raw = await in_session(front, "sessions")
    await started(raw, "work", "left behind")
    headers = {"Authorization": f"Bearer {raw.token}", "Mcp-Session-Id": raw.session}
    assert (await front.http.delete(front.url + raw.path, headers=headers)).status_code == 204
    other = await in_session(front, "sessions")
    await until_cancelled(other, "left behind")


@pytest.mark.parametrize("server", GENERATIONS)
async def test_a_server_that_gives_two_calls_one_task_gives_the_second_nothing(front: Front, server: str) -> None:
    first, second = await in_session(front, server), await in_session(front, server)
    one = await started(first, "twin", f"first-{server}")
    two = await started(second, "twin", f"second-{server}")
    await until(second, two, "failed")
    result = (await second.ask("tasks/result", {"taskId": two}))["result"]
    assert result["isError"] and "another call has" in result["content"][0]["text"]
    assert "result of" not in str(result)
    await first.ask("tools/call", calling("finish", f"second-{server}"))  # the server itself takes them for one
    assert "result" in await first.ask("tasks/result", {"taskId": one})


@pytest.mark.parametrize("server", GENERATIONS)
async def test_a_server_that_answers_for_another_task_is_not_believed(front: Front, server: str) -> None:
    raw = await in_session(front, server)
    other = await started(raw, "other", f"other-{server}")
    name = await started(raw, "work", "lie")
    await until(raw, name, "failed")
    result = (await raw.ask("tasks/result", {"taskId": name}))["result"]
    assert result["isError"] and "for another task" in result["content"][0]["text"]
    assert "of another" not in str(result)
    await raw.ask("tasks/cancel", {"taskId": other})


async def test_the_result_of_a_task_is_searched_as_any_result_is(front: Front) -> None:
    raw = await in_session(front, "sessions")
    name = await started(raw, "work", "secret")
    await raw.ask("tools/call", calling("finish", "secret"))
    told = await raw.ask("tasks/result", {"taskId": name})
    assert "the token is" in str(told) and SECRET not in str(told)


async def test_a_task_that_is_refused_says_so_where_its_result_would_be(front: Front) -> None:
    await front.lab.agent("narrow")
    raw = front.raw("/mcp/sessions", (await front.lab.grant("narrow", "mcp/sessions/finish", user="bob")).grant)
    await raw.begin()
    task = (await raw.ask("tools/call", calling("work", "x", task={})))["result"]["task"]
    await until(raw, task["taskId"], "failed")
    result = (await raw.ask("tasks/result", {"taskId": task["taskId"]}))["result"]
    assert result["isError"] and result["_meta"]["dev.remit/error"]["code"] == "OUT_OF_SCOPE"
