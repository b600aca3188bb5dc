"""Servers that die, hang, lie or flood: each is answered clearly, with the right effect, and does not take the worker with it."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from remit_broker.edges.attach.serve import MAX_CALLS
from remit_broker.edges.attach.server_log import MAX_BYTES
from remit_broker.edges.attach.session import ToolSession
from remit_broker.edges.attach.source import HttpSource, source
from remit_schemas.envelope import Started
from remit_schemas.errors import Code
from tests.support.attach_broker import definitions
from tests.support.attach_fixture import (  # noqa: F401
    SERVERS,
    Desk,
    alive,
    desk_fixture,
    eventually,
    free_port,
    hostile,
    listens,
)


async def test_a_server_that_dies_on_a_call_leaves_the_effect_unknown(desk: Desk) -> None:
    attached = await desk.attach(hostile("dies-on-call"), first_restart=2)
    first = await (await desk.broker.call("files", "act")).error()
    assert (first.code, first.effect, first.retryable) == (Code.TARGET_UNAVAILABLE, "unknown", False)
    await attached.until("starting")
    while_away = await (await desk.broker.call("files", "fine")).error()
    assert (while_away.code, while_away.effect, while_away.retryable) == (Code.TARGET_UNAVAILABLE, "none", True)
    assert while_away.retry_after is not None
    await attached.until("running")
    await (await desk.broker.call("files", "fine")).value()


async def test_a_dead_server_is_restarted_with_growing_pauses(desk: Desk) -> None:
    attached = await desk.attach(hostile("dies-on-call"), first_restart=0.1, last_restart=0.4)
    for _ in range(4):
        await attached.until("running")
        await (await desk.broker.call("files", "act")).error()
        await attached.until("starting")
    pauses = [report.reason.rpartition(" in ")[2] for report in attached.reports if report.state == "starting"]
    assert pauses[:4] == ["0.1 s", "0.2 s", "0.4 s", "0.4 s"]


async def test_a_call_that_is_never_answered_ends_at_its_deadline_and_a_living_server_stays(desk: Desk) -> None:
    attached = await desk.attach(hostile("hangs-on-call"))
    error = await (await desk.broker.call("files", "act", seconds=0.5)).error()
    assert (error.code, error.effect) == (Code.DEADLINE_EXCEEDED, "unknown")
    await (await desk.broker.call("files", "fine")).value()
    assert [report.state for report in attached.reports] == ["running"]


async def test_a_server_that_hangs_as_a_whole_is_started_again(desk: Desk) -> None:
    attached = await desk.attach(hostile("hangs-on-call"))
    pid = attached.worker.report.pid
    error = await (await desk.broker.call("files", "act", {"forever": True}, seconds=0.5)).error()
    assert (error.code, error.effect) == (Code.DEADLINE_EXCEEDED, "unknown")
    await attached.until("starting")
    assert "hung" in attached.worker.report.reason
    await attached.until("running")
    assert attached.worker.report.pid != pid
    assert pid is not None and not alive(pid)
    await (await desk.broker.call("files", "fine")).value()


async def test_a_full_pipe_does_not_delay_the_deadline(desk: Desk) -> None:
    await desk.attach(hostile("full-pipe"))
    await desk.broker.call("files", "act", seconds=30)
    hops = [await desk.broker.call("files", "act", {"x": "y" * 300_000}, seconds=1.5) for _ in range(3)]
    async with asyncio.timeout(4):
        errors = [await hop.error() for hop in hops]
    assert {error.code for error in errors} == {Code.DEADLINE_EXCEEDED}
    assert {error.effect for error in errors} == {"unknown"}


async def test_a_server_that_never_answers_the_handshake_is_given_up(desk: Desk) -> None:
    attached = desk.begin(hostile("hangs-on-initialize"), start=1)
    report = await attached.until("failed")
    assert "did not answer the handshake within 1 s" in report.reason


async def test_a_server_that_dies_at_its_start_is_reported_with_its_last_words(desk: Desk) -> None:
    report = await desk.begin(hostile("dies-at-start")).until("failed")
    assert "I cannot find my configuration" in report.reason


async def test_a_command_that_does_not_exist_is_reported(desk: Desk) -> None:
    report = await desk.begin(source(["/no/such/command"])).until("failed")
    assert "cannot run '/no/such/command'" in report.reason


async def test_an_unreachable_url_is_reported(desk: Desk) -> None:
    report = await desk.begin(HttpSource(f"http://127.0.0.1:{free_port()}/mcp")).until("failed")
    assert "cannot be reached" in report.reason


async def test_garbage_on_standard_output_is_skipped(desk: Desk) -> None:
    await desk.attach(hostile("garbage"))
    await (await desk.broker.call("files", "fine")).value()


async def test_ten_megabytes_are_refused_with_effect_happened(desk: Desk) -> None:
    await desk.attach(hostile("huge"))
    error = await (await desk.broker.call("files", "act")).error()
    assert (error.code, error.effect) == (Code.RESULT_INVALID, "happened")
    assert "bytes" in error.message
    await (await desk.broker.call("files", "fine")).value()


async def test_a_line_without_an_end_ends_the_session_not_the_worker(desk: Desk) -> None:
    attached = await desk.attach(hostile("endless-line"))
    error = await (await desk.broker.call("files", "act")).error()
    assert (error.code, error.effect) == (Code.TARGET_UNAVAILABLE, "unknown")
    assert "a line of more than" in error.message
    await attached.until("starting")
    await attached.until("running")
    await (await desk.broker.call("files", "fine")).value()


@pytest.mark.parametrize(
    ("mode", "code", "effect"),
    [
        ("not-a-result", Code.RESULT_INVALID, "happened"),
        ("nan", Code.RESULT_INVALID, "happened"),
        ("deep", Code.RESULT_INVALID, "happened"),
        ("big-integer", Code.RESULT_INVALID, "happened"),
        ("asks-input", Code.RESULT_INVALID, "happened"),
        ("protocol-error", Code.INTERNAL, "unknown"),
    ],
)
async def test_answers_that_cannot_be_passed_on_are_refused(desk: Desk, mode: str, code: Code, effect: str) -> None:
    await desk.attach(hostile(mode))
    error = await (await desk.broker.call("files", "act")).error()
    assert (error.code, error.effect) == (code, effect), error
    assert error.message.isprintable()
    await (await desk.broker.call("files", "fine")).value()


async def test_a_second_answer_is_ignored(desk: Desk) -> None:
    await desk.attach(hostile("two-answers"))
    hop = await desk.broker.call("files", "act")
    assert (await hop.value())["content"][0]["text"] == "first"
    await (await desk.broker.call("files", "fine")).value()
    assert hop.finals == 1


async def test_a_result_that_breaks_its_schema_is_passed_on_for_the_broker_to_judge(desk: Desk) -> None:
    await desk.attach(hostile("breaks-schema"))
    value = await (await desk.broker.call("files", "act")).value()
    assert value["structuredContent"] == {"n": "seven"}


async def test_changed_tools_are_registered_again(desk: Desk) -> None:
    await desk.attach(hostile("changes"))
    before = definitions(await desk.broker.registered())
    await (await desk.broker.call("files", "act")).value()
    after = definitions(await desk.broker.registered())
    assert set(before) == {"act", "fine"}
    assert set(after) == {"act", "extra"}
    assert after["act"]["description"] == "now it does something else"
    error = await (await desk.broker.call("files", "fine")).error()
    assert (error.code, error.effect) == (Code.UNKNOWN_TARGET, "none")


async def test_thousands_of_tools_come_page_by_page(desk: Desk) -> None:
    await desk.attach(hostile("many", 1950))
    assert len(definitions(await desk.broker.registered())) == 1950
    await (await desk.broker.call("files", "tool_1949")).value()


async def test_more_tools_than_can_be_registered_are_left_out_by_name(desk: Desk) -> None:
    attached = await desk.attach(hostile("many", 2100))
    assert len(definitions(await desk.broker.registered())) == 2000
    (said,) = attached.worker.report.left_out
    assert "tool_2000" in said and "2000" in said


async def test_endless_pages_are_given_up(desk: Desk) -> None:
    report = await desk.begin(hostile("cursor-loop")).until("failed")
    assert "round in circles" in report.reason


async def test_names_that_no_resource_can_have_are_left_out_with_reasons(desk: Desk) -> None:
    attached = await desk.attach(hostile("names"))
    tools = definitions(await desk.broker.registered())
    assert set(tools) == {"grüße", "two words", "find", "日本語", "dot.ted"}
    left_out = " | ".join(attached.worker.report.left_out)
    for name in ("'a/b'", "'star*'", "'..'", "'find'", "''"):
        assert name in left_out
    for name in tools:
        await (await desk.broker.call("files", name)).value()


MALFORMED = ("None", "7", "no_schema", "schema_is_text", "schema_without_type", "too_large", "not_a_number", "nested",
             "half_a_character", "no_output", "annotations_are_text", "a/b", "xxx", "zero")  # fmt: skip


@pytest.mark.parametrize("way", ["stdio", "document", "events"])
async def test_one_malformed_tool_keeps_no_other_from_being_registered(desk: Desk, way: str) -> None:
    async with AsyncExitStack() as stack:
        if way == "stdio":
            what = hostile("malformed")
        else:
            port = free_port()
            words = [sys.executable, str(SERVERS / "hostile.py"), "malformed", "http", str(port), way]
            process = await asyncio.create_subprocess_exec(*words)
            stack.push_async_callback(process.wait)
            stack.callback(process.kill)
            await listens(port)
            what = HttpSource(f"http://127.0.0.1:{port}/mcp")
        attached = await desk.attach(what)
        tools = definitions(await desk.broker.registered())
        # What only a compiler of schemas sees is left to the broker.
        assert set(tools) == {"fine", "unknown_type", "leads_elsewhere", "no_regex"}
        left_out = attached.worker.report.left_out
        for name in MALFORMED:
            assert any(name in line.partition(":")[0] for line in left_out), name
        assert all(line.rpartition(": ")[2].strip() and line.isprintable() for line in left_out)
        await (await desk.broker.call("files", "fine")).value()
        # Asked whether it lives, it is not taken for dead.
        assert isinstance(session := attached.worker._calls.server, ToolSession) and await session.lives(5)
        await attached.stop()


async def test_stopping_ends_grandchildren_too(desk: Desk, tmp_path: Path) -> None:
    note = tmp_path / "grandchild"
    attached = await desk.attach(hostile("grandchild", note))
    grandchild, server = int(note.read_text()), attached.worker.report.pid
    assert alive(grandchild)
    await attached.stop()
    assert server is not None
    await eventually(lambda: not alive(grandchild) and not alive(server))


async def test_stopping_during_the_handshake_is_prompt_and_leaves_nothing(desk: Desk, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    attached = desk.begin(hostile("hangs-on-initialize", note), start=60)
    await eventually(lambda: note.exists() and note.read_text())
    async with asyncio.timeout(8):
        await attached.stop()
    assert attached.worker.report.state == "stopped"
    assert not alive(int(note.read_text()))


async def test_the_log_of_a_flood_is_bounded_and_private(desk: Desk) -> None:
    await desk.attach(hostile("stderr-flood"))
    log = desk.folder / "files.log"
    await eventually(lambda: log.exists() and log.read_bytes().endswith(b"the end\n"))
    sizes = [path.stat().st_size for path in desk.folder.glob("files.log*")]
    assert len(sizes) == 2 and max(sizes) <= MAX_BYTES
    assert log.stat().st_mode & 0o077 == 0


async def test_what_a_server_says_on_standard_error_never_reaches_the_bus(desk: Desk) -> None:
    await desk.attach(hostile("dies-on-call"))
    error = await (await desk.broker.call("files", "act")).error()
    assert "it was too much" not in f"{error.message}{error.ask}"


async def test_more_calls_than_a_server_is_given_are_turned_away_before_anything_is_sent(desk: Desk) -> None:
    await desk.attach(hostile("hangs-on-call"))
    held = [await desk.broker.call("files", "act", seconds=20) for _ in range(MAX_CALLS)]
    await asyncio.gather(*(hop.until(Started) for hop in held))
    error = await (await desk.broker.call("files", "act")).error()
    assert (error.code, error.effect, error.retryable) == (Code.TARGET_UNAVAILABLE, "none", True)
