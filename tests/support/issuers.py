"""An issuer whose keys are in the test's hands: it signs whatever it is told to, and publishes whatever it is told to."""

from __future__ import annotations

import json
import threading
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from remit_broker.core.issuers import IssuerConfig

URL = "https://login.example.com"
AUDIENCE = "remit"
NOW = 1_800_000_000


@cache
def rsa_key(name: str, bits: int = 2048) -> rsa.RSAPrivateKey:
    """A key that is drawn once per run: drawing costs a tenth of a second."""
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@cache
def ec_key(name: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@cache
def ed_key(name: str) -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


def jwk_of(key: Any, kid: str | None, **members: Any) -> dict[str, Any]:
    """The public JWK of a private key."""
    kinds: dict[Any, Any] = {
        rsa.RSAPrivateKey: jwt.algorithms.RSAAlgorithm, ec.EllipticCurvePrivateKey: jwt.algorithms.ECAlgorithm,
        ed25519.Ed25519PrivateKey: jwt.algorithms.OKPAlgorithm,
    }  # fmt: skip
    (algorithm,) = (found for kind, found in kinds.items() if isinstance(key, kind))
    public: dict[str, Any] = algorithm.to_jwk(key.public_key(), as_dict=True)
    public.pop("key_ops", None)
    return {**public, "use": "sig", **({} if kid is None else {"kid": kid}), **members}


def b64(data: bytes | str | dict[str, Any]) -> str:
    """base64url of bytes, text or JSON."""
    raw = json.dumps(data).encode() if isinstance(data, dict) else data.encode() if isinstance(data, str) else data
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


class Clock:
    """Time that a test turns."""

    def __init__(self, now: float = NOW) -> None:
        self.at = now

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at


class Issuer:
    """``documents`` are what it answers to a path; ``asked`` is what it was asked for; ``down`` makes it unreachable."""

    def __init__(self, url: str = URL, now: float | None = None) -> None:
        self.url, self.now = url, now
        self.asked: list[str] = []
        self.down = False
        self.keys: dict[str, Any] = {}
        self.extra: list[dict[str, Any]] = []
        self.documents: dict[str, Any] = {}
        self.rotate("k1")

    def rotate(self, kid: str) -> None:
        """Sign with a new key from now on, and publish no other."""
        self.keys = {kid: rsa_key(f"{self.url} {kid}")}

    @property
    def kid(self) -> str:
        return next(reversed(self.keys))

    def jwks(self) -> dict[str, Any]:
        return {"keys": [*(jwk_of(key, kid, alg="RS256") for kid, key in self.keys.items()), *self.extra]}

    def answer(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers."""
        self.asked.append(path)
        found = self.documents.get(path)
        if found is None:
            found = {
                "/.well-known/openid-configuration": {"issuer": self.url, "jwks_uri": f"{self.url}/jwks"},
                "/jwks": self.jwks(),
            }.get(path)
        if isinstance(found, tuple):
            return found
        if found is None:
            return 404, b"", {}
        return 200, found if isinstance(found, bytes) else json.dumps(found).encode(), {}

    def transport(self) -> httpx.MockTransport:
        """As httpx reaches it without a network."""

        def handle(request: httpx.Request) -> httpx.Response:
            if self.down:
                raise httpx.ConnectError("refused", request=request)
            status, body, headers = self.answer(request.url.path)
            return httpx.Response(status, content=body, headers=headers)

        return httpx.MockTransport(handle)

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Those of a good access token; what is changed to None is left out."""
        now = int(self.now if self.now is not None else time.time())
        claims = {
            "iss": self.url, "sub": "ann", "aud": AUDIENCE, "iat": now, "exp": now + 300, "jti": "token-1",
            "client_id": "portal", "roles": ["analyst"], "groups": ["research"],
        } | changes  # fmt: skip
        return {name: value for name, value in claims.items() if value is not None}

    def token(
        self,
        *,
        alg: str = "RS256",
        kid: str | None = "",
        key: Any = None,
        header: dict[str, Any] | None = None,
        **changes: Any,
    ) -> str:
        """A token, good unless ``changes`` (or the header's) say otherwise."""
        kid = self.kid if kid == "" else kid
        key = key if key is not None else self.keys[self.kid]
        head = {"typ": "at+jwt", **({} if kid is None else {"kid": kid}), **(header or {})}
        head = {name: value for name, value in head.items() if value is not None}
        return jwt.encode(self.claims(**changes), key, alg, head)

    def config(self, **changes: Any) -> IssuerConfig:
        """Its table."""
        fields: dict[str, Any] = {"name": "corp", "issuer": self.url, "audience": (AUDIENCE,)}
        return IssuerConfig(**fields | changes)


@contextmanager
def serving(issuer: Issuer) -> Iterator[Issuer]:
    """``issuer`` on a real port of this machine; its URL becomes that one."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if issuer.down:
                self.close_connection = True
                return
            status, body, headers = issuer.answer(self.path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        issuer.url = f"http://127.0.0.1:{server.server_port}"
        issuer.rotate("k1")
        yield issuer
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
