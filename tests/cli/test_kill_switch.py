"""``remit revoke``, ``remit reinstate`` and ``remit revocations`` for agents, users, tools and everything."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.cli import Running


@pytest.fixture(scope="module")
def staffed(broker: Running) -> Iterator[Running]:
    """A broker with an agent, and a task of Ann's."""
    broker.agent("planner")
    broker.json("grant", "--user", "ann", "--to", "planner", "--scope", "mcp/**")
    yield broker


def test_an_agent_is_revoked_listed_and_reinstated_with_who_and_why(staffed: Running) -> None:
    told = staffed.json("revoke", "--agent", "planner", "--why", "odd\x1b[31m calls")
    assert (told["kind"], told["name"], told["state"], told["why"]) == (
        "agent",
        "planner",
        "revoked",
        "odd\x1b[31m calls",
    )
    assert told["who"].startswith("local:") and told["at"].endswith("Z")
    refused = staffed.remit("grant", "--user", "ann", "--to", "planner", "--scope", "mcp/**", "--json")
    assert (refused.code, refused.error["rule"]) == (1, "revoked.agent")
    shown = staffed.remit("revocations").out
    assert "agent planner" in shown and told["who"] in shown and "\x1b" not in shown
    staffed.json("reinstate", "--agent", "planner", "--why", "explained")
    assert staffed.remit("revocations").out == "none\n"
    kept = [(entry["state"], entry["why"]) for entry in staffed.json("revocations")["history"]]
    assert kept[-2:] == [("revoked", "odd\x1b[31m calls"), ("reinstated", "explained")]
    staffed.json("grant", "--user", "ann", "--to", "planner", "--scope", "mcp/**")


def test_a_tenant_is_revoked_by_name_and_lifted(staffed: Running) -> None:
    assert "remit reinstate --tenant default" in staffed.remit("revoke", "--tenant", "default", "--why", "drill").out
    refused = staffed.remit("grant", "--user", "ann", "--to", "planner", "--scope", "mcp/**", "--json")
    assert (refused.code, refused.error["rule"]) == (1, "revoked.tenant")
    assert "reinstated tenant default" in staffed.remit("reinstate", "--tenant", "default").out
    shown = staffed.remit("revocations", "--history")
    assert shown.code == 0 and "tenant default" in shown.out and "drill" in shown.out


def test_a_txn_is_named_by_a_beginning_and_a_wrong_one_gets_the_nearest(staffed: Running) -> None:
    txn = staffed.json("grant", "--user", "ann", "--to", "planner", "--scope", "mcp/**")["txn"]
    wrong = txn[:8] + ("0" if txn[8] != "0" else "1")
    done = staffed.remit("revoke", "--txn", wrong, "--json")
    assert (done.code, done.error["code"]) == (1, "UNKNOWN_TARGET") and txn in done.error["ask"]
    assert staffed.json("revoke", "--txn", txn[:12], "--why", "enough")["txn"] == txn


def test_everything_is_paused_and_lifted(staffed: Running) -> None:
    assert "remit reinstate --all" in staffed.remit("revoke", "--all", "--why", "drill").out
    refused = staffed.remit("grant", "--user", "ann", "--to", "planner", "--scope", "mcp/**", "--json")
    assert (refused.code, refused.error["rule"]) == (1, "paused")
    assert "operator" in refused.error["ask"] and not refused.error["retryable"]
    assert "reinstated everything" in staffed.remit("reinstate", "--all").out
    staffed.json("grant", "--user", "ann", "--to", "planner", "--scope", "mcp/**")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["revoke", "--agent", "planer"], "UNKNOWN_TARGET", "planner"),
        (["revoke", "--user", "anne"], "UNKNOWN_TARGET", "ann"),
        (["revoke", "--tool", "mcp/nothing/*"], "UNKNOWN_TARGET", "servers list"),
        (["revoke", "--tool", "nonsense"], "MALFORMED", ""),
        (["revoke", "--tool", 'mcp/files/read{"path":{"prefix":"docs/"}}'], "MALFORMED", "without arguments"),
        (["revoke", "--tenant", "defualt"], "UNKNOWN_TARGET", "default"),
        (["revoke", "--txn", "ffff"], "UNKNOWN_TARGET", "remit chains"),
        (["reinstate", "--agent", "planner"], "UNKNOWN_TARGET", "remit revocations"),
        (["reinstate", "--tenant", "default"], "UNKNOWN_TARGET", "remit revocations"),
        (["reinstate", "--all"], "UNKNOWN_TARGET", "remit revocations"),
    ],
)
def test_what_nobody_knows_is_refused_with_what_is_near(
    staffed: Running, words: list[str], code: str, says: str
) -> None:
    done = staffed.remit(*words, "--json")
    assert (done.code, done.error["code"]) == (1, code), done
    assert says in done.error["ask"]
    assert staffed.json("revocations")["revocations"] == []


@pytest.mark.parametrize("words", [[], ["--agent", "planner", "--all"], ["--agent", "a", "--user", "b"]])
@pytest.mark.parametrize("command", ["revoke", "reinstate"])
def test_one_thing_at_a_time(staffed: Running, command: str, words: list[str]) -> None:
    done = staffed.remit(command, *words, "--json")
    assert done.code == 2 and "exactly one" in done.error["message"]
    assert staffed.json("revocations")["revocations"] == []
