"""What an MCP server is shown of the user it is called for: asked anew for each call, since by then all may be another way."""

from __future__ import annotations

import secrets
from base64 import b64encode
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlencode

import httpx

from remit_broker.adapters.outbound import Forbidden, Outbound
from remit_broker.adapters.private_files import read_private
from remit_broker.adapters.secret_store import SecretStore
from remit_broker.adapters.upstream import Connections
from remit_broker.core.addresses import network
from remit_broker.core.backends import SERVICE, BackendConfig, asserted, headers_of, is_secret, shown_of
from remit_broker.core.oauth import EXCHANGE, JWT
from remit_broker.ports import Clock
from remit_schemas.canonical import loads
from remit_schemas.errors import Code, Refusal, refusal

BEARER: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
"""The grant type of RFC 7523, section 2.1, which an identity assertion is used with."""
EARLY: Final = 10.0
"""Seconds before its end from which a token is not used any more."""
KNOWN: Final = 4096
"""Tokens that are remembered at once."""


class Wanted(NamedTuple):
    """For which call: whose, at which server, under which grant."""

    tenant: str
    user: str
    server: str
    txn: str
    grant: str


class Backends:
    """``tables`` are ``[backends]``, ``folder`` is that of the configuration."""

    def __init__(self, tables: Mapping[str, BackendConfig], secrets: SecretStore, clock: Clock, folder: Path) -> None:
        self._tables, self._secrets, self._clock, self._folder = tables, secrets, clock, folder
        self.vouch: Callable[[dict[str, Any]], str] | None = None
        """Signs an identity assertion."""
        self.issuer = ""
        self.connections: Connections | None = None
        """Logins of users at servers, where there is an HTTP edge to come back to."""
        # The operator names these endpoints, and may well have them in a network of their own.
        self._outbound = Outbound((network("0.0.0.0/0"), network("::/0")), named="backends")
        self._tokens: OrderedDict[tuple[str, ...], tuple[float, str]] = OrderedDict()

    def kind(self, server: str) -> str:
        """What a server is shown: by default the grant, which is in every dispatch already."""
        return self._tables[server].kind if server in self._tables else "grant"

    def variable(self, server: str) -> str:
        """The variable that a server finds its credential in; empty where it is sent one in a header."""
        return self._tables[server].variable if server in self._tables else ""

    async def listing(self, tenant: str, server: str) -> dict[str, str]:
        """The headers with which a server is asked what it serves: its service account, if one was set."""
        found = await self._secrets.get(tenant, server, SERVICE) if not self.variable(server) else None
        return headers_of(self._tables.get(server, BackendConfig()), found.value) if found is not None else {}

    async def headers(self, at: tuple[str, str, str, str], grant: str) -> dict[str, str]:
        """As :meth:`credentials_for`, for a tenant, user, server and txn."""
        return await self.credentials_for(Wanted(*at, grant))

    async def credentials_for(self, wanted: Wanted) -> dict[str, str]:
        """The headers of the request. Refuses TARGET_UNAVAILABLE by ``credentials.…`` where there are none, with what to do.

        INVARIANT: a server is called with nobody's credential but the user's, or the service's where that is named
        (test_each_user_calls_with_their_own_secret).
        """
        table = self._tables.get(wanted.server, BackendConfig())
        match table.kind:
            case "none":
                return {}
            case "secret":
                return shown_of(table, await self._kept(wanted, wanted.user))
            case "service":
                return shown_of(table, await self._kept(wanted, SERVICE))
            case "oauth":
                return shown_of(table, await self._connected().access(wanted.tenant, wanted.user, wanted.server))
            case "exchange" | "assertion":
                return shown_of(table, await self._exchanged(wanted, table))
            case _:
                return headers_of(table, wanted.grant)

    async def connect(self, tenant: str, user: str, server: str) -> str:
        """Where a user begins to log in at a server. Refuses."""
        table = self._tables.get(server)
        if table is None or table.kind != "oauth":
            raise refusal(
                Code.UNKNOWN_TARGET, f"nobody logs in at {server}", rule="credentials.kind",
                ask=f'an operator can say kind = "oauth" and its url in [backends.{server}]',
            )  # fmt: skip
        return await self._connected().begin(tenant, user, server, table)

    def _connected(self) -> Connections:
        if self.connections is None:
            raise RuntimeError("not wired")
        return self.connections

    async def _kept(self, wanted: Wanted, user: str) -> str:
        found = await self._secrets.get(wanted.tenant, wanted.server, user)
        if found is None:
            whose = f"--user {user}" if user else "--service"
            raise _none(
                wanted,
                "there is no secret for it",
                f"set it, then call again: remit secrets set {wanted.server} {whose}",
            )
        return found.value

    async def _exchanged(self, wanted: Wanted, table: BackendConfig) -> str:
        """A token of the server's own authorization server, for this user and task."""
        key, now = (wanted.tenant, wanted.txn, wanted.user, wanted.server), self._clock.now()
        until, known = self._tokens.get(key, (0.0, ""))
        if until > now:
            return known
        answer = await self._asked(wanted, table)
        token, lives = answer.get("access_token"), answer.get("expires_in", 60)
        bearer = str(answer.get("token_type", "")).lower() in ("bearer", "n_a")
        if not isinstance(token, str) or not is_secret(token) or not bearer or type(lives) not in (int, float):
            raise _none(wanted, "its authorization server gave no bearer token", "tell an operator")
        self._tokens[key] = (now + max(0.0, min(float(lives), 3600.0) - EARLY), token)
        self._tokens.move_to_end(key)
        if len(self._tokens) > KNOWN:
            self._tokens.popitem(last=False)
        return token

    def _assertion(self, wanted: Wanted, table: BackendConfig) -> dict[str, str]:
        if self.vouch is None:
            raise RuntimeError("not wired")
        claims = asserted(table, self.issuer, wanted.user, secrets.token_hex(16), int(self._clock.now()))
        form = {"grant_type": BEARER, "assertion": self.vouch(claims)}
        return form | ({"scope": table.scope} if table.scope else {})

    async def _asked(self, wanted: Wanted, table: BackendConfig) -> dict[str, Any]:
        # INVARIANT: what a user or a client brought is passed on to nobody: the subject is the grant of this very hop, or what we
        # ourselves assert
        # (test_a_token_is_exchanged_for_each_user_and_the_grant_is_its_subject).
        form = self._assertion(wanted, table) if table.kind == "assertion" else _subject(wanted, table)
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        if table.secret_file:
            secret = read_private(self._folder / table.secret_file).decode().strip()
            pair = f"{quote(table.client_id, safe='')}:{quote(secret, safe='')}"
            headers["Authorization"] = "Basic " + b64encode(pair.encode()).decode()
        elif table.client_id:
            form["client_id"] = table.client_id
        try:
            answer = await self._outbound.send("POST", table.token_endpoint, headers, urlencode(form).encode())
            found = loads(answer.body, max_bytes=64 * 1024)
        except (Forbidden, OSError, TimeoutError, httpx.HTTPError, ValueError, Refusal) as error:
            raise _none(
                wanted, f"its authorization server cannot be asked ({type(error).__name__})", "call again shortly"
            ) from None
        if answer.status != 200 or not isinstance(found, dict):
            # Its own words are not passed on: they may quote what it got.
            why = f"its authorization server refuses the {table.kind} with status {answer.status}"
            raise _none(wanted, why, "tell an operator; the server may not know this user")
        return found


def _subject(wanted: Wanted, table: BackendConfig) -> dict[str, str]:
    form = {"grant_type": EXCHANGE, "subject_token": wanted.grant, "subject_token_type": JWT}
    return form | {name: said for name in ("audience", "resource", "scope") if (said := getattr(table, name))}


def _none(wanted: Wanted, why: str, ask: str) -> Refusal:
    return refusal(
        Code.TARGET_UNAVAILABLE, f"{wanted.server} cannot be called for {wanted.user}: {why}", rule="credentials.missing", ask=ask
    )  # fmt: skip
