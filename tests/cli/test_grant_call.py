"""``remit grant`` and ``remit call``: a task opened from the shell, and one hop in it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remit_schemas.grant import parse
from tests.support.cli import Result, Running, new_folder, running

PERMIT = '@id("all")\n@reason("all")\npermit(principal, action, resource);\n'


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A broker whose policy permits whatever the grant covers, with two agents and an MCP server."""
    folder = new_folder(tmp_path_factory.mktemp("broker"))
    (folder / "policies" / "default.cedar").write_text(PERMIT)
    config = folder / "remit.toml"
    config.write_text(
        config.read_text().replace("\n[labels]", '\n[labels]\n"mcp/tools/read_thing" = ["confidential"]\n#')
    )
    with running(folder) as found:
        for name in ("planner", "researcher"):
            found.agent(name)
        found.server("tools")
        yield found


def call(broker: Running, tool: str, args: dict[str, Any], *words: str, agent: str = "planner", **rest: Any) -> Result:
    return broker.remit("call", f"mcp/tools/{tool}", json.dumps(args), "--as", agent, "--json", *words, **rest)


def granted(broker: Running, tmp_path: Path, *words: str, scope: str = "mcp/tools/*", to: str = "planner") -> Path:
    told = broker.json("grant", "--user", "ann", "--to", to, "--scope", scope, *words)
    path = tmp_path / "grant"
    path.write_text(told["grant"] + "\n")
    return path


def test_a_grant_is_a_txn_a_token_and_when_it_ends(broker: Running) -> None:
    told = broker.json("grant", "--user", "ann", "--to", "planner", "--scope", "mcp/tools/*", "--ttl", "2m")
    assert list(told) == ["txn", "grant", "exp"]
    assert re.fullmatch("[0-9a-f]{32}", told["txn"])
    assert told["grant"].count(".") == 2
    assert 100 < told["exp"] - time.time() <= 121


def test_a_task_has_the_ceiling_of_labels_that_was_asked_for(broker: Running, tmp_path: Path) -> None:
    """What the tool reads is confidential."""
    wide = granted(broker, tmp_path, "--labels", "web, confidential").read_text().strip()
    assert parse(wide).claims.labels == ("confidential", "internal", "web")
    path = granted(broker, tmp_path, "--labels", "")
    assert parse(path.read_text().strip()).claims.labels == ()
    done = call(broker, "read_thing", {"name": "x"}, "--grant-file", str(path))
    assert (done.error["code"], done.error["rule"]) == ("OUT_OF_SCOPE", "labels.ceiling")
    done = broker.remit("grant", "--user", "ann", "--to", "planner", "--scope", "mcp/**", "--labels", "No!", "--json")
    assert (done.code, done.error["rule"]) == (1, "txn.labels")


def test_without_json_a_grant_is_the_token_alone(broker: Running) -> None:
    done = broker.remit("grant", "--user", "ann", "--to", "planner", "--scope", "mcp/tools/*")
    assert re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+\n", done.out), "so that it can be piped"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--to", "planner", "--scope", "mcp/tools/*"], 2),
        (["--user", "ann", "--to", "planner"], 2),
        (["--user", "ann", "--to", "planner", "--scope", "nonsense"], 2),
        (["--user", "ann", "--to", "planner", "--scope", 'mcp/tools/echo{"text":{"nope":1}}'], 2),
        (["--user", "ann", "--to", "planner", "--scope", "mcp/tools/*", "--budget", "usd=-1"], 2),
        (["--user", "ann", "--to", "planner", "--scope", "mcp/tools/*", "--ttl", "1 week"], 2),
        (["--user", "ann", "--to", "planner", "--scope", "mcp/tools/*", "--max-depth", "17"], 2),
        (["--user", "ann", "--to", "planner", "--scope", "mcp/tools/*", "--ttl", "9h"], 1),
        (["--user", "ann", "--to", "nobody", "--scope", "mcp/tools/*"], 1),
        (["--user", "", "--to", "planner", "--scope", "mcp/tools/*"], 1),
        (["--user", "a\x1b[31mb", "--to", "planner", "--scope", "mcp/tools/*"], 1),
    ],
)
def test_a_grant_that_cannot_be_is_refused_with_what_to_do(broker: Running, words: list[str], code: int) -> None:
    done = broker.remit("grant", *words, "--json")
    assert done.code == code
    assert done.error["ask"]
    assert "\x1b" not in done.out + done.err


def test_a_call_answers_with_its_hop_and_the_tools_result(broker: Running) -> None:
    told = call(broker, "echo", {"text": "hello"}).json()
    assert list(told) == ["txn", "hop", "result"]
    assert re.fullmatch("[0-9a-f]{32} [0-9a-f]{16}", f"{told['txn']} {told['hop']}")
    assert told["result"]["content"] == [{"type": "text", "text": "hello"}]


def test_without_json_a_call_prints_the_text_of_the_result(broker: Running) -> None:
    assert broker.remit("call", "mcp/tools/echo", '{"text": "hello"}', "--as", "planner").out == "hello\n"


