"""A client of the OAuth endpoints that can prove to be an agent, and can lie about everything."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

import httpx

from remit_broker.core import nkey
from remit_broker.testing import Lab
from tests.support.issuers import b64

EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
ACCESS = "urn:ietf:params:oauth:token-type:access_token"
JWT = "urn:ietf:params:oauth:token-type:jwt"


def assertion(
    lab: Lab, agent: str, *, key: str | None = None, header: dict[str, Any] | None = None, **claims: Any
) -> str:
    """What ``agent`` proves itself with; ``key`` names another agent whose seed signs it, ``None`` claims are left out."""
    now = int(time.time())
    said = {
        "iss": agent, "sub": agent, "aud": f"{lab.broker.http}/oauth/token", "iat": now, "exp": now + 60,
        "jti": secrets.token_hex(16), **claims,
    }  # fmt: skip
    said = {name: value for name, value in said.items() if value is not None}
    seed = lab.seeds[key or agent]
    signing = f"{b64({'alg': 'EdDSA', **(header or {})})}.{b64(said)}"
    return f"{signing}.{b64(nkey.sign('U', seed, signing.encode()))}"


class OAuthClient:
    """``form`` fields that are None are left out."""

    def __init__(self, lab: Lab, http: httpx.AsyncClient) -> None:
        self.lab, self.http = lab, http

    async def post(self, path: str, as_: str | None = None, **form: str | None) -> httpx.Response:
        proof = {"client_assertion_type": ASSERTION, "client_assertion": assertion(self.lab, as_)} if as_ else {}
        data = {name: value for name, value in {**proof, **form}.items() if value is not None}
        return await self.http.post(path, data=data)

    async def exchange(self, subject: str, as_: str | None = None, **form: str | None) -> httpx.Response:
        return await self.post(
            "/oauth/token", as_,
            **{"grant_type": EXCHANGE, "subject_token": subject, "subject_token_type": ACCESS, **form},
        )  # fmt: skip

    async def grant(self, subject: str, as_: str | None = None, **form: str | None) -> str:
        """The token of an exchange that works."""
        response = await self.exchange(subject, as_, **form)
        assert response.status_code == 200, response.text
        token: str = response.json()["access_token"]
        return token

    async def active(self, token: str, as_: str) -> bool:
        response = await self.post("/oauth/introspect", as_, token=token)
        assert response.status_code == 200, response.text
        found: bool = response.json()["active"]
        return found


def claims_of(token: str) -> dict[str, Any]:
    """What a token claims; nothing is verified."""
    import base64

    part = token.split(".")[1]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return found


def error_of(response: httpx.Response) -> str:
    """The OAuth error, whatever happened: a proper body, never cached, never a traceback."""
    body = response.json()
    assert response.headers["cache-control"] == "no-store" and "Traceback" not in response.text
    assert body["error_description"] and body["remit"]["rule"], body
    return str(body["error"])
