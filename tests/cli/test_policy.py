"""``remit policy``, ``observe``, ``enforce``, ``allow``, ``suggest`` and ``why``: from an empty folder to a policy in force."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Result, Running, new_folder, remit, running

NO_ECHO = '@id("no-echo")\n@reason("no echoes")\nforbid (principal, action == Action::"call", resource == Tool::"mcp/tools/echo");\n'
PERMIT = '@id("all")\n@reason("all")\npermit (principal, action, resource);\n'


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = new_folder(tmp_path_factory.mktemp("broker"))
    (folder / "policies" / "default.cedar").write_text(PERMIT)
    with running(folder) as found:
        found.agent("planner")
        found.server("tools")
        yield found


def call(broker: Running, *words: str) -> Result:
    return broker.remit("call", "mcp/tools/echo", json.dumps({"text": "hi"}), "--as", "planner", "--json", *words)


def until(broker: Running, revision_differs_from: str) -> str:
    """The revision, once the broker has taken an edit."""
    for _ in range(400):
        found: str = broker.json("policy", "simulate", "mcp/tools/echo", "--as", "planner")["revision"]
        if found != revision_differs_from:
            return found
        time.sleep(0.05)
    raise AssertionError("the edit was not taken")


@pytest.fixture
def refused(broker: Running) -> Iterator[dict[str, Any]]:
    """A call that a policy written for it refused."""
    file = broker.folder / "policies" / "no-echo.cedar"
    before = broker.json("policy", "simulate", "mcp/tools/echo", "--as", "planner")["revision"]
    file.write_text(NO_ECHO)
    during = until(broker, before)
    done = call(broker)
    assert done.code == 1 and done.error["rule"] == "no-echo"
    yield done.error
    file.unlink()
    until(broker, during)


def test_a_new_folder_is_checked_and_its_cases_pass(tmp_path: Path) -> None:
    folder = new_folder(tmp_path)
    told = remit("policy", "check", "-c", str(folder), "--json").json()
    assert (told["ok"], told["findings"]) == (True, [])
    told = remit("policy", "test", "-c", str(folder), "--json").json()
    assert told["ok"] and len(told["cases"]) >= 8


def test_what_is_wrong_and_what_fails_end_with_one(tmp_path: Path) -> None:
    folder = new_folder(tmp_path)
    policies = folder / "policies"
    (policies / "bad.cedar").write_text("permit (principal, action, resource) when { context.nope };\n" + NO_ECHO)
    done = remit("policy", "check", str(policies))
    assert done.code == 1
    assert "bad.cedar:1" in done.out and "@id" in done.out
    (policies / "bad.cedar").write_text(NO_ECHO)
    case = '[[case]]\nname = "echo is permitted"\nagent = "a"\nresource = "mcp/tools/echo"\nreadOnly = true\nexpect = "allow"\n'
    (policies / "tests" / "own.toml").write_text(case)
    done = remit("policy", "test", str(policies))
    assert done.code == 1
    assert "echo is permitted" in done.out and "expected allow, got deny" in done.out and "no-echo" not in done.err


def test_simulating_asks_the_broker_and_calls_nothing(broker: Running) -> None:
    told = broker.json(
        "policy", "simulate", "mcp/tools/echo", '{"text": "hi", "odd": 1}', "--as", "planner", "--user", "ann"
    )
    assert (told["outcome"], told["rules"], told["target_known"]) == ("allow", ["all"], True)
    told = broker.json("policy", "simulate", "mcp/none/x", "--as", "planner", "--set", "tier=untrusted")
    assert not told["target_known"]
    assert broker.remit("policy", "simulate", "mcp/tools/echo", "--json").code == 2
    assert (
        broker.remit("policy", "simulate", "mcp/tools/echo", "--as", "planner", "--set", "nope=1", "--json").code == 2
    )
    assert broker.remit("policy", "simulate", "nonsense", "--as", "planner", "--json").code == 1


def test_a_refusal_is_explained_with_its_rule_and_what_would_permit_it(
    broker: Running, refused: dict[str, Any]
) -> None:
    told = broker.json("why", refused["hop"])
    (rule,) = told["rules"]
    assert rule["id"] == "no-echo" and rule["where"].endswith("no-echo.cedar:1") and rule["text"].startswith("@id(")
    assert (told["same_revision"], told["lift"]) == (True, ["no-echo"])
    shown = broker.remit("why", refused["hop"]).out
    assert "no-echo.cedar:1" in shown and "remit allow" in shown
    assert told["records"][0]["decision"]["rules"] == ["no-echo"]


def test_an_exception_is_allowed_used_listed_and_withdrawn(broker: Running, refused: dict[str, Any]) -> None:
    told = broker.json("allow", refused["hop"], "--for", "10m", "--why", "demo")
    assert (told["rules"], told["caller"]) == (["no-echo"], "planner")
    assert call(broker).code == 0
    listed = broker.json("policy", "exceptions")["exceptions"]
    assert [(one["hop"], one["in_force"], one["why"]) for one in listed] == [(refused["hop"], True, "demo")]
    history = broker.json("revocations", "--history")
    assert [(one["kind"], one["state"]) for one in history["history"] if one["kind"] == "exception"] == [
        ("exception", "allowed")
    ]
    assert history["chain"]["broken"] is None and history["revocations"] == []
    broker.json("policy", "exceptions", "--withdraw", refused["hop"])
    assert call(broker).code == 1
    assert broker.remit("allow", "0000", "--json").code == 1


def test_what_is_observed_is_let_through_and_shown(broker: Running, refused: dict[str, Any]) -> None:
    assert "remit enforce --policy no-echo" in broker.remit("observe", "--policy", "no-echo").out
    done = call(broker).json()
    drawn = broker.remit("chain", done["txn"]).out
    assert "WOULD DENY no-echo" in drawn
    assert broker.json("policy", "exceptions")["observed"][0]["name"] == "policy no-echo"
    broker.json("enforce", "--policy", "no-echo")
    assert call(broker).code == 1
    broker.json("observe", "--server", "tools")
    assert call(broker).code == 0
    broker.json("enforce", "--server", "tools")
    assert call(broker).code == 1
    assert broker.remit("observe", "--policy", "nope", "--json").code == 1
    assert broker.remit("observe", "--json").code == 2


def test_a_candidate_is_replayed_over_what_happened(broker: Running, tmp_path: Path) -> None:
    for _ in range(3):
        assert call(broker).code == 0
    (tmp_path / "own.cedar").write_text(PERMIT + NO_ECHO)
    told = broker.json("policy", "replay", str(tmp_path))
    denied = [one for one in told["changes"] if (one["was"], one["becomes"]) == ("allow", "deny")]
    assert denied[0]["count"] >= 3 and denied[0]["resource"] == "mcp/tools/echo" and denied[0]["rules"] == ["no-echo"]
    txn, _, hop = denied[0]["examples"][0].partition(".")
    assert broker.json("why", denied[0]["examples"][0])["hop"] == hop and len(txn) == 32
    shown = broker.remit("policy", "replay", str(tmp_path)).out
    assert "allow → deny" in shown and "remit why" in shown


def test_a_suggestion_passes_the_check_and_permits_what_was_observed(broker: Running, tmp_path: Path) -> None:
    assert call(broker).code == 0
    text = broker.remit("suggest").out
    (tmp_path / "mine.cedar").write_text(text)
    assert remit("policy", "check", str(tmp_path), "--json").json()["ok"]
    told = broker.json("policy", "replay", str(tmp_path))
    assert not [one for one in told["changes"] if one["was"] == "allow"]
    told = remit("policy", "simulate", "mcp/tools/add", "--as", "planner", "--policies", str(tmp_path), "--json").json()
    assert told["outcome"] == "deny"
