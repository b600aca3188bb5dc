"""Clients that people log in with, and what becomes of a login: the rules of RFC 6749, 7591, 7636, 8252, 8707 and 9700. Pure.

A client is public: whoever runs it can read what it holds, so it has no secret, its code is bound to a challenge (PKCE), and its
refresh token changes with each use.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec

from remit_broker.core.oauth import invalid
from remit_broker.core.user_tokens import Identity
from remit_schemas.base64url import encode
from remit_schemas.names import is_principal

MAX_URI: Final = 2048
MAX_URIS: Final = 10
MAX_NAME: Final = 80
NEVER: Final = frozenset(
    {"javascript", "data", "vbscript", "file", "blob", "about", "ws", "wss", "ftp", "mailto", "view-source"}
)
"""Schemes that no list of redirections brings in: a browser runs or shows what stands there."""
LOCAL: Final = frozenset({"127.0.0.1", "localhost", "::1"})
ACCESS: Final = "remit_at_"
REFRESH: Final = "remit_rt_"
CODE: Final = "remit_ac_"
KEPT: Final = 2
"""Access tokens of one login that count: the one before the last refresh as well, for what is on its way."""

_CHALLENGE: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_VERIFIER: Final = re.compile(r"[A-Za-z0-9._~-]{43,128}")
_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]{1,62}")
_SECRET: Final = re.compile(r"([A-Za-z0-9_-]{22})\.([A-Za-z0-9_-]{43})")


class LoginClient(msgspec.Struct, frozen=True, kw_only=True):
    """A program that people log in with. ``id`` is drawn at its registration, or the URL of its own document."""

    id: str
    name: str
    redirects: tuple[str, ...]
    uri: str = ""
    made: int = 0


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asks a person for. ``resource`` is the path of what its tokens are for."""

    client: LoginClient
    redirect: str
    challenge: str
    resource: str
    scopes: tuple[str, ...]
    state: str = ""


class Away(msgspec.Struct, frozen=True, kw_only=True):
    """A login on its way through the provider. ``browser`` is the digest of what the browser that began it keeps. Unix seconds."""

    asked: Asked
    issuer: str
    verifier: str
    nonce: str
    browser: str
    exp: int