def test_what_a_tool_answers_cannot_move_the_cursor_or_style_the_terminal(broker: Running) -> None:
    text = "[red]one[/red]\n\ttwo\x1b[2J\x9b31m\x07\r\u202ethree"
    done = broker.remit("call", "mcp/tools/echo", json.dumps({"text": text}), "--as", "planner")
    assert done.out == "[red]one[/red]\n\ttwo\\x1b[2J\\x9b31m\\x07\\r\\u202ethree\n"


def test_arguments_come_from_a_file_or_from_standard_input(broker: Running, tmp_path: Path) -> None:
    (tmp_path / "args.json").write_text('{"text": "from a file"}')
    for argument, stdin in ((f"@{tmp_path / 'args.json'}", ""), ("-", '{"text": "from a pipe"}')):
        done = broker.remit("call", "mcp/tools/echo", argument, "--as", "planner", stdin=stdin)
        assert done.out.startswith("from a ")


def test_a_call_with_a_grant_is_a_hop_of_its_txn(broker: Running, tmp_path: Path) -> None:
    path = granted(broker, tmp_path)
    one = call(broker, "echo", {"text": "1"}, "--grant-file", str(path)).json()
    two = call(broker, "echo", {"text": "2"}, "--grant-file", "-", stdin=path.read_text()).json()
    assert one["txn"] == two["txn"]
    assert one["hop"] != two["hop"]


def test_the_txn_that_a_call_opened_for_itself_is_closed(broker: Running) -> None:
    txn = call(broker, "echo", {"text": "1"}).json()["txn"]
    assert broker.json("chain", txn)["records"][-1]["kind"] == "txn.closed"


def test_a_tool_that_fails_is_a_result_and_exit_code_1(broker: Running) -> None:
    done = call(broker, "fails", {"why": "no coffee"})
    assert done.code == 1
    assert done.json()["result"]["content"][0]["text"] == "no coffee"
    assert "no coffee" not in done.err


@pytest.mark.parametrize(
    ("tool", "args", "words", "agent", "code"),
    [
        ("echo", {"text": 1}, [], "planner", "ARGUMENTS_INVALID"),
        ("nosuch", {}, [], "planner", "UNKNOWN_TARGET"),
        ("echo", {"text": "x"}, ["--budget", "usd=50,calls=500"], "planner", "BUDGET_EXCEEDED"),
        ("slow", {"seconds": 20}, ["--ttl", "1s"], "planner", "DEADLINE_EXCEEDED"),
    ],
)
def test_a_refused_call_is_an_error_body_and_exit_code_1(
    broker: Running, tool: str, args: dict[str, Any], words: list[str], agent: str, code: str
) -> None:
    done = call(broker, tool, args, *words, agent=agent)
    assert done.code == 1
    assert list(done.json()) == ["error"]
    assert done.error["code"] == code
    assert done.error["rule"]
    assert done.error["ask"]
    assert done.error["effect"] in ("none", "unknown")


def test_a_call_outside_the_grant_says_what_the_grant_has(broker: Running, tmp_path: Path) -> None:
    path = granted(broker, tmp_path, scope='mcp/tools/echo{"text":{"prefix":"docs/"}}')
    done = call(broker, "echo", {"text": "etc/passwd"}, "--grant-file", str(path))
    assert done.error["code"] == "OUT_OF_SCOPE"
    assert f"remit why {done.error['txn']}.{done.error['hop']}" in done.err
    assert call(broker, "echo", {"text": "docs/a"}, "--grant-file", str(path)).code == 0


def test_a_grant_of_somebody_else_is_refused(broker: Running, tmp_path: Path) -> None:
    path = granted(broker, tmp_path)
    done = call(broker, "echo", {"text": "x"}, "--grant-file", str(path), agent="researcher")
    assert (done.code, done.error["code"]) == (1, "GRANT_INVALID")


@pytest.mark.parametrize(
    "words",
    [
        ["mcp/tools/echo", "{}"],
        ["mcp/tools/echo", "{}", "--as", "nobody"],
        ["mcp/tools/echo", "{", "--as", "planner"],
        ["mcp/tools/echo", "[]", "--as", "planner"],
        ["mcp/tools/echo", "[" * 50_000, "--as", "planner"],
        ["mcp/tools/echo", "@/no/such/file", "--as", "planner"],
        ["mcp/tools", "{}", "--as", "planner"],
        ["[red]x", "{}", "--as", "planner"],
        ["mcp/tools/echo", "{}", "--as", "planner", "--budget", "x"],
        ["mcp/tools/echo", "{}", "--as", "planner", "--ttl", "x"],
        ["mcp/tools/echo", "{}", "--as", "planner", "--grant-file", "/no/such/file"],
        ["mcp/tools/echo", "{}", "--as", "../../etc/x"],
    ],
)
def test_a_call_that_makes_no_sense_is_wrong_usage(broker: Running, words: list[str]) -> None:
    done = broker.remit("call", *words, "--json")
    assert done.code == 2
    assert done.error["ask"]


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "\x00", "x" * 100_000])
def test_what_is_no_grant_is_refused(broker: Running, tmp_path: Path, token: str) -> None:
    (tmp_path / "grant").write_text(token)
    done = call(broker, "echo", {"text": "x"}, "--grant-file", str(tmp_path / "grant"))
    assert done.code in (1, 2)
    assert done.error["ask"]
