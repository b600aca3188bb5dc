"""What every HTTP request passes first: Host, Origin, size, and for the API who is asking."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from remit_schemas.canonical import loads
from remit_schemas.errors import SURFACES, Code, ErrorBody, Refusal, refusal

MAX_BODY: Final = 256 * 1024
LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})

Handler = Callable[[Request], Awaitable[Response]]


def error_response(body: ErrorBody) -> JSONResponse:
    """An error body with the status the table gives its code."""
    # RFC 6750 §3: what was sent as a token and is none is called that; where none was sent, nothing more is said.
    challenge = "Bearer" if body.code is Code.UNAUTHENTICATED else 'Bearer error="invalid_token"'
    headers = {"WWW-Authenticate": challenge} if SURFACES[body.code].http == 401 else {}
    if body.retry_after is not None:
        headers["Retry-After"] = str(max(1, round(body.retry_after)))
    return JSONResponse({"error": msgspec.to_builtins(body)}, SURFACES[body.code].http, headers)


def _host(value: str) -> str:
    return value.rsplit(":", 1)[0] if not value.endswith("]") and ":" in value else value


class LocalOnly:
    """Refuses what did not come from a page or program of this machine: foreign Host (DNS rebinding) or Origin.

    Forwarding headers are never looked at. Source: OWASP, DNS rebinding; the MCP transport's security rules (2025-11-25).
    """

    def __init__(self, app: ASGIApp, allowed: frozenset[str] = LOOPBACK) -> None:
        self._app, self._allowed = app, allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = [(name.lower(), value.decode("latin-1").lower()) for name, value in scope["headers"]]
        hosts = [value for name, value in headers if name == b"host"]
        origins = [value for name, value in headers if name == b"origin"]
        good_host = len(hosts) == 1 and _host(hosts[0]) in self._allowed
        good_origin = all(_host(origin.partition("://")[2]) in self._allowed for origin in origins)
        if good_host and good_origin:
            await self._app(scope, receive, send)
            return
        no = refusal(
            Code.UNAUTHENTICATED, "the request names a host or origin that is neither this machine nor in http.hosts", rule="http.host",
            ask="use http://127.0.0.1 from this machine; else an operator adds the name to http.hosts in remit.toml",
        )  # fmt: skip
        await JSONResponse({"error": msgspec.to_builtins(no.body)}, 403)(scope, receive, send)


async def body_of(request: Request) -> dict[str, Any]:
    """A JSON object from the body, capped while it is read. Refuses TOO_LARGE or MALFORMED."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BODY:
            raise refusal(Code.TOO_LARGE, "the body is too large", rule="http.size", ask=f"at most {MAX_BODY} bytes")
    value = loads(bytes(data) or b"{}", max_bytes=MAX_BODY)
    if not isinstance(value, dict):
        raise refusal(Code.MALFORMED, "the body is no JSON object", rule="http.body", ask="send a JSON object")
    return value


def answering(handler: Handler, fault: Callable[[str, BaseException], None]) -> Handler:
    """``handler`` with every exception turned into an error body: never a traceback, never a silent success."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except Refusal as no:
            return error_response(no.body)
        except Exception as error:
            fault("http", error)
            return error_response(
                refusal(Code.INTERNAL, "the broker failed", rule="http.fault", ask="see its log").body
            )

    return answer


async def typed(request: Request, kind: type[Any]) -> Any:
    """The JSON body as a ``kind``. Refuses MALFORMED."""
    return typed_as(await body_of(request), kind)


def typed_as(raw: dict[str, Any], kind: type[Any]) -> Any:
    """A JSON body that was read, as a ``kind``. Refuses MALFORMED."""
    try:
        return msgspec.convert(raw, kind, strict=True)
    except (msgspec.ValidationError, ValueError) as error:
        raise refusal(Code.MALFORMED, f"the body is not right: {error}", rule="api.body", ask="see the docs") from None