class Consenting(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who logged in and has not said yet whether the client may act. Unix seconds."""

    asked: Asked
    identity: Identity
    browser: str
    exp: int


class Login(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody allowed a client: one code, and every token that came of it. Secrets are here as digests. Unix seconds."""

    asked: Asked
    identity: Identity
    made: int
    exp: int
    code: str
    code_exp: int
    used: bool = False
    refresh: str = ""
    access: tuple[tuple[str, int], ...] = ()


def digest_of(secret: str) -> str:
    """What is kept of a secret of 256 random bits."""
    return hashlib.sha256(secret.encode()).hexdigest()


def same(secret: str, digest: str) -> bool:
    """Whether ``digest`` is that of ``secret``."""
    return bool(digest) and hmac.compare_digest(digest_of(secret), digest)


def parts_of(token: str, kind: str) -> tuple[str, str] | None:
    """The login and the secret of a token of a ``kind``; None where it is none."""
    match = _SECRET.fullmatch(token.removeprefix(kind)) if token.startswith(kind) else None
    return (match[1], match[2]) if match else None


def proves(verifier: str, challenge: str) -> bool:
    """PKCE with S256 (RFC 7636 §4.6); there is no ``plain``."""
    if not _VERIFIER.fullmatch(verifier):
        return False
    return hmac.compare_digest(encode(hashlib.sha256(verifier.encode()).digest()), challenge)


def is_challenge(text: str, method: str) -> bool:
    """Whether that is a challenge by S256. A challenge without a method would be ``plain``."""
    return method == "S256" and bool(_CHALLENGE.fullmatch(text))


# Where a browser is sent back to


def may_redirect(uri: str, allowed: Iterable[str]) -> bool:
    """Whether a client may name ``uri``: this very machine, or what the configuration names (``allowed``, patterns).

    INVARIANT: no code goes where the configuration did not say, nor to a scheme that a browser runs
    (test_a_redirection_that_nobody_allowed_is_not_registered).
    """
    if len(uri) > MAX_URI or not uri.isascii() or not uri.isprintable() or any(bad in uri for bad in ' #\\"<>^`{|}'):
        return False
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return False
    if not _SCHEME.fullmatch(parts.scheme) or parts.scheme in NEVER or "@" in parts.netloc:
        return False
    if parts.scheme == "http":
        return host in LOCAL
    if parts.scheme == "https" and not host:
        return False
    if ".." in parts.path.split("/") or "%2e" in parts.path.lower():
        return False
    return any(_fits(uri, pattern) for pattern in allowed)


def _fits(uri: str, pattern: str) -> bool:
    """A ``*`` stands for anything after the host only: no pattern widens to other hosts by it."""
    head, star, _ = pattern.partition("*")
    if star and head.count("/") < 3 and not head.endswith(":"):
        return False
    return fnmatchcase(uri, pattern.replace("[", "[[]").replace("?", "[?]"))


def same_redirect(asked: str, registered: str) -> bool:
    """Exactly, but for the port of this very machine, which an application takes as it finds it free (RFC 8252 §7.3)."""
    if asked == registered:
        return True
    try:
        one, other = urlsplit(asked), urlsplit(registered)
        local = one.scheme == other.scheme == "http" and one.hostname == other.hostname and one.hostname in LOCAL
        if not local:
            return False
        _ = one.port
    except ValueError:
        return False
    return "@" not in one.netloc and (one.path, one.query, one.fragment) == (other.path, other.query, other.fragment)


# What is asked for


def resource_of(text: str, base: str) -> str | None:
    """The path, ``/mcp`` or ``/mcp/<server>``, of a resource indicator (RFC 8707) at ``base``; without one, ``/mcp``."""
    path = text.removeprefix(base).rstrip("/") if text else "/mcp"
    name = path.removeprefix("/mcp/")
    good = (text.startswith(base + "/") or not text) and (
        path == "/mcp" or (path == f"/mcp/{name}" and is_principal(name))
    )
    return path if good else None


def covers(resource: str, path: str) -> bool:
    """Whether a token for ``resource`` is for a request of ``path``.

    INVARIANT: a token is for the resource that it was asked for (test_a_token_is_for_its_resource_alone).
    """
    return resource == "/mcp" or path == resource or path.startswith(resource + "/")


Field = Literal["client_name", "client_uri"]


def registered(document: dict[str, Any], id_: str, allowed: Iterable[str], made: int) -> LoginClient:
    """The client of a registration (RFC 7591 §2) or of its own document. Raises :class:`OAuthError`."""
    uris = document.get("redirect_uris")
    if not isinstance(uris, list) or not 0 < len(uris) <= MAX_URIS or not all(isinstance(uri, str) for uri in uris):
        raise invalid(
            "invalid_redirect_uri", "redirect_uris is no list", f"send 1 to {MAX_URIS}", rule="oauth.redirect"
        )
    for uri in uris:
        if not may_redirect(uri, allowed):
            raise invalid(
                "invalid_redirect_uri", "a redirection that is not allowed here",
                "use http://127.0.0.1, or have an operator name it in oauth.redirects", rule="oauth.redirect",
            )  # fmt: skip
    # Of all that a document may say, what would make another kind of client of it.
    if "client_secret" in document or document.get("token_endpoint_auth_method", "none") not in _PUBLIC:
        raise invalid("invalid_client_metadata", "clients are public here", "token_endpoint_auth_method is none")
    types = document.get("grant_types", ["authorization_code"])
    if not isinstance(types, list) or "authorization_code" not in types:
        raise invalid("invalid_client_metadata", "grant_types without authorization_code", "add it")
    return LoginClient(id=id_, name=_shown(document, "client_name"), uri=_shown(document, "client_uri"),
                       redirects=tuple(uris), made=made)  # fmt: skip


_PUBLIC: Final = ("none", "client_secret_post", "client_secret_basic")
"""Many clients ask for a secret that they could not keep: they are told that there is none, and go on without."""


def _shown(document: dict[str, Any], field: Field) -> str:
    """What the client calls itself: for people's eyes, and so without anything that deceives them."""
    said = document.get(field, "")
    if not isinstance(said, str):
        return ""
    return "".join(c for c in said if c.isascii() and c.isprintable())[:MAX_NAME].strip()
