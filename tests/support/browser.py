"""A person's browser on the way through a login: cookies, redirections, and the forms of the provider and of the consent page."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx

SECONDS = 60.0
BACK = "http://127.0.0.1:7777/back"


class Pkce:
    """A verifier and its challenge."""

    def __init__(self) -> None:
        self.verifier = secrets.token_urlsafe(48)
        self.challenge = base64.urlsafe_b64encode(hashlib.sha256(self.verifier.encode()).digest()).rstrip(b"=").decode()


class Browser:
    """One person with one set of cookies. ``home`` is where the broker's edge is."""

    def __init__(self, home: str, user: str = "ann") -> None:
        self.home, self.user = home, user
        self.http = httpx.Client(trust_env=False, timeout=SECONDS)
        self.page: httpx.Response | None = None

    def close(self) -> None:
        self.http.close()

    def authorize(self, client: str, pkce: Pkce, **changes: str | None) -> httpx.Response:
        """The first request; whatever is None is left out."""
        query = {
            "response_type": "code", "client_id": client, "redirect_uri": BACK, "state": "s-1",
            "code_challenge": pkce.challenge, "code_challenge_method": "S256", "resource": f"{self.home}/mcp", **changes,
        }  # fmt: skip
        return self.http.get(f"{self.home}/oauth/authorize", params={k: v for k, v in query.items() if v is not None})

    def log_in(self, page: httpx.Response) -> httpx.Response:
        """Through the provider's forms, until the browser is back at the broker; the page there."""
        for _ in range(20):
            if page.is_redirect:
                to = urljoin(str(page.url), page.headers["location"])
                if not to.startswith("http://127.0.0.1") or to.startswith(BACK):
                    return page
                page = self.http.get(to)
                continue
            if urlsplit(str(page.url)).netloc == urlsplit(self.home).netloc:
                self.page = page
                return page
            assert page.status_code == 200, page.text
            form = re.search(r'<form[^>]*action="([^"]+)"', page.text)
            prompt = re.search(r'name="prompt" value="([^"]+)"', page.text)
            assert form and prompt, page.text
            fields = {"prompt": prompt[1], **({"login": self.user, "password": "any"} if prompt[1] == "login" else {})}
            page = self.http.post(urljoin(str(page.url), form[1]), data=fields)
        raise AssertionError("the login never ended")

    def decide(self, decision: str, page: httpx.Response | None = None, **headers: str) -> httpx.Response:
        """Press a button of the consent page."""
        shown = page or self.page
        assert shown is not None
        found = re.search(r'name="id" value="([^"]+)"', shown.text)
        assert found, shown.text
        form = {"id": found[1], "decision": decision}
        return self.http.post(f"{self.home}/oauth/consent", data=form, headers={"Origin": self.home, **headers})

    def code(self, client: str, pkce: Pkce, **changes: str | None) -> str:
        """All the way to a code."""
        self.log_in(self.authorize(client, pkce, **changes))
        return returned(self.decide("allow"))["code"]


def returned(response: httpx.Response) -> dict[str, str]:
    """What the browser brings back to the client."""
    assert response.status_code == 303, (response.status_code, response.text)
    return {name: values[0] for name, values in parse_qs(urlsplit(response.headers["location"]).query).items()}


def registered(home: str, **changes: Any) -> str:
    """The id of a client that registered itself."""
    body = {"client_name": "Editor", "redirect_uris": [BACK], "token_endpoint_auth_method": "none", **changes}
    response = httpx.post(f"{home}/oauth/register", json=body, trust_env=False)
    assert response.status_code == 201, response.text
    found: str = response.json()["client_id"]
    return found


def tokens(home: str, client: str, code: str, pkce: Pkce, **changes: str) -> httpx.Response:
    """The exchange of a code."""
    form = {"grant_type": "authorization_code", "code": code, "client_id": client, "redirect_uri": BACK,
            "code_verifier": pkce.verifier, **changes}  # fmt: skip
    return httpx.post(f"{home}/oauth/token", data=form, trust_env=False)


def refreshed(home: str, client: str, token: str, **changes: str) -> httpx.Response:
    """The next pair of tokens."""
    form = {"grant_type": "refresh_token", "refresh_token": token, "client_id": client, **changes}
    return httpx.post(f"{home}/oauth/token", data=form, trust_env=False)
