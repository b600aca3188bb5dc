"""The few pages a browser sees: no script, nothing from elsewhere, in nobody's frame."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Awaitable, Callable
from html import escape
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from remit_broker.core.login import Consenting
from remit_broker.core.oauth import OAuthError
from remit_schemas.errors import SURFACES, Refusal

STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:34em;margin:3em auto;padding:0 1em;color:#222}"
    "h1{font-size:1.3em}code{background:#eee;padding:.1em .3em;overflow-wrap:anywhere}"
    "button{font:inherit;padding:.5em 1.2em;margin-right:.6em}.warn{border-left:.3em solid #c60;padding-left:.8em}"
    ".wrong{border-left:.3em solid #b00;padding-left:.8em}fieldset{border:1px solid #999;margin:0 0 1em;padding:.4em 1em .8em}"
    "label{display:block;margin:.5em 0}small{color:#666}input[type=password]{display:block;width:100%;box-sizing:border-box;"
    "font:inherit;padding:.4em;margin-top:.3em}"
    "@media(prefers-color-scheme:dark){body{background:#16181d;color:#ddd}code{background:#2a2e36}small{color:#aaa}"
    "button,input{background:#2a2e36;color:#ddd;border:1px solid #666}}"
)
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()


def _headers(form_to: str = "") -> dict[str, str]:
    # A browser holds the redirection after a form to form-action as well, so where it leads stands there.
    form = f"'self' {form_to}".strip() if form_to else "'none'"
    return {
        "Content-Security-Policy": (
            f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action {form}; frame-ancestors 'none'; base-uri 'none'"
        ),
        "X-Frame-Options": "DENY",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
    }


def page(title: str, body: str, status: int = 200, form_to: str = "") -> Response:
    """A page. ``body`` is HTML: whatever comes from outside was escaped before."""
    text = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style><h1>{escape(title)}</h1>{body}</html>'
    )
    return HTMLResponse(text, status, _headers(form_to))


def failed(title: str, why: str, ask: str, status: int = 400) -> Response:
    """What went wrong, where nobody can be sent back with it."""
    return page(title, f"<p>{escape(why)}.</p><p>{escape(ask)}.</p>", status)


def consent(id_: str, at: Consenting, resource: str) -> Response:
    """Who wants what, on whose behalf, and where the answer goes."""
    asked = at.asked
    goes, client = urlsplit(asked.redirect), asked.client
    where = "an application on this computer" if goes.scheme == "http" else goes.netloc or f"{goes.scheme}:"
    named = f"<b>{escape(client.name)}</b>, as it calls itself," if client.name else "A program without a name"
    document = client.id if client.id.startswith("https://") else ""
    known = f" It is described at <code>{escape(document)}</code>." if document else " Nobody has checked that name."
    scopes = "".join(f"<li><code>{escape(scope)}</code></li>" for scope in asked.scopes)
    origin = f"{goes.scheme}:" if goes.scheme not in ("http", "https") else f"{goes.scheme}://{goes.netloc}"
    body = (
        f"<p>{named} wants to use <code>{escape(resource)}</code> as <b>{escape(at.identity.user)}</b> "
        f"({escape(at.identity.issuer)}).{known}</p><p>It may then call, within what policy permits you:</p><ul>{scopes}</ul>"
        f'<p class="warn">You are sent back to {escape(where)}: <code>{escape(asked.redirect)}</code>. '
        "Allow this only if you have just begun it yourself.</p>"
        f'<form method="post" action="/oauth/consent"><input type="hidden" name="id" value="{escape(id_)}">'
        '<button name="decision" value="deny">Deny</button><button name="decision" value="allow">Allow</button></form>'
    )
    return page("Allow access?", body, form_to=origin)


def back(uri: str) -> Response:
    """To where a browser goes on."""
    return RedirectResponse(uri, 303, {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})


Handler = Callable[[Request], Awaitable[Response]]


def shown(handler: Handler, fault: Callable[[str, BaseException], None]) -> Handler:
    """``handler`` with every exception turned into a page: never a traceback."""

    async def wrapped(request: Request) -> Response:
        try:
            return await handler(request)
        except OAuthError as error:
            return failed("That cannot be done", error.body.message, error.body.ask, error.status)
        except Refusal as no:
            return failed("That cannot be done", no.body.message, no.body.ask, SURFACES[no.body.code].http)
        except Exception as error:
            fault("oauth", error)
            return failed("The broker failed", "Its log says why", "Try again", 500)

    return wrapped
