"""The auth callout: the NATS server asks who a connection is; the answer is exactly the subjects of that one principal.

The server only passes on what the client claims. The proof, a signature over the nonce of this very connection, is checked
here. Whatever goes wrong in any step is a refusal: of this connection, never of the service.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from remit_broker.core import callout_probe, nats_jwt, nkey
from remit_broker.core.bus_permissions import BUS_ACCOUNT, CALLOUT_QUEUE, CALLOUT_SUBJECT, account_of, permissions
from remit_broker.core.nats_jwt import ConnectRequest, JwtError, b64_any
from remit_broker.core.registry import Principal
from remit_schemas.names import is_connection, is_principal

if TYPE_CHECKING:  # the callout may run as a process of its own, without the pipeline's machinery
    from remit_broker.ports import Clock

USER_SECONDS: Final = 24 * 3600
"""Life of a connection's permissions where nothing else is said; the server then closes it, and the client connects anew."""

BACKLOG: Final = 512
"""Connections that may wait to be judged. More are dropped, and the server refuses them when its own time is up."""

_XKEY_HEADER: Final = "Nats-Server-Xkey"


class Principals(Protocol):
    """Who may connect, by proof."""

    def by_nkey(self, public: str) -> Principal | None:
        """The agent or server with this public user nkey, unless it is revoked or unknown. From memory: it must not wait."""


class RevokedInTenant(Protocol):
    """What an operator has revoked of one tenant."""

    def tenant(self, name: str) -> object | None:
        """Something where the tenant ``name`` is revoked. From memory: it must not wait."""

    def agent(self, name: str) -> object | None:
        """Something where ``name`` is revoked. From memory: it must not wait."""


class RevokedAgents(Protocol):
    """Which agents and tenants an operator has revoked."""

    @property
    def fresh(self) -> bool:
        """Whether everything that was revoked until two seconds ago is known."""

    def of(self, tenant: str) -> RevokedInTenant:
        """What is revoked of one tenant."""


class Room(Protocol):
    """How many connections each principal has."""

    def take(self, name: str, tenant: str) -> str:
        """Let one more connection of ``name`` in: empty, or why not. From memory: it must not wait."""


class Admitted:
    """Principals, without those that an operator revoked or that have all the connections they may have."""

    def __init__(self, principals: Principals, revoked: RevokedAgents, room: Room) -> None:
        self._principals, self._revoked, self._room = principals, revoked, room

    def by_nkey(self, public: str) -> Principal | None:
        """The principal, by proof. Raises :class:`Refused` where it or its tenant is revoked, or there is no room."""
        # INVARIANT: who cannot hear of revocations lets nobody in (test_a_callout_that_cannot_hear_lets_nobody_in).
        if not self._revoked.fresh:
            raise Refused("this callout has not heard for two seconds whether anybody was revoked")
        principal = self._principals.by_nkey(public)
        if principal is None:
            return None
        revoked = self._revoked.of(principal.tenant)
        # INVARIANT: a revoked agent does not come back (test_a_revoked_agents_connection_is_cut_and_it_cannot_come_back).
        if revoked.agent(principal.name) is not None:
            raise Refused(f"{principal.name} is revoked")
        if revoked.tenant(principal.tenant) is not None:
            raise Refused(f"the tenant {principal.tenant} of {principal.name} is revoked")
        if why := self._room.take(principal.name, principal.tenant):
            raise Refused(why)
        return principal


class CalloutKeys(msgspec.Struct, frozen=True, kw_only=True):
    """Seeds of the account key that signs answers and of the curve key that requests are sealed for."""

    issuer: str
    xkey: str

    def __repr__(self) -> str:
        return "CalloutKeys(…)"


class Refused(Exception):  # noqa: N818 - an answer, not a fault
    """This connection is refused; the text goes to the operator's log only."""


Told = Callable[[str, str], None]
"""Called after each answer with the principal's name (or the claimed nkey) and ``""`` or the reason of the refusal."""


def _tell_nobody(_: str, __: str) -> None:
    return None


def prove(request: ConnectRequest) -> None:
    """Raises :class:`Refused` unless the key that a connection names signed this connection's nonce."""
    if not request.nkey or not request.signature:
        raise Refused("no nkey: agents prove themselves with one")
    if not request.nonce:
        # Without a nonce a recorded signature would do.
        raise Refused("the server sent no nonce")
    # INVARIANT: the server passes nkey and signature on unchecked; only this line makes them true
    # (test_a_signature_by_another_registered_key_is_refused).
    if not nkey.verify("U", request.nkey, request.nonce.encode(), b64_any(request.signature)):
        raise Refused("the signature is not that key's over this connection's nonce")


