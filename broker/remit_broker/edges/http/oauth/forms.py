"""Requests and answers of OAuth endpoints: strict forms in, JSON that nobody caches out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from remit_broker.core.oauth import OAuthError, as_oauth, invalid
from remit_schemas.errors import Code, Refusal, refusal

MAX_FORM: Final = 64 * 1024
"""A user's token, a client's assertion and what is asked for."""
MAX_FIELDS: Final = 32
NO_STORE: Final = {"Cache-Control": "no-store", "Pragma": "no-cache"}

Form = dict[str, str]
Fault = Callable[[str, BaseException], None]


async def form_of(request: Request) -> Form:
    """The URL-encoded body. A parameter without a value counts as left out, one that is there twice refuses (RFC 6749 §3.2).

    Nothing is read from the URL: what stands there ends up in logs.
    """
    if request.url.query:
        raise invalid("invalid_request", "parameters are in the URL", "send them in the body", rule="oauth.query")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise invalid(
            "invalid_request", "the body is no form", "send application/x-www-form-urlencoded", rule="oauth.form"
        )
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_FORM:
            raise invalid("invalid_request", "the form is too large", f"at most {MAX_FORM} bytes", rule="oauth.size",
                          status=413)  # fmt: skip
    return fields_of(bytes(data))


def fields_of(data: bytes) -> Form:
    """The fields of a query or body. Raises :class:`OAuthError`."""
    try:
        pairs = parse_qsl(
            data.decode("ascii"), keep_blank_values=True, strict_parsing=bool(data), max_num_fields=MAX_FIELDS,
            errors="strict",
        )  # fmt: skip
    except ValueError:
        raise invalid("invalid_request", "that is no form", "URL-encode the parameters", rule="oauth.form") from None
    # INVARIANT: of a parameter that is there twice, neither counts (test_a_parameter_that_is_there_twice_is_refused).
    if len(dict(pairs)) != len(pairs):
        raise invalid("invalid_request", "a parameter is there twice", "send each once", rule="oauth.twice")
    return {name: value for name, value in pairs if value}


def answer(document: dict[str, Any], status: int = 200) -> JSONResponse:
    """JSON that no cache keeps."""
    return JSONResponse(document, status, NO_STORE)


def told(error: OAuthError) -> Response:
    """An error as OAuth says it."""
    response = answer(error.document(), error.status)
    if error.status == 401:
        response.headers["WWW-Authenticate"] = f'Bearer error="{error.error}"'
    if error.body.retry_after is not None:
        response.headers["Retry-After"] = str(max(1, round(error.body.retry_after)))
    return response


def oauth_errors(
    handler: Callable[[Request], Awaitable[Response]], fault: Fault
) -> Callable[[Request], Awaitable[Response]]:
    """``handler`` with every exception turned into an OAuth error: never a traceback, never a silent success."""

    async def wrapped(request: Request) -> Response:
        try:
            return await handler(request)
        except OAuthError as error:
            return told(error)
        except Refusal as no:
            return told(as_oauth(no.body))
        except Exception as error:
            fault("oauth", error)
            return told(
                as_oauth(refusal(Code.INTERNAL, "the broker failed", rule="oauth.fault", ask="see its log").body)
            )

    return wrapped
