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
ASSERTED: Final = 60
"""Seconds for which an identity assertion is good."""
WITHHELD: Final = "[credential withheld]"
"""What stands where a server gave back the credential it got."""
SHORTEST: Final = 6
"""Characters of a credential that is looked for in what a server says: shorter ones are in every text."""

_HEADER: Final = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}")
_VARIABLE: Final = re.compile(r"[A-Z][A-Z0-9_]{2,63}")
_STEERING: Final = (
    "LD_",
    "DYLD_",
    "PYTHON",
    "NODE_",
    "BASH",
    "PERL",
    "RUBY",
    "JAVA_",
    "JDK_",
    "GIT_",
    "npm_",
    "NPM_",
    "UV_",
    "PIP_",
)
_FIXED: Final = frozenset({"PATH", "HOME", "LANG", "TMPDIR", "IFS", "ENV", "SHELL", "GCONV_PATH", "MALLOC_TRACE"})
_HOP: Final = frozenset({"host", "content-length", "content-type", "transfer-encoding", "connection", "accept", "mcp-session-id",
                         "mcp-protocol-version", "te", "trailer", "upgrade", "cookie", "proxy-authorization"})  # fmt: skip


class BackendConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``kind``: ``grant`` is the hop's own grant, for a server that verifies it; ``none`` nothing; ``secret`` what was set for the user
    at hand; ``service`` what was set for the server, whoever it is called for; ``exchange`` what the server's authorization server at
    ``token_endpoint`` gives for the grant (RFC 8693); ``assertion`` what that server, ``authorization_server``, gives for an identity
    assertion of ours about the user (draft-ietf-oauth-identity-assertion-authz-grant, RFC 7523); ``oauth`` what the user got by
    logging in at the server, which is at ``url``. It is sent as ``header``, after ``scheme``; or is the environment variable
    ``variable`` of a process of the user's own.
    """

    kind: Literal["grant", "none", "secret", "service", "exchange", "assertion", "oauth"] = "grant"
    url: str = ""
    variable: str = ""
    header: str = "Authorization"
    scheme: str = "Bearer"
    token_endpoint: str = ""
    authorization_server: str = ""
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
    if backend.variable and (backend.kind in ("grant", "none") or not is_variable(backend.variable)):
        return "variable", "it is for a credential: a name such as GITHUB_TOKEN, and none that changes how programs run"
    if (backend.kind in ("exchange", "assertion")) is not bool(backend.token_endpoint):
        return "token_endpoint", 'it belongs to kind = "exchange" and "assertion", and to no other'
    if (backend.kind == "assertion") is not bool(backend.authorization_server):
        return "authorization_server", 'it belongs to kind = "assertion", and to no other'
    if backend.authorization_server and not secure(backend.authorization_server):
        return "authorization_server", "its issuer: https, without query; http is for this very machine alone"
    if backend.kind == "assertion" and not backend.client_id:
        return "client_id", "an assertion is for one client: as whom the broker is known there"
    if (backend.kind == "oauth") is not bool(backend.url):
        return "url", 'it belongs to kind = "oauth", and to no other'
    if backend.url and not secure(backend.url):
        return "url", "https, without query; http is for this very machine alone"
    if backend.token_endpoint and not secure(backend.token_endpoint):
        return "token_endpoint", "https, without query; http is for this very machine alone"
    return None


def asserted(table: BackendConfig, issuer: str, user: str, jti: str, now: int) -> dict[str, Any]:
    """The claims of an identity assertion (ID-JAG): who the user is, for one authorization server and one client, for a minute.

    INVARIANT: it names the server that it is for, and what it may be used for there
    (test_an_assertion_names_its_user_its_client_and_its_authorization_server).
    """
    claims = {
        "iss": issuer, "sub": user, "aud": table.authorization_server, "client_id": table.client_id, "jti": jti, "iat": now,
        "exp": now + ASSERTED,
    }  # fmt: skip
    return claims | {name: said for name in ("resource", "scope") if (said := getattr(table, name))}


def is_secret(text: str) -> bool:
    """Whether a text can be sent in a header (RFC 9110 §5.5)."""
    return 0 < len(text) <= MAX_SECRET and text.isascii() and text.isprintable() and text == text.strip()


def is_variable(name: str) -> bool:
    """Whether a credential may be an environment variable of this name.

    INVARIANT: what a user sets cannot change what is run (test_a_variable_that_changes_how_programs_run_is_refused).
    """
    return bool(_VARIABLE.fullmatch(name)) and not name.startswith(_STEERING) and name not in _FIXED


def shown_of(backend: BackendConfig, secret: str) -> dict[str, str]:
    """What a server is shown: the variable where one is named, else the header."""
    return {backend.variable: secret} if backend.variable else headers_of(backend, secret)


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
