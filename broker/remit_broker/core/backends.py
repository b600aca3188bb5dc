"""What an MCP server behind the broker is shown of the user for whom it is called: ``[backends.NAME]``. Pure."""

from __future__ import annotations

import re
from typing import Any, Final, Literal

import msgspec

from remit_broker.core.issuers import secure
from remit_schemas.names import is_principal

MAX_SECRET: Final = 8 * 1024
SERVICE: Final = ""
"""Stands for the user of a service account: nobody's name."""
WITHHELD: Final = "[credential withheld]"
"""What stands where a server gave back the credential it got."""
SHORTEST: Final = 6
"""Characters of a credential that is looked for in what a server says: shorter ones are in every text."""

_HEADER: Final = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}")
_HOP: Final = frozenset({"host", "content-length", "content-type", "transfer-encoding", "connection", "accept", "mcp-session-id",
                         "mcp-protocol-version", "te", "trailer", "upgrade", "cookie", "proxy-authorization"})  # fmt: skip


class BackendConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``kind``: ``grant`` is the hop's own grant, for a server that verifies it; ``none`` nothing; ``secret`` what was set for the user
    at hand; ``service`` what was set for the server, whoever it is called for; ``exchange`` what the server's authorization server at
    ``token_endpoint`` gives for the grant (RFC 8693); ``oauth`` what the user got by logging in at the server, which is at ``url``. It
    is sent as ``header``, after ``scheme``.
    """

    kind: Literal["grant", "none", "secret", "service", "exchange", "oauth"] = "grant"
    url: str = ""
    header: str = "Authorization"
    scheme: str = "Bearer"
    token_endpoint: str = ""
    audience: str = ""
    resource: str = ""
    scope: str = ""
    client_id: str = ""
    secret_file: str = ""


class Secret(msgspec.Struct, frozen=True, kw_only=True):
    """One of them. ``user`` is empty for a service account; ``at`` is RFC 3339."""

    server: str
    user: str
    value: str
    at: str
    by: str


class Upstream(msgspec.Struct, frozen=True, kw_only=True):
    """Where people log in at an MCP server, as it was found out when somebody did."""

    resource: str
    issuer: str
    authorize: str
    token: str
    client_id: str
    secret_file: str = ""


class Connecting(msgspec.Struct, frozen=True, kw_only=True):
    """A user on the way to a login at a server. ``browser`` is the digest of what the browser keeps, once it has gone there."""

    tenant: str
    user: str
    server: str
    at: Upstream
    verifier: str
    scope: str
    exp: int
    browser: str = ""


def wrong_with(name: str, backend: BackendConfig) -> tuple[str, str] | None:
    """What is wrong with a table: the key with the reason, and what to do; None where nothing is."""
    if not is_principal(name):
        return "", "name an MCP server, such as [backends.github]"
    if not _HEADER.fullmatch(backend.header) or backend.header.lower() in _HOP:
        return "header", "name a header that is the server's own, such as Authorization or X-Api-Key"
    if not backend.scheme.isascii() or not backend.scheme.isprintable() or len(backend.scheme) > 32:
        return "scheme", "write Bearer, or leave it empty"
    if (backend.kind == "exchange") is not bool(backend.token_endpoint):
        return "token_endpoint", 'it belongs to kind = "exchange", and to no other'
    if (backend.kind == "oauth") is not bool(backend.url):
        return "url", 'it belongs to kind = "oauth", and to no other'
    if backend.url and not secure(backend.url):
        return "url", "https, without query; http is for this very machine alone"
    if backend.token_endpoint and not secure(backend.token_endpoint):
        return "token_endpoint", "https, without query; http is for this very machine alone"
    return None


def is_secret(text: str) -> bool:
    """Whether a text can be sent in a header (RFC 9110 §5.5)."""
    return 0 < len(text) <= MAX_SECRET and text.isascii() and text.isprintable() and text == text.strip()


def headers_of(backend: BackendConfig, secret: str) -> dict[str, str]:
    """What is sent."""
    return {backend.header: f"{backend.scheme} {secret}".strip()}


def scrubbed(value: Any, secrets: tuple[str, ...]) -> Any:
    """``value`` without any of ``secrets``, in texts and in names of members.

    INVARIANT: a server that gives back what it got tells nobody (test_a_server_that_echoes_its_credential_tells_nobody).
    """
    if isinstance(value, str):
        for secret in secrets:
            if secret in value:
                value = value.replace(secret, WITHHELD)
        return value
    if isinstance(value, dict):
        return {scrubbed(name, secrets): scrubbed(item, secrets) for name, item in value.items()}
    if isinstance(value, list):
        return [scrubbed(item, secrets) for item in value]
    return value


def worth_hiding(headers: dict[str, str]) -> tuple[str, ...]:
    """The texts of a credential that nobody else is to see: whole, and without its scheme."""
    found = {part for value in headers.values() for part in (value, value.partition(" ")[2]) if len(part) >= SHORTEST}
    return tuple(sorted(found, key=len, reverse=True))