def identify(request: ConnectRequest, principals: Principals) -> Principal:
    """The principal that signed this connection's nonce. Raises :class:`Refused`."""
    prove(request)
    principal = principals.by_nkey(request.nkey)
    if principal is None or principal.nkey != request.nkey or not is_principal(principal.name):
        raise Refused("an unknown nkey")
    if not is_connection(request.name):
        raise Refused("the connection's name must be 16 to 64 letters and digits, drawn at random")
    return principal


class Callout:
    """Answers on the AUTH account's connection. :meth:`start`, :meth:`stop`."""

    def __init__(
        self,
        nc: Client,
        keys: CalloutKeys,
        principals: Principals,
        clock: Clock,
        told: Told = _tell_nobody,
        seconds: float = USER_SECONDS,
    ) -> None:
        self._nc = nc
        self._keys = keys
        self._issuer = nkey.public_of("A", keys.issuer)
        self._probe = nkey.public_of("U", callout_probe.seed_of(keys.issuer))
        self._principals = principals
        self._clock, self._seconds = clock, seconds
        self.told = told
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Begin to answer; several processes share the work by queue group."""
        # One at a time by the client library: an answer takes a fraction of a millisecond and waits for nothing, so more
        # at once would only hide an overload that the bounded backlog refuses.
        self._subscription = await self._nc.subscribe(
            CALLOUT_SUBJECT, CALLOUT_QUEUE, cb=self._on_request, pending_msgs_limit=BACKLOG
        )
        # Twice: nats-py writes its PING past what is still buffered, so the first answer does not say that the server
        # knows the subscription; by the second, the buffer had gone out before the PING.
        await self._nc.flush()
        await self._nc.flush()

    async def stop(self) -> None:
        """Stop answering: from now on nobody new gets in."""
        if self._subscription is not None and not self._nc.is_closed:
            await self._subscription.unsubscribe()
        self._subscription = None

    async def _on_request(self, message: Msg) -> None:
        try:
            answer = self.answer(message.data, (message.headers or {}).get(_XKEY_HEADER, ""))
            if answer is not None and message.reply:
                await message.respond(answer)
        except Exception as error:
            # Unanswered is refused: the server gives up after its own time.
            self.told("", f"no answer could be sent: {type(error).__name__}")

    def answer(self, data: bytes, sender: str) -> bytes | None:
        """The sealed answer to one request; None where the request is not even a genuine server's, which is left to time out."""
        try:
            # INVARIANT: requests come sealed, so a server whose configuration lost the curve key gets no answer
            # (test_a_request_that_is_not_sealed_gets_no_answer).
            opened = nkey.open_sealed(self._keys.xkey, sender, data)
            request = nats_jwt.connect_request(opened.decode(), self._clock.now())
            if request.server_xkey and request.server_xkey != sender:
                raise JwtError("sealed by another server than the one that signed")
        except Exception as error:
            self.told("", f"not a request of a NATS server: {error}")
            return None
        who, verdict = request.nkey, {"error": "authorization refused"}
        try:
            if request.nkey == self._probe:
                who, verdict = callout_probe.NAME, {"jwt": self._nobody(request)}
            else:
                principal = identify(request, self._principals)
                who, verdict = principal.name, {"jwt": self._user(principal, request)}
            reason = ""
        except Exception as error:
            reason = str(error) if isinstance(error, Refused | JwtError) else f"fault: {type(error).__name__}"
        self.told(who, reason)
        return self._response(request, verdict, sender)

    def _user(self, principal: Principal, request: ConnectRequest) -> str:
        """The NATS user of this connection, in the account of its tenant.

        INVARIANT: the account is that of the tenant in which the key was registered, whatever the client asks for
        (test_nothing_that_one_tenant_says_is_heard_by_another).
        """
        may = permissions(principal, request.name)
        return self._signed(request, account_of(principal.tenant), principal.name, may, self._seconds)

    def _nobody(self, request: ConnectRequest) -> str:
        """The NATS user of somebody who only looks whether this callout works."""
        prove(request)
        return self._signed(request, BUS_ACCOUNT, callout_probe.NAME, callout_probe.PERMISSIONS, callout_probe.SECONDS)

    def _signed(self, request: ConnectRequest, account: str, name: str, may: dict[str, Any], seconds: float) -> str:
        now = self._clock.now()
        claims: dict[str, Any] = {
            "sub": request.user,
            "aud": account,
            "name": name,
            "exp": int(now + seconds),
            "nats": {**may, "type": "user", "version": 2},
        }
        return nats_jwt.encode(claims, "A", self._keys.issuer, now)

    def _response(self, request: ConnectRequest, verdict: dict[str, str], sender: str) -> bytes:
        claims = {
            "sub": request.user,
            "aud": request.server,
            "nats": {**verdict, "type": "authorization_response", "version": 2},
        }
        token = nats_jwt.encode(claims, "A", self._keys.issuer, self._clock.now())
        return nkey.seal(self._keys.xkey, sender, token.encode(), secrets.token_bytes(nkey.NONCE_BYTES))
