"""What the adapter to AgentGovBench makes of a scenario, without the benchmark: its own words for what it sets up are enough."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conformance.govbench import mapping
from tests.conformance.govbench.__main__ import main
from tests.conformance.govbench.town import Town

ALICE, CAROL = "user-alice", "user-carol"


def entry(permission: str, limit: int | None = None) -> Any:
    return SimpleNamespace(permission=permission, rate_limit_per_minute=limit)


def setup() -> Any:
    """Everybody may read; only Alice has the scope to write, and only in front of it."""
    people = [
        SimpleNamespace(uid=ALICE, email="a@example.com", role="member", scopes=["tools.read", "tools.write"]),
        SimpleNamespace(uid=CAROL, email="c@example.com", role="viewer", scopes=["tools.read"]),
    ]
    policy = SimpleNamespace(
        defaults={"interactive": entry("allow", 60), "subagent": entry("flag", 30), "background": entry("deny", 20)},
        tools={}, users={}, user_tools={}, fail_mode="fail_closed",
    )  # fmt: skip
    tools = [
        SimpleNamespace(name="read_file", required_scopes=["tools.read"]),
        SimpleNamespace(name="write_file", required_scopes=["tools.write"]),
    ]
    return SimpleNamespace(tenants=[SimpleNamespace(id="tenant-a", users=people, policy=policy)], tools=tools)


def call(user: str, tool: str, tier: str = "interactive", agent: str | None = None) -> Any:
    return SimpleNamespace(
        kind="direct_tool_call", tool=tool, input={"path": "/a"}, as_user=user, as_tenant=None, agent_tier=tier,
        agent_name=agent,
    )  # fmt: skip


def test_the_most_specific_permission_wins():
    policy = setup().tenants[0].policy
    assert mapping.permission(policy, ALICE, "read_file", "background") == "deny"
    for edit, wanted in (
        ({"user": ALICE, "tool": None, "tier": "background"}, "allow"),
        ({"user": None, "tool": "read_file", "tier": "background"}, "deny"),
        ({"user": ALICE, "tool": "read_file", "tier": None}, "flag"),
    ):
        mapping.change(policy, SimpleNamespace(**edit), entry(wanted))
        assert mapping.permission(policy, ALICE, "read_file", "background") == wanted
    assert mapping.permission(policy, CAROL, "read_file", "interactive") == "allow"


def test_users_scopes_and_limits_become_groups_and_caps():
    found = mapping.config(setup())
    assert found["development"]["users"][CAROL] == {"roles": ["viewer"], "groups": ["tools.read"], "tenant": "tenant-a"}
    assert found["caps"]["user"][ALICE] == {"minute": "calls=60"}
    assert mapping.delegated(["tools.read"], setup().tools) == ["mcp/tools/read_file", "agent/**"]


@pytest.mark.timeout(120)
async def test_actions_become_hops_of_a_running_broker_and_its_records_the_audit(tmp_path: Path):
    handed = SimpleNamespace(
        kind="delegation", from_agent="planner", to_agent="worker", delegated_scopes=["tools.read"], as_user=ALICE,
        as_tenant=None,
    )  # fmt: skip
    actions = [
        call(ALICE, "write_file"),
        call(CAROL, "write_file"),
        call(ALICE, "read_file", "background"),
        call("nobody", "read_file"),
        handed,
        call(ALICE, "read_file", "subagent", "worker"),
        call(ALICE, "write_file", "subagent", "worker"),
    ]
    async with Town(tmp_path, setup(), entry) as town:
        outcomes = [one for action in actions async for one in town.act(action)]
        audit = await town.audit()
    assert [one["allowed"] for one in outcomes] == [True, False, False, False, True, False]
    assert [(one["actor_uid"], one["decision"], one["delegation_chain"]) for one in audit] == [
        (ALICE, "allow", []),
        (CAROL, "deny", []),
        (ALICE, "deny", []),
        (ALICE, "flag", ["planner", "worker"]),
        (ALICE, "deny", ["planner", "worker"]),
    ]
    assert all(one["tenant"] == "tenant-a" and one["reason"] and one["timestamp"] for one in audit)
    # The last was refused by its grant, before policy was asked anything: such a record has no facts.
    assert [one["extra"]["tier"] for one in audit] == ["interactive", "interactive", "background", "subagent", None]


@pytest.mark.parametrize("words", [[], [""], ["no-such-folder"]])
def test_without_a_checkout_it_says_what_is_missing(words: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(words) == 2
    assert "make govbench AGENTGOVBENCH=DIR" in capsys.readouterr().out
