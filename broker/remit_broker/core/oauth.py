"""What OAuth calls things, and how a refusal looks there (RFC 6749, 7523, 8693, 9396). Pure."""

from __future__ import annotations

import json
import re
from typing import Final

import msgspec

from remit_schemas.errors import Code, ErrorBody, Refusal, refusal
from remit_schemas.scope import Detail, parse_scope

EXCHANGE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"
CODE: Final = "authorization_code"
REFRESH: Final = "refresh_token"
ASSERTION: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a name
ID_TOKEN: Final = "urn:ietf:params:oauth:token-type:id_token"  # noqa: S105 - a name
JWT: Final = "urn:ietf:params:oauth:token-type:jwt"
SUBJECTS: Final = (ACCESS_TOKEN, ID_TOKEN, JWT)
"""What a subject token may be (RFC 8693 §3). Whether it is a grant or a user's token is seen from its header."""
ISSUED: Final = (ACCESS_TOKEN, JWT)
DETAILS: Final = "remit"
"""The type of ``authorization_details`` here (RFC 9396)."""

MAX_SCOPE: Final = 8192
"""Longest ``scope`` or ``authorization_details`` in characters."""

_ERROR: Final[dict[Code, str]] = {
    Code.OUT_OF_SCOPE: "invalid_scope",
    Code.UNKNOWN_TARGET: "invalid_target",
    Code.CYCLE: "invalid_target",
    Code.DEPTH_EXCEEDED: "invalid_target",
    Code.POLICY_DENIED: "invalid_target",
    Code.APPROVAL_REQUIRED: "invalid_target",
    Code.RATE_LIMITED: "slow_down",
    Code.LEDGER_UNAVAILABLE: "temporarily_unavailable",
    Code.TARGET_UNAVAILABLE: "temporarily_unavailable",
    Code.INTERNAL: "server_error",
}
"""RFC 8693 §2.2.2: a token that is not accepted is ``invalid_request``, a target that is not served ``invalid_target``."""
_STATUS: Final = {"slow_down": 429, "temporarily_unavailable": 503, "server_error": 500}
_UNSAID: Final = re.compile(r"[^\x20\x21\x23-\x5b\x5d-\x7e]")
_TOKEN: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")


class OAuthError(Exception):
    """An error of an OAuth endpoint (RFC 6749 §5.2). ``body`` is the refusal behind it."""

    def __init__(self, error: str, body: ErrorBody, status: int = 400) -> None:
        super().__init__(error)
        self.error, self.body, self.status = error, body, status

    def document(self) -> dict[str, object]:
        """The JSON of the answer: what every client reads, and the whole refusal for those that know Remit."""
        said = f"{self.body.message}; {self.body.ask}" if self.body.ask else self.body.message
        # Only these characters may stand there; text of the request that is in a message does no harm then either.
        return {
            "error": self.error,
            "error_description": _UNSAID.sub("'", said)[:1024],
            "remit": msgspec.to_builtins(self.body),
        }


def as_oauth(body: ErrorBody) -> OAuthError:
    """How a refusal looks at the token endpoint."""
    error = _ERROR.get(body.code, "invalid_request")
    return OAuthError(error, body, 413 if body.code is Code.TOO_LARGE else _STATUS.get(error, 400))


def invalid(error: str, message: str, ask: str, *, rule: str = "oauth.request", status: int = 400) -> OAuthError:
    """An error that is OAuth's own."""
    code = Code.UNAUTHENTICATED if error in ("invalid_client", "invalid_grant", "invalid_token") else Code.MALFORMED
    return OAuthError(error, refusal(code, message, rule=rule, ask=ask).body, status)


def scopes_of(scope: str, details: str) -> tuple[Detail, ...] | None:
    """What ``scope`` (patterns, separated by spaces) or ``authorization_details`` asks for; None where neither is there.

    Raises :class:`OAuthError`.
    """
    if scope and details:
        raise invalid(
            "invalid_request", "scope and authorization_details are both there", "send one of them", rule="oauth.scope"
        )
    if len(scope) > MAX_SCOPE or len(details) > MAX_SCOPE:
        raise invalid("invalid_scope", "that is too long", f"at most {MAX_SCOPE} characters", rule="oauth.scope")
    if details:
        return _details(details)
    if not scope:
        return None
    found = []
    for word in scope.split(" "):
        # Constraints have quotes, which no scope may have (RFC 6749 §3.3).
        if not _TOKEN.fullmatch(word):
            raise invalid(
                "invalid_scope", "scope is a list of resource patterns", "write mcp/git/* or such; constraints: authorization_details",
                rule="oauth.scope",
            )  # fmt: skip
        try:
            found.append(parse_scope(word))
        except Refusal as no:
            raise OAuthError("invalid_scope", no.body) from None
    return tuple(found)


def _details(text: str) -> tuple[Detail, ...]:
    try:
        raw = json.loads(text)
        if not isinstance(raw, list) or not raw:
            raise ValueError("no list")
        found = tuple(msgspec.convert(one, Detail, strict=True) for one in raw)
    except (ValueError, RecursionError):  # msgspec.ValidationError is one
        raise invalid(
            "invalid_authorization_details", "authorization_details is no list of details of the type remit",
            'write [{"type":"remit","resource":"mcp/git/*"}]', rule="oauth.details",
        ) from None  # fmt: skip
    for detail in found:
        try:
            parse_scope(detail.resource)
        except Refusal as no:
            raise OAuthError("invalid_authorization_details", no.body) from None
    return found
