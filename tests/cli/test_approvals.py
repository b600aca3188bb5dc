"""``remit approvals``: a call that waits for a person, shown, decided and made, from the shell."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import REMIT, Result, Running

TOOL = "mcp/tools/destructive_thing"


@pytest.fixture(scope="module")
def desk(broker: Running, tmp_path_factory: pytest.TempPathFactory) -> Running:
    broker.agent("planner")
    broker.server("tools")
    return broker


class Caller:
    """The agent planner in a task of its own."""

    def __init__(self, broker: Running, folder: Path) -> None:
        self.broker = broker
        told = broker.json("grant", "--user", "ann", "--to", "planner", "--scope", "mcp/tools/*")
        self.txn, self.file = told["txn"], folder / "grant"
        self.file.write_text(told["grant"])

    def call(self, args: dict[str, Any], *words: str) -> Result:
        words = (json.dumps(args), "--as", "planner", "--grant-file", str(self.file), *words)
        return self.broker.remit("call", TOOL, *words)

    def asks(self, args: dict[str, Any]) -> dict[str, Any]:
        done = self.call(args, "--json")
        assert (done.code, done.error["code"]) == (1, "APPROVAL_REQUIRED"), done
        return done.error


@pytest.fixture
def caller(desk: Running, tmp_path: Path) -> Caller:
    return Caller(desk, tmp_path)


def test_a_call_is_asked_for_shown_approved_and_made(desk: Running, caller: Caller) -> None:
    args = {"name": "old\u202ereport"}
    asked = caller.asks(args)
    name = asked["approval"]
    assert name in asked["approval_url"] and f"remit approvals approve {name}" in asked["ask"]
    assert name in [row["id"] for row in desk.json("approvals", "list")["approvals"]]
    assert f"{TOOL} for ann  waiting" in desk.remit("approvals", "list").out
    shown = desk.remit("approvals", "show", name[:8]).out
    assert "for ann, along ann → planner" in shown and 'old\\u202ereport"' in shown and "as its digest says" in shown
    assert "\u202e" not in shown
    assert desk.json("approvals", "show", name)["args"] == args
    done = desk.remit("approvals", "approve", name, "--reason", "agreed")
    assert (done.code, "goes through once" in done.out) == (0, True)
    made = caller.call(args, "--json")
    assert made.code == 0
    assert desk.json("approvals", "show", name)["state"] == "used"
    assert caller.asks(args)["approval"] != name
    chain = desk.remit("chain", caller.txn).out
    assert f"approval {name} of {TOOL} asked for by planner" in chain and f"approved {name}: agreed" in chain
    why = desk.remit("why", f"{caller.txn}.{name}").out
    assert "APPROVAL_REQUIRED" in why
    why = desk.remit("why", made.json()["hop"]).out
    assert "on behalf of ann" in why and "through planner" in why, "on whose authority"
    assert "approved by local:" in why and ": agreed" in why, "and who approved it"


def test_a_denial_reaches_the_caller_with_its_reason(desk: Running, caller: Caller) -> None:
    asked = caller.asks({"name": "x"})
    assert desk.json("approvals", "deny", asked["approval"], "--reason", "not today")["state"] == "denied"
    done = caller.call({"name": "x"})
    assert done.code == 1 and "APPROVAL_INVALID" in done.err and "not today" in done.err
    assert desk.remit("approvals", "approve", asked["approval"], "--json").error["rule"] == "approvals.ended"


def test_what_is_asked_in_a_task_of_the_command_itself_is_waited_for(desk: Running) -> None:
    words = ("call", TOOL, '{"name": "y"}', "--as", "planner", "--json")
    done = desk.remit(*words)
    assert (done.code, done.error["code"]) == (1, "APPROVAL_REQUIRED")
    assert "--wait" in done.error["ask"] and done.error["approval"] is None, "its task has ended with the command"
    with subprocess.Popen(
        [*REMIT, *words, "-c", str(desk.folder), "--wait", "1m"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as waiting:  # fmt: skip
        assert waiting.stderr is not None and waiting.stdout is not None
        said = waiting.stderr.readline()
        name = said.split("remit approvals approve ")[1].strip()
        assert desk.remit("approvals", "approve", name).code == 0
        told = json.loads(waiting.stdout.read())
        assert waiting.wait() == 0
    assert told["result"]["content"]


@pytest.mark.parametrize(("name", "rule"), [("f" * 16, "approvals.unknown"), ("f", "approvals.unknown")])
def test_an_approval_that_nobody_asked_for_is_not_decided(desk: Running, name: str, rule: str) -> None:
    for words in (("show", name), ("approve", name), ("deny", name)):
        done = desk.remit("approvals", *words, "--json")
        assert (done.code, done.error["rule"]) == (1, rule)
    done = desk.remit("approvals", "list", "--state", "x", "--json")
    assert (done.code, done.error["rule"]) == (1, "approvals.state")
