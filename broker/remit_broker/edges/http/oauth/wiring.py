"""All of OAuth on the HTTP edge, put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from remit_broker.core.oauth import CODE, EXCHANGE, REFRESH, invalid
from remit_broker.edges.http.challenge import challenge
from remit_broker.edges.http.desk import Desk
from remit_broker.edges.http.oauth import metadata, pages
from remit_broker.edges.http.oauth.clients import Clients, Once
from remit_broker.edges.http.oauth.connect import Connect, Ways
from remit_broker.edges.http.oauth.forms import oauth_errors
from remit_broker.edges.http.oauth.login import Front
from remit_broker.edges.http.oauth.logins import ClientUsers, Logins
from remit_broker.edges.http.oauth.registration import Registration
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

        self.standing.announce, self.standing.base = announce, self.base
        self.logins: Logins | None = None
        self._connect: Connect | None = None
        self._front: Front | None = None
        self._registration: Registration | None = None
        self._fault: Callable[[str, BaseException], None] = lambda where, error: None

    def demand_proof(self) -> None:
        """Serve agents that prove themselves, and nobody else."""
        self.tokens.proof_needed = self.standing.proof_needed = True

    def log_in(self, front: Front, registration: Registration, logins: Logins) -> None:
        """Let people log in."""
        self._front, self._registration = front, registration
        self.logins = self.standing.logins = logins
        self.tokens.more |= {CODE: logins.by_code, REFRESH: logins.by_refresh}

    def connect(self, ways: Ways) -> None:
        """Let users log in at MCP servers."""
        self._connect = Connect(self.base, ways)

    def users(self, operator: Operator) -> Operator:
        """How users of clients are known at ``/mcp``: by what they logged in for, else as ``operator`` knows them."""
        return ClientUsers(self.logins, operator) if self.logins is not None else operator

    def challenge(self, path: str, error: str = "") -> str:
        """``WWW-Authenticate`` for a client without a token that counts, at ``path``."""
        return challenge(self.base, path, error) if self.logins is not None else "Bearer"

    def _browser(self) -> list[Route]:
        """Where browsers come by, and programs that register."""
        if self._front is None or self._registration is None:

            async def nobody(_: Request) -> Response:
                return pages.failed(
                    "Nobody logs in here", "This broker has no provider that people could log in at",
                    "An operator can add one: [issuers.login] in remit.toml; docs/oauth.md", 404,
                )  # fmt: skip

            async def closed(_: Request) -> Response:
                raise invalid(
                    "access_denied", "this broker has no provider that people could log in at",
                    "use a token of this machine (data/keys/local.token), or add [issuers.login]", status=403,
                    rule="oauth.provider",
                )  # fmt: skip

            ways = [(path, nobody, "GET") for path in ("/oauth/authorize", "/oauth/callback")]
            return [
                *(Route(path, do, methods=[verb]) for path, do, verb in ways),
                Route("/oauth/consent", nobody, methods=["POST"]),
                Route("/oauth/register", oauth_errors(closed, self._fault), methods=["POST"]),
            ]
        front = self._front
        return [
            Route("/oauth/authorize", pages.shown(front.authorize, self._fault), methods=["GET"]),
            Route("/oauth/callback", pages.shown(front.callback, self._fault), methods=["GET"]),
            Route("/oauth/consent", pages.shown(front.consent, self._fault), methods=["POST"]),
            Route("/oauth/register", oauth_errors(self._registration.endpoint, self._fault), methods=["POST"]),
        ]

    def _more(self) -> dict[str, Any]:
        """What the metadata says of logins."""
        if self._registration is None:
            return {}
        more: dict[str, Any] = {
            "authorization_endpoint": f"{self.base}/oauth/authorize",
            "response_types_supported": ["code"],
            "response_modes_supported": ["query"],
            "code_challenge_methods_supported": ["S256"],
            "grant_types_supported": [CODE, REFRESH, EXCHANGE],
            "authorization_response_iss_parameter_supported": True,
            "scopes_supported": ["mcp/**"],
            "client_id_metadata_document_supported": self._registration.reads,
        }
        if self._registration.opened:
            more["registration_endpoint"] = f"{self.base}/oauth/register"
        return more

    def routes(self, fault: Callable[[str, BaseException], None]) -> list[Route]:
        """Every route."""
        self._fault = fault
        table = {
            "/oauth/token": self.tokens.endpoint,
            "/oauth/introspect": self.standing.introspect,
            "/oauth/revoke": self.standing.revoke,
        }
        posts = [Route(path, oauth_errors(do, fault), methods=["POST"]) for path, do in table.items()]
        return [*metadata.routes(self.base, self._more()), *posts, *self._browser(), *self._connecting()]

    def _connecting(self) -> list[Route]:
        if (at := self._connect) is None:
            return []
        return [
            Route("/oauth/connect", pages.shown(at.ask, self._fault), methods=["GET"]),
            Route("/oauth/connect", pages.shown(at.go, self._fault), methods=["POST"]),
            Route("/oauth/connected", pages.shown(at.done, self._fault), methods=["GET"]),
        ]
