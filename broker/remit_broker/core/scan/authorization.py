"""What the metadata of an MCP server's authorization server lacks (RFC 8414, and the MCP authorization chapter of 2025-11-25)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlsplit

from remit_broker.core.scan.finding import Finding, quoted

_ENDPOINTS: Final = ("authorization_endpoint", "token_endpoint")
WELL_KNOWN: Final = ("oauth-authorization-server", "openid-configuration")


def places_of(issuer: str) -> list[str]:
    """Where the metadata of ``issuer`` may stand, in the order in which clients look (RFC 8414 §3.1, OpenID Discovery §4)."""
    parts = urlsplit(issuer)
    base, path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
    found = [f"{base}/.well-known/{name}{path}" for name in WELL_KNOWN]
    return [*found, f"{base}{path}/.well-known/openid-configuration"] if path else found


def judged(where: str, told: dict[str, Any], issuer: str, near: bool) -> Iterator[Finding]:
    """The findings. With ``near`` the server is on this machine, where endpoints without TLS are none."""
    if told.get("issuer") != issuer:
        yield Finding(
            rule="auth.issuer", severity="high", where=where, message="its authorization server says it is another one",
            evidence=quoted(told.get("issuer")), ask="issuer must be what its clients look it up by (RFC 8414 section 3.3)",
        )  # fmt: skip
    methods = told.get("code_challenge_methods_supported")
    if not isinstance(methods, list) or "S256" not in methods:
        yield Finding(
            rule="auth.pkce", severity="high", where=where, message="its authorization server has no PKCE by S256",
            evidence=quoted(methods), ask="a code that is stolen is of use without it; clients of MCP refuse to go on",
        )  # fmt: skip
    elif "plain" in methods:
        yield Finding(
            rule="auth.pkce", severity="medium", where=where, message="its authorization server takes PKCE in plain",
            evidence=quoted(methods), ask="take S256 alone",
        )  # fmt: skip
    for name in _ENDPOINTS:
        if urlsplit(said := str(told.get(name, ""))).scheme != "https" and not near:
            yield Finding(
                rule="auth.endpoint", severity="high", where=where, message=f"its {name} is missing or has no TLS",
                evidence=quoted(said), ask="serve it by https",
            )  # fmt: skip
    risky = [
        *(one for one in _texts(told.get("grant_types_supported")) if one in ("password", "implicit")),
        *(one for one in _texts(told.get("response_types_supported")) if "token" in one.split()),
    ]
    if risky:
        yield Finding(
            rule="auth.grants", severity="medium", where=where, message="its authorization server gives tokens in ways that leak them",
            evidence=quoted(risky), ask="give tokens for codes alone (OAuth 2.1 has neither password nor implicit)",
        )  # fmt: skip
    if not told.get("registration_endpoint") and told.get("client_id_metadata_document_supported") is not True:
        yield Finding(
            rule="auth.registration", severity="low", where=where, message="clients cannot make themselves known where they log in",
            ask="offer registration (RFC 7591) or client-id metadata documents; else each client needs an id by hand",
        )  # fmt: skip


def _texts(value: Any) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []
