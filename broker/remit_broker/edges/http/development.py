"""The development issuer on the HTTP edge, as any OpenID provider stands on the web."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from remit_broker.core.issuers import DEV_PATH
from remit_broker.edges.http import development_login
from remit_broker.edges.http.development_login import Login
from remit_broker.edges.http.guard import answering
from remit_schemas.errors import Code, refusal

MAX_FORM: Final = 4 * 1024
MARK: Final = {"Remit-Development-Issuer": "true", "Cache-Control": "no-store"}


class Provider(Login, Protocol):
    """What stands behind the routes."""

    @property
    def login(self) -> object | None:
        """Whether people log in here."""

    def redeem(self, form: Mapping[str, str]) -> dict[str, Any]:
        """The tokens for a code. Refuses."""

    def discovery(self) -> dict[str, Any]:
        """The discovery document."""

    def jwks(self) -> dict[str, Any]:
        """The public keys."""

    def token(self, user: str, secret: str) -> dict[str, Any]:
        """A token. Refuses."""


def routes(provider: Provider, fault: Callable[[str, BaseException], None]) -> list[Route]:
    """Discovery, keys, token endpoint, and the login page where people log in here."""

    async def discovery(_: Request) -> Response:
        return JSONResponse(provider.discovery(), headers=MARK)

    async def keys(_: Request) -> Response:
        return JSONResponse(provider.jwks(), headers=MARK)

    async def token(request: Request) -> Response:
        form = await _form(request)
        if form.get("grant_type") == "authorization_code" and provider.login is not None:
            return JSONResponse(provider.redeem(form), headers=MARK)
        if form.get("grant_type") != "password":
            raise refusal(
                Code.MALFORMED, "grant_type is not password", rule="development.grant",
                ask="send grant_type=password, username and client_secret",
            )  # fmt: skip
        return JSONResponse(provider.token(form.get("username", ""), form.get("client_secret", "")), headers=MARK)

    table = {
        f"{DEV_PATH}/.well-known/openid-configuration": ("GET", discovery),
        f"{DEV_PATH}/jwks.json": ("GET", keys),
        f"{DEV_PATH}/token": ("POST", token),
    }
    found = [Route(path, answering(do, fault), methods=[method]) for path, (method, do) in table.items()]
    return found + (development_login.routes(provider, fault) if provider.login is not None else [])


async def _form(request: Request) -> dict[str, str]:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_FORM:
            raise refusal(Code.TOO_LARGE, "the form is too large", rule="http.size", ask=f"at most {MAX_FORM} bytes")
    try:
        pairs = parse_qsl(data.decode("ascii"), strict_parsing=True, max_num_fields=8)
    except ValueError:
        pairs = []
    if not pairs or len(dict(pairs)) != len(pairs):
        raise refusal(Code.MALFORMED, "the body is no form", rule="http.body", ask="send an URL-encoded form")
    return dict(pairs)
