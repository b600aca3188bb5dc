"""What every command keeps to: JSON alone on stdout, errors on stderr, the exit codes of the contract, no long start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import REMIT, Running, new_folder, remit

NEEDS_A_BROKER = [
    ["agents", "list"], ["agents", "add", "x"], ["agents", "remove", "x"], ["servers", "list"], ["chains"],
    ["chain", "abcdef"], ["why", "abcdef"], ["revoke", "--txn", "abcdef"],
    ["grant", "--user", "a", "--to", "b", "--scope", "mcp/x/*"], ["evidence", "export", "abcdef", "-o", "/dev/null"],
]  # fmt: skip


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on which nothing runs."""
    return new_folder(tmp_path_factory.mktemp("idle"))


@pytest.mark.parametrize("words", NEEDS_A_BROKER, ids=lambda words: "-".join(words[:2]))
def test_without_a_broker_a_command_ends_with_3_and_says_how_to_start_one(idle: Path, words: list[str]) -> None:
    done = remit(*words, "-c", str(idle), "--json")
    assert done.code == 3
    assert done.error["code"] == "TARGET_UNAVAILABLE"
    assert f"remit up -c {idle}" in done.error["ask"]
    assert f"remit up -c {idle}" in done.err


@pytest.mark.parametrize(
    "words", [["nosuch"], ["chains", "--nosuch"], ["chains", "--limit", "x"], ["chain"], ["grant"], ["agents", "nosuch"]],
    ids="-".join,
)  # fmt: skip
def test_wrong_words_end_with_2_and_with_json_there_is_json(words: list[str]) -> None:
    plain = remit(*words)
    assert (plain.code, plain.out) == (2, "")
    assert plain.err
    done = remit(*words, "--json")
    assert done.code == 2
    assert done.error["code"] == "MALFORMED"
    assert done.error["message"]


def test_json_that_is_meant_for_another_command_is_left_to_it(idle: Path) -> None:
    done = remit("servers", "add", "--nosuch", "x", "--", "cmd", "--json")
    assert (done.code, done.out) == (2, "")


def test_an_error_body_has_every_field_of_the_contract(idle: Path) -> None:
    assert set(remit("chains", "-c", str(idle), "--json").error) == {
        "code", "message", "rule", "ask", "retryable", "retry_after", "approval_url", "effect", "txn", "hop", "approval",
    }  # fmt: skip


def test_with_json_stdout_is_one_ascii_document(broker: Running) -> None:
    broker.agent("planner")
    told = broker.json("grant", "--user", "Zoë 日本 \U0001f600", "--to", "planner", "--scope", "mcp/x/*")
    done = broker.remit("chain", told["txn"], "--json")
    assert done.out.isascii()
    assert done.json()["records"][0]["user"] == "Zoë 日本 \U0001f600"


def test_a_terminal_that_knows_no_unicode_gets_escapes_and_no_fault(broker: Running) -> None:
    done = broker.remit("chains", env={"PYTHONIOENCODING": "ascii"})
    assert done.code == 0
    assert "\\u2192" in done.out


def test_a_reader_that_goes_away_is_no_fault(broker: Running) -> None:
    with subprocess.Popen(
        [*REMIT, "chains", "-c", str(broker.folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["chains", "--help"], ["agents", "--help"]], ids="-".join)
def test_help_ends_with_0(words: list[str]) -> None:
    done = remit(*words, fresh=True)
    assert done.code == 0
    assert done.out


def test_the_help_names_every_command() -> None:
    shown = remit("--help").out
    for name in (
        "init",
        "check",
        "up",
        "agents",
        "attach",
        "grant",
        "call",
        "chains",
        "chain",
        "why",
        "evidence",
        "revoke",
        "demo",
    ):
        assert f"│ {name} " in shown


def test_a_fault_of_the_command_itself_is_one_line(idle: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import httpx\nhttpx.Client = None\n")
    (idle / "data" / "run").mkdir(parents=True, exist_ok=True)
    (idle / "data" / "keys").mkdir(exist_ok=True)
    (idle / "data" / "keys" / "local.token").write_text("x")
    about = {"http": "http://127.0.0.1:9", "nats": "", "pid": 1}
    (idle / "data" / "run" / "broker.json").write_text(json.dumps(about))
    done = subprocess.run(
        [*REMIT, "chains", "-c", str(idle), "--json"], capture_output=True, text=True, check=False,
        env={"PYTHONPATH": f"{tmp_path}:{':'.join(sys.path)}"},
    )  # fmt: skip
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "INTERNAL"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "text", ["", "x", "[]", "{}", '{"http": 1, "nats": "", "pid": 1}', '{"http":"x","nats":"","pid":-1}']
)
def test_a_damaged_note_of_where_the_broker_is_does_not_break_a_command(idle: Path, text: str) -> None:
    (idle / "data" / "run").mkdir(parents=True, exist_ok=True)
    (idle / "data" / "run" / "broker.json").write_text(text)
    try:
        done = remit("chains", "-c", str(idle), "--json")
    finally:
        (idle / "data" / "run" / "broker.json").unlink()
    assert done.code == 3


HEAVY = (
    "mcp",
    "cedarpy",
    "opentelemetry",
    "uvicorn",
    "starlette",
    "aiosqlite",
    "nats",
    "pydantic",
    "httpx",
    "remit_broker.app",
)


def test_starting_does_not_load_what_only_the_broker_needs() -> None:
    code = f"import sys, remit_broker.cli.main\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_loads_little() -> None:
    """What is loaded is what it waits for, and, unlike the clock, it is the same on a busy machine."""
    code = "import sys, remit_broker.cli.main\nprint(len(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 400
