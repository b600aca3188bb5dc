"""``/oauth/connect`` and ``/oauth/connected``: a user logs in at an MCP server, so that it is called as who they are there."""

from __future__ import annotations

import secrets
from html import escape
from typing import Final, Protocol
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import Response

from remit_broker.core.backends import Connecting
from remit_broker.edges.http.oauth import pages
from remit_broker.edges.http.oauth.forms import form_of

COOKIE: Final = "remit_connect"


class Ways(Protocol):
    """The logins at servers."""

    async def shown(self, id_: str) -> Connecting | None:
        """Whose login at which server ``id_`` begins."""

    async def leave(self, id_: str, browser: str) -> str | None:
        """Where the browser goes."""

    async def arrive(self, state: str, code: str, iss: str, browser: str) -> Connecting | None:
        """Back from there."""


class Connect:
    """The pages. ``base`` is the URL under which browsers reach this broker."""

    def __init__(self, base: str, ways: Ways) -> None:
        self._base, self._ways = base, ways

    async def ask(self, request: Request) -> Response:
        """``GET /oauth/connect``: whose account that will be."""
        id_ = request.query_params.get("id", "")
        at = await self._ways.shown(id_)
        if at is None:
            return _late()
        body = (
            f"<p>You log in at <code>{escape(at.at.resource)}</code>, the MCP server <b>{escape(at.server)}</b>. From then on it is "
            f'called with your account there, whenever it is called for <b>{escape(at.user)}</b>.</p><p class="warn">Go on only if you '
            f"are {escape(at.user)} and have just begun this yourself: otherwise somebody else gets the use of your account.</p>"
            f'<form method="post" action="/oauth/connect"><input type="hidden" name="id" value="{escape(id_)}">'
            "<button>Go on</button></form>"
        )
        parts = at.at.authorize.split("/")
        return pages.page("Connect an account?", body, form_to="/".join(parts[:3]))

    async def go(self, request: Request) -> Response:
        """``POST /oauth/connect``."""
        form = await form_of(request)
        kept = secrets.token_urlsafe(32)
        to = await self._ways.leave(form.get("id", ""), kept)
        if to is None:
            return _late()
        response = pages.back(to)
        response.set_cookie(
            COOKIE,
            kept,
            max_age=600,
            path="/oauth",
            httponly=True,
            samesite="lax",
            secure=self._base.startswith("https://"),
        )
        return response

    async def done(self, request: Request) -> Response:
        """``GET /oauth/connected``: back from the server's login."""
        query = {name: values[0] for name, values in parse_qs(request.url.query, max_num_fields=32).items()}
        browser = request.cookies.get(COOKIE, "")
        at = await self._ways.arrive(query.get("state", ""), query.get("code", ""), query.get("iss", ""), browser)
        if at is None:
            return _late()
        return pages.page(
            "Connected", f"<p><b>{escape(at.server)}</b> is called with your account there from now on.</p>"
        )


def _late() -> Response:
    return pages.failed(
        "That cannot go on",
        "It was not begun in this browser, has ended, or took too long",
        "Begin again: remit secrets connect",
    )
