"""The MCP endpoint for clients, put together: what it is given of each tenant, and what the configuration says of it."""

from __future__ import annotations

import functools
import logging
import secrets
from collections.abc import Callable, Iterable, Mapping

from remit_broker.adapters.keyfiles import new_user_seed
from remit_broker.adapters.registries import Registries
from remit_broker.adapters.registry import KvRegistry
from remit_broker.config import Settings
from remit_broker.edges.http.desk import Desk
from remit_broker.edges.http.operators import Operator
from remit_broker.edges.inside import Calls
from remit_broker.edges.mcp.streamable import Place, Streamable
from remit_broker.edges.mcp.tasks import Rules

log = logging.getLogger("remit")


def serve_clients(
    settings: Settings,
    desks: Iterable[Desk],
    registries: Registries,
    inside: Mapping[str, Calls],
    door: tuple[Operator, Callable[[str, str], str]],
    fault: Callable[[str, BaseException], None],
) -> Streamable:
    """The routes under ``/mcp``, and what is behind them. ``door`` is how users are known, and what is told to whoever is none."""
    config, given = settings.config.mcp, settings.clients
    places = {
        desk.tenant: Place(desk, inside[desk.tenant], registries.of(desk.tenant), new_user_seed()) for desk in desks
    }
    rules = Rules(
        agent=config.agent,
        scopes=given.scopes,
        budget=given.budget,
        idle=config.idle,
        view=config.view,
        sub_agents=config.sub_agents,
    )
    clients = Streamable(places, door, rules, config.call_ttl, secrets.token_bytes(32), fault)
    for tenant in places:
        registries.of(tenant).heard.append(functools.partial(clients.changed, tenant))
        registries.of(tenant).heard.append(_Collisions(registries.of(tenant)))
    return clients


class _Collisions:
    """Says once in the log that a name is shared."""

    def __init__(self, registry: KvRegistry) -> None:
        self._registry, self._said = registry, set[str]()
        self("")

    def __call__(self, _: str) -> None:
        shared = self._registry.tool_names().shared()
        for name in sorted(shared.keys() - self._said):
            same = ", ".join(f"mcp/{one.server}/{one.name}" for one in shared[name])
            log.warning("%s at /mcp is the name of several tools, and none of them is called there: %s", name, same)
        self._said = set(shared)
