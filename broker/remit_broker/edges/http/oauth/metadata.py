"""What clients read first: which server gives tokens for ``/mcp`` (RFC 9728), and what that server can (RFC 8414)."""

from __future__ import annotations

from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from remit_broker.core.oauth import DETAILS, EXCHANGE, REFRESH
from remit_broker.edges.http.challenge import METADATA
from remit_schemas.names import is_principal

SERVER: Final = "/.well-known/oauth-authorization-server"
AGE: Final = {"Cache-Control": "public, max-age=300"}
RESOURCE: Final = "/mcp"


def resource(base: str, path: str) -> dict[str, Any]:
    """The metadata of ``path`` as a protected resource."""
    return {
        "resource": base + path,
        "resource_name": "Remit" if path == RESOURCE else f"Remit: {path.removeprefix(RESOURCE + '/')}",
        "authorization_servers": [base],
        "bearer_methods_supported": ["header"],
        "scopes_supported": ["mcp/**" if path == RESOURCE else f"mcp/{path.removeprefix(RESOURCE + '/')}/*"],
        "authorization_details_types_supported": [DETAILS],
        "jwks_uri": f"{base}/.well-known/jwks.json",
    }


def server(base: str, more: dict[str, Any]) -> dict[str, Any]:
    """The metadata of the authorization server; ``more`` is what else it can where there is a provider to log in at."""
    methods = ["private_key_jwt", "none"]
    return {
        "issuer": base,
        "token_endpoint": f"{base}/oauth/token",
        "token_endpoint_auth_methods_supported": methods,
        "token_endpoint_auth_signing_alg_values_supported": ["EdDSA", "Ed25519"],
        "introspection_endpoint": f"{base}/oauth/introspect",
        "introspection_endpoint_auth_methods_supported": ["private_key_jwt"],
        "introspection_endpoint_auth_signing_alg_values_supported": ["EdDSA", "Ed25519"],
        "revocation_endpoint": f"{base}/oauth/revoke",
        "revocation_endpoint_auth_methods_supported": methods,
        "revocation_endpoint_auth_signing_alg_values_supported": ["EdDSA", "Ed25519"],
        "jwks_uri": f"{base}/.well-known/jwks.json",
        "grant_types_supported": [EXCHANGE, REFRESH],
        "response_types_supported": [],
        "authorization_details_types_supported": [DETAILS],
        **more,
    }


def routes(base: str, more: dict[str, Any]) -> list[Route]:
    """The documents."""

    async def about_resource(request: Request) -> Response:
        path = "/" + str(request.path_params.get("path", "mcp"))
        name = path.removeprefix(RESOURCE + "/")
        if path not in ("/", RESOURCE) and not (path == f"{RESOURCE}/{name}" and is_principal(name)):
            raise HTTPException(404)
        return JSONResponse(resource(base, RESOURCE if path == "/" else path), headers=AGE)

    async def about_server(_: Request) -> Response:
        return JSONResponse(server(base, more), headers=AGE)

    return [
        Route(METADATA, about_resource),
        Route(METADATA + "/{path:path}", about_resource),
        Route(SERVER, about_server),
    ]
