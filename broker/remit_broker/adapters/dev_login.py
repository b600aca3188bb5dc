"""Logging in at the development issuer, as at any OpenID provider: a code for this broker and for nobody else.

Whoever logs in shows the content of ``keys/local.token``, as everybody does who wants a token here: a page that any program on
the machine could press a button of would be a way around that file.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from typing import Final

import msgspec

from remit_broker.ports import Clock
from remit_schemas.errors import Code, Refusal, refusal

CODE_LIFE: Final = 60.0
"""Seconds within which a code is exchanged."""
MAX_CODES: Final = 100
"""Codes that wait at once; of more, the oldest are of no use any more."""
_LONGEST: Final = 512


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What the broker asks for when it sends a browser here (OIDC Core §3.1.2.1, RFC 7636)."""

    state: str
    nonce: str
    challenge: str


class _Given(msgspec.Struct, frozen=True, kw_only=True):
    user: str
    wanted: Wanted
    until: float


class DevLogin:
    """The codes of the one client, ``client``, that is sent back to ``back``. In memory: the edge is one process."""

    def __init__(self, client: str, back: str, secret: str, clock: Clock) -> None:
        self.client, self.back, self._clock = client, back, clock
        self._key = hmac.digest(secret.encode(), b"remit development login", "sha256")
        self._codes: dict[str, _Given] = {}

    def wanted(self, query: Mapping[str, str]) -> Wanted:
        """What a browser was sent here with. Refuses MALFORMED; nobody is sent anywhere then."""
        # INVARIANT: a code goes to this broker's own callback alone (test_a_browser_is_sent_back_to_this_broker_alone).
        for name, must in (
            ("response_type", "code"), ("client_id", self.client), ("redirect_uri", self.back),
            ("code_challenge_method", "S256"),
        ):  # fmt: skip
            if query.get(name) != must:
                raise _no(f"{name} is not {must}")
        found = [query.get(name, "") for name in ("state", "nonce", "code_challenge")]
        if not all(found) or any(len(one) > _LONGEST or not one.isascii() for one in found):
            raise _no("state, nonce or code_challenge is missing, or too long")
        return Wanted(state=found[0], nonce=found[1], challenge=found[2])

    def ticket(self, wanted: Wanted, browser: str) -> str:
        """What the form of this very request has in this very browser, and no other page can know."""
        return hmac.digest(self._key, msgspec.json.encode((wanted, browser)), "sha256").hex()

    def pressed(self, wanted: Wanted, browser: str, ticket: str) -> None:
        """Refuses UNAUTHENTICATED for a form that was not shown to this browser.

        INVARIANT: nobody else's page logs a browser in (test_a_form_of_another_page_or_browser_logs_nobody_in).
        """
        if not browser or not hmac.compare_digest(self.ticket(wanted, browser).encode(), ticket.encode()):
            raise refusal(
                Code.UNAUTHENTICATED, "this form was not shown to this browser", rule="development.form",
                ask="begin again where you wanted to log in",
            )  # fmt: skip

    def code(self, wanted: Wanted, user: str) -> str:
        """A code for a user who has shown the secret."""
        while len(self._codes) >= MAX_CODES:
            del self._codes[next(iter(self._codes))]
        code = secrets.token_urlsafe(32)
        self._codes[code] = _Given(user=user, wanted=wanted, until=self._clock.now() + CODE_LIFE)
        return code

    def redeemed(self, form: Mapping[str, str]) -> tuple[str, str]:
        """The user and the nonce of a code (RFC 6749 §4.1.3, RFC 7636 §4.6). Refuses UNAUTHENTICATED."""
        # INVARIANT: a code counts once, whoever tries it (test_a_code_of_the_development_issuer_counts_once).
        given = self._codes.pop(form.get("code", ""), None)
        drawn = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(drawn).rstrip(b"=").decode()
        good = (
            given is not None
            and self._clock.now() < given.until
            and form.get("client_id") == self.client
            and form.get("redirect_uri") == self.back
            and hmac.compare_digest(challenge, given.wanted.challenge)
        )
        if given is None or not good:
            raise refusal(
                Code.UNAUTHENTICATED, "that code is of no use", rule="development.code", ask="log in again",
            )  # fmt: skip
        return given.user, given.wanted.nonce


def _no(why: str) -> Refusal:
    return refusal(
        Code.MALFORMED, f"nobody can log in with this request: {why}", rule="development.login",
        ask="begin at /oauth/authorize of the broker, which sends a browser here",
    )  # fmt: skip
