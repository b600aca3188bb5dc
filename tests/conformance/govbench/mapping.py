"""What a scenario sets up, in Remit's words: tenants, users of the development issuer, caps, Cedar policies, scopes of grants.

Nothing here knows what a scenario expects. ``Any`` stands for the benchmark's own classes (``benchmark.types``), which are
not imported: they are in a folder that need not be there.

| AgentGovBench | Remit |
|---|---|
| tenant | tenant |
| user, role, scopes | a user of the issuer, its role, its groups |
| tool | a tool of the MCP server ``tools`` of the tenant |
| tier of the agent | tier of the calling agent |
| permission by tier, tool and user, the most specific wins | permits |
| scopes that a tool requires | a ``forbid`` unless the user is in those groups |
| scopes of a delegation | scopes of the grant: the tools that need no others |
| calls per minute | a cap of the user per minute |
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

SERVER: Final = "tools"
TIERS: Final = ("interactive", "subagent", "background", "api")
PERMITTED: Final = ("allow", "flag")

COMMON: Final = """\
@id("delegation")
@reason("agents of a task hand work on; what it may call is decided where it calls")
permit (principal, action == Action::"delegate", resource);

@id("answers")
@reason("answers are released")
permit (principal, action == Action::"release", resource);
"""


def plain(name: str) -> str:
    """A name as Remit allows it for agents: ``CI pipeline`` is ``ci-pipeline``."""
    return re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_")


def client(tier: str) -> str:
    """The agent through which a user calls without any other agent in between."""
    return f"client-{plain(tier)}"


def permission(policy: Any, user: str, tool: str, tier: str) -> str:
    """What the benchmark's policy says: user and tool, then tool, then user, then the tier; nothing said is ``allow``."""
    places = (
        policy.user_tools.get(user, {}).get(tool, {}),
        policy.tools.get(tool, {}),
        policy.users.get(user, {}),
        policy.defaults,
    )
    return next((str(tiers[tier].permission) for tiers in places if tier in tiers), "allow")


def cedar(tenant: Any, tools: Iterable[Any]) -> str:
    """The policies of one tenant."""
    return "\n".join(_permits(tenant, tools))


def common(tools: Iterable[Any]) -> str:
    """The policies of all tenants."""
    return "\n".join((COMMON, *_scopes(tools)))


def _permits(tenant: Any, tools: Iterable[Any]) -> Iterator[str]:
    for user in tenant.users:
        for tier in TIERS:
            for wanted in PERMITTED:
                names = [t.name for t in tools if permission(tenant.policy, user.uid, t.name, tier) == wanted]
                if names:
                    yield (
                        f'@id("{wanted}-{plain(user.uid)}-{tier}")\n@reason("the tenant permits it to this user in this tier")\n'
                        f'permit (principal in Tier::"{tier}", action == Action::"call", resource in Server::"{SERVER}")\n'
                        f"when {{ context.user.name == {_text(user.uid)} && {_set(names)}.contains(resource.name) }};\n"
                    )


def _scopes(tools: Iterable[Any]) -> Iterator[str]:
    for tool in tools:
        if tool.required_scopes:
            yield (
                f'@id("scope-{plain(tool.name)}")\n@reason("the user lacks a scope that the tool requires")\n'
                f'forbid (principal, action == Action::"call", resource == Tool::"mcp/{SERVER}/{tool.name}")\n'
                f"unless {{ context.user.groups.containsAll({_set(tool.required_scopes)}) }};\n"
            )


def change(policy: Any, edit: Any, entry: Any) -> None:
    """Put ``entry`` (a permission) where the edit of a policy aims: at a user, a tool, both or neither; at one tier or all."""
    if edit.user and edit.tool:
        place = policy.user_tools.setdefault(edit.user, {}).setdefault(edit.tool, {})
    elif edit.user:
        place = policy.users.setdefault(edit.user, {})
    elif edit.tool:
        place = policy.tools.setdefault(edit.tool, {})
    else:
        place = policy.defaults
    place.update(dict.fromkeys((edit.tier,) if edit.tier else TIERS, entry))


def delegated(scopes: Iterable[str], tools: Iterable[Any]) -> list[str]:
    """The scopes of the grant for a delegation: the tools that require no scope beyond ``scopes``, and agents."""
    given = set(scopes)
    return [f"mcp/{SERVER}/{tool.name}" for tool in tools if given.issuperset(tool.required_scopes)] + ["agent/**"]


def config(setup: Any) -> dict[str, Any]:
    """What of ``remit.toml`` the scenario decides."""
    users = {
        user.uid: {"roles": [user.role], "groups": list(user.scopes), "tenant": tenant.id}
        for tenant in setup.tenants
        for user in tenant.users
    }
    caps = {
        user.uid: {"minute": f"calls={most}"}
        for tenant in setup.tenants
        if (most := max((tier.rate_limit_per_minute or 0 for tier in tenant.policy.defaults.values()), default=0))
        for user in tenant.users
    }
    return {
        "tenants": {tenant.id: {} for tenant in setup.tenants},
        "development": {"issuer": True, "users": users},
        "caps": {"user": caps} if caps else {},
    }


def _text(value: str) -> str:
    return json.dumps(value)


def _set(values: Iterable[str]) -> str:
    return "[" + ", ".join(_text(value) for value in values) + "]"
