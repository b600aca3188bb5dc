"""An unmodified MCP server on the bus: what reaches it, what comes back, and who may ask."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, get_current_span, use_span

from remit_broker.edges.attach.source import HttpSource, source
from remit_broker.edges.attach.timing import Timing
from remit_schemas.callee import answer_subject
from remit_schemas.envelope import MAX_ENVELOPE, Error, Part, Progress, Result, Started
from remit_schemas.errors import Code, ErrorBody
from remit_schemas.keys import KeySet, SigningKey
from remit_schemas.parts import AHEAD, Joiner
from tests.support.attach_broker import FakeBroker, definitions
from tests.support.attach_fixture import SERVERS, Desk, alive, desk_fixture, eventually, free_port, well_behaved  # noqa: F401
from tests.support.local_nats import local_nats


async def test_tools_are_registered_as_the_server_describes_them(desk: Desk) -> None:
    await desk.attach(well_behaved())
    args = await desk.broker.registered()
    tools = definitions(args)
    assert args["server"] == {"name": "well-behaved", "version": "1.2.3"}
    assert tools["add"]["inputSchema"]["required"] == ["a", "b"]
    assert tools["add"]["outputSchema"]["properties"]["sum"]["type"] == "integer"
    assert tools["destructive_thing"]["annotations"]["destructiveHint"] is True
    assert tools["read_thing"]["annotations"]["readOnlyHint"] is True
    assert tools["echo"]["description"] == "Say it again."


async def test_a_call_gives_started_and_one_result(desk: Desk) -> None:
    worker = (await desk.attach(well_behaved())).worker
    hop = await desk.broker.call("files", "add", {"a": 2, "b": 3})
    value = await hop.value()
    assert hop.frames == [Started(connection=worker.connection), Result(value=value)]
    assert value["structuredContent"] == {"sum": 5}
    assert value["isError"] is False


async def test_a_failure_of_the_tool_is_a_result_that_says_failed(desk: Desk) -> None:
    await desk.attach(well_behaved())
    final = await (await desk.broker.call("files", "fails", {"why": "no such row"})).final()
    assert final == Result(value={"content": [{"type": "text", "text": "no such row"}], "isError": True}, failed=True)


async def test_progress_is_passed_on_before_the_result(desk: Desk) -> None:
    await desk.attach(well_behaved())
    hop = await desk.broker.call("files", "slow", {"seconds": 1.0, "steps": 3})
    await hop.final()
    assert hop.progress[0] == Progress(message="step 1", progress=1.0, total=3.0)
    assert [frame.progress for frame in hop.progress] == [1.0, 2.0, 3.0]
    assert isinstance(hop.frames[-1], Result)


async def test_a_slow_call_does_not_hold_up_another(desk: Desk) -> None:
    await desk.attach(well_behaved())
    slow = await desk.broker.call("files", "slow", {"seconds": 20})
    await slow.until(Progress)
    async with asyncio.timeout(5):
        values = await asyncio.gather(
            *[(await desk.broker.call("files", "echo", {"text": str(n)})).value() for n in range(20)]
        )
    assert [value["structuredContent"]["result"] for value in values] == [str(n) for n in range(20)]
    assert slow.finals == 0


async def _seen_by_server(desk: Desk) -> tuple[Any, dict[str, Any]]:
    hop = await desk.broker.call("files", "who_am_i", {})
    return hop, json.loads((await hop.value())["content"][0]["text"])


def _assert_meta(hop: Any, meta: dict[str, Any]) -> None:
    assert meta["dev.remit/user"] == "ann@example.org"
    assert meta["dev.remit/chain"] == ["files", "researcher", "planner"]
    assert (meta["dev.remit/txn"], meta["dev.remit/hop"]) == (hop.txn, hop.hop)
    assert meta["traceparent"] == f"00-{hop.txn}-{hop.hop}-01"
    assert meta["dev.remit/grant"].count(".") == 2


async def test_the_real_user_and_chain_reach_a_stdio_server_in_meta(desk: Desk) -> None:
    await desk.attach(well_behaved())
    hop, seen = await _seen_by_server(desk)
    _assert_meta(hop, seen["meta"])


async def test_the_trace_of_the_hop_is_not_replaced_by_the_librarys_own_span(desk: Desk) -> None:
    foreign = SpanContext(int("f" * 32, 16), int("e" * 16, 16), is_remote=False, trace_flags=TraceFlags(1))
    with use_span(NonRecordingSpan(foreign)):
        assert get_current_span().get_span_context() == foreign
        attached = desk.begin(well_behaved())
    await attached.until("running")
    hop, seen = await _seen_by_server(desk)
    _assert_meta(hop, seen["meta"])


async def test_a_server_that_is_told_no_trace_gets_none_of_the_librarys_own_either(desk: Desk) -> None:
    desk.broker.answer = Result(value={"definitions": 0})
    foreign = SpanContext(int("f" * 32, 16), int("e" * 16, 16), is_remote=False, trace_flags=TraceFlags(1))
    with use_span(NonRecordingSpan(foreign)):
        attached = desk.begin(well_behaved())
    await attached.until("running")
    _, seen = await _seen_by_server(desk)
    assert not {"traceparent", "tracestate", "baggage"} & seen["meta"].keys()


async def test_over_http_the_grant_is_also_the_bearer_token_of_that_request(desk: Desk) -> None:
    port = free_port()
    server = await asyncio.create_subprocess_exec(
        sys.executable, str(SERVERS / "well_behaved.py"), "http", str(port), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await _listening(port)
        await desk.attach(HttpSource(f"http://127.0.0.1:{port}/mcp"))
        hop, seen = await _seen_by_server(desk)
        _assert_meta(hop, seen["meta"])
        assert seen["authorization"] == f"Bearer {seen['meta']['dev.remit/grant']}"
        slow = await desk.broker.call("files", "slow", {"seconds": 1.0, "steps": 3})
        await slow.final()
        assert len(slow.progress) == 3
        large = await desk.broker.call("files", "big", {"size": 3_000_000})
        assert (await large.error()).code is Code.RESULT_INVALID
        late = await desk.broker.call("files", "slow", {"seconds": 30}, seconds=0.7)
        assert (await late.error()).code is Code.DEADLINE_EXCEEDED
        await (await desk.broker.call("files", "echo", {"text": "still there"})).value()
    finally:
        server.kill()
        await server.wait()
    gone = await (await desk.broker.call("files", "echo", {"text": "?"})).error()
    assert (gone.code, gone.effect, gone.retryable) == (Code.TARGET_UNAVAILABLE, "none", True)


async def _listening(port: int) -> None:
    async with asyncio.timeout(15):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            return


async def test_the_server_sees_only_declared_environment(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not yours")
    command = [sys.executable, str(SERVERS / "well_behaved.py")]
    await desk.attach(source(command, env={"DECLARED": "yes"}))
    seen = (await (await desk.broker.call("files", "environment", {})).value())["structuredContent"]
    assert seen["DECLARED"] == "yes"
    assert set(seen) - {"LC_CTYPE"} <= {"PATH", "HOME", "LANG", "TMPDIR", "DECLARED"}


async def test_a_result_too_large_for_the_bus_is_refused_with_its_size_and_the_cap(desk: Desk) -> None:
    await desk.attach(well_behaved())
    error = await (await desk.broker.call("files", "big", {"size": MAX_ENVELOPE})).error()
    assert (error.code, error.effect, error.retryable) == (Code.RESULT_INVALID, "happened", False)
    assert str(MAX_ENVELOPE) in error.message
    await (await desk.broker.call("files", "big", {"size": MAX_ENVELOPE - 2000})).value()


async def test_a_large_result_of_a_server_comes_in_parts_where_they_are_taken(desk: Desk) -> None:
    await desk.attach(well_behaved())
    hop = await desk.broker.call("files", "big", {"size": 4_000_000}, parts=16 << 20)
    final = await hop.final()
    assert isinstance(final, Result) and final.parts > AHEAD
    joiner = Joiner(16 << 20)
    for frame in hop.frames:
        if isinstance(frame, Part):
            joiner.take(frame)
    whole = joiner.whole(final).value
    assert len(whole["content"][0]["text"]) == 4_000_000 and whole["isError"] is False
    error = await (await desk.broker.call("files", "big", {"size": 4_000_000}, parts=1 << 20)).error()
    assert (error.code, error.effect) == (Code.RESULT_INVALID, "happened")


async def test_a_call_past_its_deadline_in_the_server_ends_with_effect_unknown(desk: Desk) -> None:
    await desk.attach(well_behaved())
    hop = await desk.broker.call("files", "slow", {"seconds": 30}, seconds=0.7)
    error = await hop.error()
    assert (error.code, error.effect) == (Code.DEADLINE_EXCEEDED, "unknown")
    await (await desk.broker.call("files", "echo", {"text": "still there"})).value()
    assert hop.finals == 1


async def test_a_cancelled_call_ends_as_cancelled(desk: Desk) -> None:
    await desk.attach(well_behaved())
    hop = await desk.broker.call("files", "slow", {"seconds": 30})
    await desk.broker.cancel("files", hop)
    error = await hop.error(seconds=5)
    assert (error.code, error.effect) == (Code.CANCELLED, "unknown")


# Who may ask


async def _nothing_reached(desk: Desk, dispatch: Any, tool: str = "destructive_thing") -> list[Any]:
    """Send it, then a good call over the same connection: when that is answered, the first one was dealt with."""
    hop = await desk.broker.send("files", dispatch, tool)
    await (await desk.broker.call("files", "echo", {"text": "after"})).value()
    return hop.frames


@pytest.mark.parametrize(
    ("claims", "rule"),
    [
        ({"aud": "mail"}, "grant.audience"),
        ({"iss": "https://elsewhere.test"}, "grant.issuer"),
        ({"key": SigningKey.from_seed(b"m" * 32)}, "grant.kid"),
        ({"iat": 1_000_000, "exp": 1_000_060}, "grant.expired"),
        ({"jti": f"{'b' * 32}.{'c' * 16}.1", "txn": "b" * 32}, "dispatch.grant"),
        ({"authorization_details": ()}, "dispatch.scope"),
    ],
)
async def test_a_dispatch_without_a_genuine_grant_reaches_nothing(
    desk: Desk, claims: dict[str, Any], rule: str
) -> None:
    await desk.attach(well_behaved())
    dispatch = desk.broker.dispatch("files", "destructive_thing", {"name": "x"}, claims=claims)
    frames = await _nothing_reached(desk, dispatch)
    assert [type(frame) for frame in frames] == [Error]
    assert (frames[0].error.rule, frames[0].error.effect) == (rule, "none")


async def test_a_changed_signature_reaches_nothing(desk: Desk) -> None:
    await desk.attach(well_behaved())
    good = desk.broker.dispatch("files", "destructive_thing", {"name": "x"})
    head, body, signature = good.grant.split(".")
    changed = ("A" if signature[0] != "A" else "B") + signature[1:]
    dispatch = desk.broker.dispatch("files", "destructive_thing", {"name": "x"}, txn=good.txn, hop=good.hop, grant="")
    frames = await _nothing_reached(desk, _with(dispatch, grant=f"{head}.{body}.{changed}"))
    assert [frame.error.rule for frame in frames] == ["grant.signature"]


def _with(dispatch: Any, **changes: Any) -> Any:
    return msgspec.structs.replace(dispatch, **changes)


async def test_a_dispatch_past_its_deadline_is_dropped(desk: Desk) -> None:
    await desk.attach(well_behaved())
    assert (
        await _nothing_reached(desk, desk.broker.dispatch("files", "destructive_thing", {"name": "x"}, seconds=-1))
        == []
    )


async def test_a_repeated_dispatch_is_served_once(desk: Desk) -> None:
    await desk.attach(well_behaved())
    dispatch = desk.broker.dispatch("files", "echo", {"text": "once"})
    hop = await desk.broker.send("files", dispatch, "echo")
    await desk.broker.send("files", dispatch, "echo")
    await hop.final()
    await desk.broker.send("files", dispatch, "echo")
    await (await desk.broker.call("files", "echo", {"text": "after"})).value()
    assert [type(frame) for frame in hop.frames] == [Started, Result]


async def test_a_subject_that_differs_from_the_resource_is_refused(desk: Desk) -> None:
    await desk.attach(well_behaved())
    frames = await _nothing_reached(desk, desk.broker.dispatch("files", "read_thing", {"name": "x"}))
    assert [frame.error.rule for frame in frames] == ["dispatch.subject"]


@pytest.mark.parametrize("field", ["txn", "hop", "replica"])
async def test_ids_that_would_change_the_reply_subject_get_no_answer(desk: Desk, field: str) -> None:
    await desk.attach(well_behaved())
    dispatch = _with(desk.broker.dispatch("files", "echo", {"text": "x"}), **{field: "a.>"})
    assert answer_subject("files", dispatch) is None
    await desk.broker.nc.publish("svc.mcp.files.echo", msgspec.json.encode(dispatch))
    await (await desk.broker.call("files", "echo", {"text": "after"})).value()
    assert desk.broker.strays == []


async def test_a_rotated_key_is_learnt_from_the_credentials_file(desk: Desk) -> None:
    await desk.attach(well_behaved())
    old, new = desk.broker.key, SigningKey.from_seed(b"n" * 32)
    desk.broker.key = new
    path = desk.folder / "files.json"
    content = json.loads(path.read_text())
    content["jwks"] = KeySet([old.public, new.public]).to_jwks()
    path.write_text(json.dumps(content))
    await (await desk.broker.call("files", "echo", {"text": "new key"})).value()


async def test_two_workers_of_one_server_share_its_calls(desk: Desk) -> None:
    first, second = await desk.attach(well_behaved()), await desk.attach(well_behaved())
    hops = [await desk.broker.call("files", "echo", {"text": str(n)}) for n in range(30)]
    await asyncio.gather(*(hop.value() for hop in hops))
    assert {hop.connection for hop in hops} == {first.worker.connection, second.worker.connection}
    assert all(hop.finals == 1 for hop in hops)


# Life


async def test_stopping_lets_the_call_in_flight_end(desk: Desk) -> None:
    attached = await desk.attach(well_behaved(), finish=10)
    hop = await desk.broker.call("files", "slow", {"seconds": 1.0})
    await hop.until(Started)
    pid = attached.worker.report.pid
    await attached.stop()
    assert isinstance(hop.frames[-1], Result)
    assert pid is not None
    await eventually(lambda: not alive(pid))


async def test_it_registers_again_when_the_bus_comes_back(desk: Desk, tmp_path: Path) -> None:
    await desk.attach(well_behaved())
    await desk.broker.registered()
    await desk.broker.nc.publish("ignored", b"")
    (connection,) = desk._attached
    client = connection.worker._link._client
    assert client is not None
    await client.force_reconnect()
    await desk.broker.registered(10)
    await (await desk.broker.call("files", "echo", {"text": "back"})).value()


async def test_a_refused_registration_ends_the_worker_with_that_refusal(desk: Desk) -> None:
    desk.broker.answer = Error(error=ErrorBody(code=Code.UNAUTHENTICATED, message="who are you", rule="attach.caller"))
    attached = desk.begin(well_behaved())
    report = await attached.until("failed")
    assert "who are you" in report.reason


async def test_without_a_broker_it_keeps_trying_to_register(tmp_path: Path) -> None:
    async with local_nats(tmp_path) as server:
        broker = FakeBroker(server.url, tmp_path)
        desk = Desk(broker, tmp_path)
        attached = desk.begin(well_behaved())
        try:
            await eventually(lambda: "broker" in attached.worker.report.reason)
            await broker.start()
            await attached.until("running")
        finally:
            await desk.close()
            await broker.stop()


def _repository(folder: Path) -> Path:
    """A git repository with one commit."""
    folder.mkdir()
    (folder / "a.txt").write_text("one\n")
    git = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "the first one"]):
        subprocess.run([*git, *words], check=True)
    return folder


async def test_a_published_server_works_on_a_real_repository(desk: Desk, tmp_path: Path) -> None:
    git = Path(sys.executable).parent / "mcp-server-git"
    if not git.exists():
        pytest.skip("mcp-server-git is not installed")
    repository = str(_repository(tmp_path / "repository"))
    await desk.attach(source([str(git), "--repository", repository]), name="git")
    tools = definitions(await desk.broker.registered())
    assert {"git_log", "git_status", "git_diff"} <= set(tools)
    value = await (await desk.broker.call("git", "git_log", {"repo_path": repository, "max_count": 1})).value()
    assert "the first one" in json.dumps(value)
    elsewhere = await (await desk.broker.call("git", "git_log", {"repo_path": "/"})).final()
    assert isinstance(elsewhere, Result) and elsewhere.failed


# The process


def _run(desk: Desk, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "remit_broker.edges.attach", *words],
        capture_output=True, text=True, timeout=40, **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("what", "code", "says"),
    [
        (["files", "--", "no-such-command-here"], 2, "no-such-command-here"),
        (["files"], 2, "either a command or a url"),
        (["files", "--url", "ftp://x/"], 2, "http"),
        (["other", "--", "true"], 2, "is for files, not for other"),
        (
            ["files", "--", sys.executable, str(SERVERS / "hostile.py"), "dies-at-start"],
            3,
            "I cannot find my configuration",
        ),
        (["files", "--url", "http://127.0.0.1:9/mcp"], 3, "cannot be reached"),
    ],
)
async def test_exit_codes_and_one_line_errors(desk: Desk, what: list[str], code: int, says: str) -> None:
    name, *rest = what
    words = [name, "--credentials", str(desk.broker.credentials("files")), *rest]
    done = await asyncio.to_thread(_run, desk, *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


async def test_an_unreachable_bus_is_exit_code_3(desk: Desk) -> None:
    path = desk.broker.credentials("files", bus=f"nats://127.0.0.1:{free_port()}")
    words = ["files", "--credentials", str(path), "--", sys.executable, str(SERVERS / "well_behaved.py")]
    done = await asyncio.to_thread(_run, desk, *words)
    assert done.returncode == 3
    assert "bus cannot be reached" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


async def test_a_signal_ends_the_worker_and_its_server_with_exit_code_0(desk: Desk) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "remit_broker.edges.attach", "files", "--json",
        "--credentials", str(desk.broker.credentials("files")), "--", sys.executable, str(SERVERS / "well_behaved.py"),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    said = json.loads(await asyncio.wait_for(process.stdout.readline(), 20))
    assert (said["state"], said["tools"]) == ("running", 9)
    began = time.monotonic()
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 15) == 0
    assert time.monotonic() - began < 10
    assert not alive(said["pid"])


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
async def test_credentials_that_others_can_read_are_refused(desk: Desk, mode: int) -> None:
    path = desk.broker.credentials("files")
    os.chmod(path, mode)
    done = await asyncio.to_thread(_run, desk, "files", "--credentials", str(path), "--", "true")
    assert done.returncode == 2
    assert "chmod 600" in done.stderr


def test_the_defaults_are_patient() -> None:
    assert (Timing().first_restart, Timing().last_restart) == (1.0, 30.0)
