"""The login page of the development issuer: plainly no real login, and no easier to pass than the file it stands for."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from html import escape
from typing import Final, Protocol
from urllib.parse import urlencode, urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from remit_broker.core.issuers import DEV_PATH, DevUser
from remit_broker.edges.http.oauth import pages
from remit_broker.edges.http.oauth.forms import Fault, fields_of, form_of
from remit_schemas.errors import SURFACES, Refusal

COOKIE: Final = "remit_development"
AT: Final = f"{DEV_PATH}/authorize"
_LIFE: Final = 600
_FIELDS: Final = (
    "response_type", "client_id", "redirect_uri", "state", "nonce", "code_challenge", "code_challenge_method",
)  # fmt: skip
_BANNER: Final = (
    '<p class="warn"><b>For development only.</b> This is no real login: whoever can read <code>keys/local.token</code> in the data '
    "folder of this broker is whom they like. Real users log in at a real provider (<code>[[issuers]]</code>).</p>"
)


class Login(Protocol):
    """What stands behind the page."""

    @property
    def users(self) -> Mapping[str, DevUser]:
        """Who can be chosen."""

    def shown(self, query: Mapping[str, str], browser: str) -> str:
        """The ticket of the form for this request in this browser. Refuses."""

    def log_in(self, form: Mapping[str, str], browser: str) -> dict[str, str]:
        """What the browser brings back. Refuses."""

    @property
    def back(self) -> str:
        """Where to."""


def routes(login: Login, fault: Fault) -> list[Route]:
    """The page, and its button."""

    async def page(request: Request) -> Response:
        query = fields_of(request.url.query.encode("ascii", "replace"))
        browser = request.cookies.get(COOKIE) or secrets.token_urlsafe(32)
        response = _page(query, login.shown(query, browser), login)
        response.set_cookie(COOKIE, browser, max_age=_LIFE, path=AT, httponly=True, samesite="strict")
        return response

    async def pressed(request: Request) -> Response:
        form, browser = await form_of(request), request.cookies.get(COOKIE, "")
        try:
            return pages.back(f"{login.back}?{urlencode(login.log_in(form, browser))}")
        except Refusal as no:
            if no.body.rule not in ("development.secret", "development.user"):
                raise
            # Once more, in the same browser, with what was wrong.
            status = SURFACES[no.body.code].http
            return _page(
                form,
                login.shown(form, browser),
                login,
                f"{no.body.message.capitalize()}: {no.body.ask}",
                status,
            )

    return [
        Route(AT, pages.shown(page, fault), methods=["GET"]),
        Route(AT, pages.shown(pressed, fault), methods=["POST"]),
    ]


def _page(asked: Mapping[str, str], ticket: str, login: Login, wrong: str = "", status: int = 200) -> Response:
    hidden = {name: asked[name] for name in _FIELDS} | {"ticket": ticket}
    fields = "".join(f'<input type="hidden" name="{name}" value="{escape(said)}">' for name, said in hidden.items())
    known = "".join(
        f'<label><input type="radio" name="user" value="{escape(name)}" required'
        f"{' checked' if name == asked.get('user', next(iter(login.users))) else ''}> {escape(name)}{_is(user)}</label>"
        for name, user in login.users.items()
    )
    body = (
        f"{_BANNER}{f'<p class=wrong role=alert>{escape(wrong)}.</p>' if wrong else ''}"
        f'<form method="post" action="{AT}">{fields}<fieldset><legend>Log in as</legend>{known}</fieldset>'
        '<label>Content of <code>keys/local.token</code><input type="password" name="secret" autocomplete="off" required></label>'
        "<button>Log in</button></form>"
        if login.users
        else f"{_BANNER}<p>It has no users yet: add <code>[development.users.NAME]</code> to remit.toml and start the broker again.</p>"
    )
    to = urlsplit(login.back)
    return pages.page("Development login", body, status, form_to=f"{to.scheme}://{to.netloc}")


def _is(user: DevUser) -> str:
    said = ", ".join([*user.roles, *(f"group {one}" for one in user.groups)])
    return f" <small>{escape(said)}</small>" if said else ""
