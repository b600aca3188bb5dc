"""All of OAuth on the HTTP edge, put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from starlette.routing import Route

from remit_broker.edges.http.desk import Desk
from remit_broker.edges.http.oauth import metadata
from remit_broker.edges.http.oauth.clients import Clients, Once
from remit_broker.edges.http.oauth.forms import oauth_errors
from remit_broker.edges.http.oauth.standing import Standing
from remit_broker.edges.http.oauth.tokens import Genuine, Tokens
from remit_broker.edges.http.operators import Operator


class OAuth:
    """``base`` is the URL under which clients know this broker."""

    def __init__(self, base: str, desks: Iterable[Desk], once: Once, genuine: Genuine, operator: Operator) -> None:
        self.base = base.rstrip("/")
        found = {desk.tenant: desk for desk in desks}
        ports = {name: desk.ports for name, desk in found.items()}
        clock = next(iter(ports.values())).clock
        audiences = frozenset({self.base, *(f"{self.base}/oauth/{name}" for name in ("token", "introspect", "revoke"))})
        self.clients = Clients({name: one.registry for name, one in ports.items()}, once, clock, audiences)
        self.tokens = Tokens(
            ports, self.clients, genuine, lambda tenant, name: found[tenant].directory.attachment(name)
        )
        self.standing = Standing(ports, self.clients, genuine, operator)

        async def announce(tenant: str, jti: str) -> None:
            await found[tenant].kill.announce(jti)

        self.standing.announce = announce

    def demand_proof(self) -> None:
        """Serve agents that prove themselves, and nobody else."""
        self.tokens.proof_needed = self.standing.proof_needed = True

    def routes(self, fault: Callable[[str, BaseException], None], more: dict[str, Any]) -> list[Route]:
        """Every route; ``more`` is what the server's metadata says beside."""
        table = {
            "/oauth/token": self.tokens.endpoint,
            "/oauth/introspect": self.standing.introspect,
            "/oauth/revoke": self.standing.revoke,
        }
        posts = [Route(path, oauth_errors(do, fault), methods=["POST"]) for path, do in table.items()]
        return [*metadata.routes(self.base, more), *posts]
