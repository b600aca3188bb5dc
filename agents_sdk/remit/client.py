"""The NATS client of one principal: one connection, one private inbox, and no request that hangs.

A connection ends now and then (a restart of the server, permissions that run out after a day). The NATS library would give up
for good on some of these ends and would send late what it had kept meanwhile, so its own reconnecting is off: every end is
answered in one way, by a new connection under the same name, and what cannot be sent is refused, not kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import string
import time
from collections.abc import Awaitable, Callable
from typing import Final

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from remit.answers import Answer, Answers
from remit.credentials import Credentials
from remit.errors import Refused, refused
from remit.link import OnMessage
from remit.overlap import Renewing
from remit_schemas.envelope import MAX_ENVELOPE, Request, encode
from remit_schemas.errors import Code
from remit_schemas.pongs import Hearing
from remit_schemas.subjects import inbox_prefix

log: Final = logging.getLogger("remit")

CONNECT_SECONDS: Final = 10.0
_REDIAL: Final = (0.05, 5.0)
"""First and last pause, in seconds, between attempts to connect again."""

_AGAIN: Final = 0.1
"""Seconds until what nobody heard is said again."""

_ALPHABET: Final = string.ascii_letters + string.digits
_VIOLATION: Final = re.compile(
    r'permissions violation for (publish|subscription)(?: with reply of)? (?:to )?"([^"]+)"', re.I
)


def connection_name() -> str:
    """A new random name of a connection: it alone tells its inbox from another of the same principal."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(22))


class Connection(Hearing, Client):
    """The library's client, which goes on hearing after a flush that was given up."""


class BusClient:
    """Implements :class:`~remit.link.Link`. Use it from one event loop: :meth:`connect`, …, :meth:`close`."""

    def __init__(self, credentials: Credentials | None, name: str, bus: str) -> None:
        """``credentials`` of None connects without proof, which only a bus without accounts accepts."""
        self.name: Final = name
        self.connection: Final = connection_name()
        self.on_reconnect: Callable[[], None] = lambda: None
        self._bus = bus
        self._seed = credentials.nkey_seed if credentials else None
        self._lives = credentials.connection_seconds if credentials else None
        self._renewal = Renewing(self._on_inbox)
        self._renewing: asyncio.Task[None] | None = None
        self._dialling = asyncio.Lock()
        self._answers = Answers(inbox_prefix(name, self.connection))
        self._on_control: OnMessage = lambda _, __: None
        self._serving: dict[str, tuple[str, OnMessage]] = {}
        self._subscriptions: list[Subscription] = []
        self._forbidden: list[str] = []
        self._nc: Client | None = None
        self._gone: asyncio.Future[None] = asyncio.Future()
        self._up = asyncio.Event()
        self._leaving = False
        self._redialling: asyncio.Task[None] | None = None

    # Connecting

    async def connect(self, seconds: float = CONNECT_SECONDS) -> None:
        """Connect. Raises :class:`Refused`: TARGET_UNAVAILABLE, or UNAUTHENTICATED where the bus lets this key not in."""
        try:
            async with asyncio.timeout(seconds):
                await self._dial(seconds)
            if self._lives is not None and self._renewing is None:
                renewing = self._renewal.run(self._lives, self._current, self._renewed)
                self._renewing = asyncio.get_running_loop().create_task(renewing)
        except (TimeoutError, OSError, nats.errors.Error) as error:
            if isinstance(error, nats.errors.AuthorizationError) or "authorization violation" in str(error).lower():
                raise _stranger(self.name, self._bus) from None
            raise _unreachable(self._bus, error) from None

    async def close(self) -> None:
        """Send what is left and disconnect. Requests in flight end with CANCELLED."""
        self._leaving = True
        for task in (self._redialling, self._renewing):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        client, self._nc = self._nc, None
        # Whoever waits for the connection need not wait any longer.
        self._up.set()
        self._answers.fail_all(
            refused(
                Code.CANCELLED, "this client was closed", rule="client.closed", ask="connect again", effect="unknown"
            )
        )
        if client is not None and not client.is_closed:
            with contextlib.suppress(Exception):
                await client.flush(2)
            await client.close()

    async def _dial(self, seconds: float) -> None:
        client = Connection()
        refusals: list[Exception] = []

        async def on_error(error: Exception) -> None:
            refusals.append(error)
            self._on_error(error)

        async def on_closed() -> None:
            self._lost(client)

        try:
            await client.connect(
                self._bus.split(","),
                name=self.connection,
                inbox_prefix=inbox_prefix(self.name, self.connection),
                nkeys_seed_str=self._seed,
                allow_reconnect=False,
                # Each server once or twice and without pauses: ours are between the calls of this.
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=max(1, round(seconds)),
                error_cb=on_error,
                closed_cb=on_closed,
                ping_interval=10,
                max_outstanding_pings=2,
            )
            await client.subscribe(f"{inbox_prefix(self.name, self.connection)}.>", cb=self._renewal.hearing())
            self._subscriptions = [
                await client.subscribe(subject, queue=queue, cb=_handing(on_message))
                for subject, (queue, on_message) in self._serving.items()
            ]
            # The server's complaint about a subscription comes before its answer to this.
            await _settled(client)
        except nats.errors.NoServersError as error:
            await client.close()
            raise (refusals or [error])[-1] from None
        except BaseException:
            await client.close()
            raise
        self._nc = client
        self._gone = asyncio.get_running_loop().create_future()
        self._up.set()

    def _current(self) -> Callable[[], Awaitable[None]] | None:
        client, services = self._nc, self._subscriptions

        async def end() -> None:
            for subscription in services:
                await subscription.drain()  # type: ignore[no-untyped-call]
            if client is not None:
                await client.drain()

        return end if client is not None else None

    async def _renewed(self) -> bool:
        """INVARIANT: permissions that run out cost no reply and no call (test_permissions_that_run_out_cost_no_reply)."""
        try:
            async with self._dialling, asyncio.timeout(CONNECT_SECONDS):
                await self._dial(CONNECT_SECONDS)
        except (TimeoutError, OSError, nats.errors.Error) as error:
            log.warning("%s cannot renew its connection: %s", self.name, str(error) or type(error).__name__)
            return False
        return True

    def _lost(self, client: Client) -> None:
        if self._leaving or client is not self._nc:
            return
        self._up.clear()
        self._nc = None
        self._gone.set_result(None)
        log.warning("%s lost the bus at %s; connecting again", self.name, self._bus)
        self._redialling = asyncio.get_running_loop().create_task(self._redial())

    async def _redial(self) -> None:
        pause, longest = _REDIAL
        while True:
            # Not all at the same moment, when many agents lost one server.
            await asyncio.sleep(pause * (0.5 + secrets.randbelow(1000) / 1000))
            pause = min(pause * 2, longest)
            try:
                # Perhaps the old one broke while another was made in good time.
                async with self._dialling, asyncio.timeout(CONNECT_SECONDS):
                    if self._nc is None:
                        await self._dial(CONNECT_SECONDS)
            except (TimeoutError, OSError, nats.errors.Error) as error:
                log.warning("%s cannot connect to %s: %s", self.name, self._bus, str(error) or type(error).__name__)
                continue
            log.info("%s is connected again", self.name)
            self.on_reconnect()
            return

    async def _ready(self, seconds: float) -> Client | None:
        if not self._up.is_set() and seconds > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._up.wait()
        return self._nc

    # Asking and telling

    async def ask(self, subject: str, request: Request) -> Answer:
        """See :class:`~remit.link.Link`."""
        if request.deadline is None:
            raise ValueError("a request without a deadline could hang")
        data = encode(request)
        self._fits(len(data))
        client = await self._ready(request.deadline / 1000 - time.time())
        if client is None:
            raise _unreachable(self._bus, None)
        answer = self._answers.open(subject, request.deadline / 1000 - time.time())
        try:
            await client.publish(subject, data, reply=answer.reply)
        except nats.errors.Error as error:
            answer.close()
            raise _unreachable(self._bus, error) from None
        except BaseException:
            answer.close()
            raise
        return answer

    async def tell(self, subject: str, data: bytes, seconds: float = 0) -> bool:
        """See :class:`~remit.link.Link`."""
        self._fits(len(data))
        until = asyncio.get_running_loop().time() + seconds
        while (client := await self._ready(until - asyncio.get_running_loop().time())) is not None:
            try:
                if not seconds:
                    await client.publish(subject, data)
                    return True
                if await self._heard(client, subject, data):
                    return True
            except nats.errors.Error as error:
                # Nothing was sent; perhaps the connection comes back.
                log.debug("%s could not publish: %s", self.name, error)
            if asyncio.get_running_loop().time() >= until:
                break
            await asyncio.sleep(_AGAIN)
        return False

    async def _heard(self, client: Client, subject: str, data: bytes) -> bool:
        """Publish, and find out whether anybody listened: the server says so (status 503) before it answers a ping."""
        answer = self._answers.open(subject, CONNECT_SECONDS)
        try:
            await client.publish(subject, data, reply=answer.reply)
            flushed = asyncio.ensure_future(_settled(client))
            try:
                await asyncio.wait({flushed, self._gone}, return_when=asyncio.FIRST_COMPLETED)
                # Where the connection broke nobody knows whether it came through. Said again it does no harm: the hop ends with
                # the first final frame that the broker hears.
                return flushed.done() and not flushed.cancelled() and flushed.exception() is None and not answer.failed
            finally:
                flushed.cancel()
        finally:
            answer.close()

    def _fits(self, size: int) -> None:
        # The server would close the connection of whoever sends more.
        limit = MAX_ENVELOPE if self._nc is None else min(MAX_ENVELOPE, self._nc.max_payload)
        if size > limit:
            raise refused(
                Code.TOO_LARGE, f"the message has {size} bytes, at most {limit} fit", rule="client.size",
                ask="send less, or a reference instead of the content",
            )  # fmt: skip

    # Listening

    async def serve(self, subject: str, on_message: OnMessage, on_control: OnMessage) -> None:
        """Listen to ``subject`` in the queue group of one's own name, and to what the broker sends for hops in hand.

        Raises :class:`Refused` where the bus does not permit it.
        """
        self._on_control = on_control
        self._serving[subject] = (self.name, on_message)
        client = await self._ready(0)
        if client is None:
            return
        self._subscriptions.append(await client.subscribe(subject, queue=self.name, cb=_handing(on_message)))
        await _settled(client)
        if subject.lower() in self._forbidden:
            raise refused(
                Code.OUT_OF_SCOPE, f"the bus does not let {self.name} listen to {subject}", rule="bus.permissions",
                ask=f"use the credentials of {self.name}",
            )  # fmt: skip

    async def serve_no_more(self) -> None:
        """Take no new messages; those that have arrived are still handed over."""
        self._serving.clear()
        for subscription in self._subscriptions:
            with contextlib.suppress(nats.errors.Error):
                await subscription.drain()  # type: ignore[no-untyped-call]
        self._subscriptions.clear()

    async def _on_inbox(self, message: Msg) -> None:
        last = message.subject.rsplit(".", 1)[-1]
        # A reply is <inbox>.<random>, control is <inbox>.ctl.<txn>.<hop>.
        if message.subject == f"{self._answers.prefix}.{last}":
            nobody = not message.data and (message.headers or {}).get("Status") == "503"
            self._answers.hear(last, None if nobody else message.data)
        elif message.subject.startswith(f"{self._answers.prefix}.ctl."):
            self._on_control(message.subject, message.data)

    def _on_error(self, error: Exception) -> None:
        found = _VIOLATION.search(str(error))
        if found is None:
            log.warning("%s: %s", self.name, error)
            return
        what, subject = found[1].lower(), found[2].lower()
        if what == "subscription":
            self._forbidden.append(subject)
            del self._forbidden[:-32]
            log.error("the bus does not let %s listen to %s", self.name, subject)
        # INVARIANT: a publish that the bus forbids fails at once (test_a_permission_violation_reaches_the_request).
        elif not self._answers.forbid(subject):
            log.error("the bus does not let %s publish on %s", self.name, subject)


async def _settled(client: Client) -> None:
    """Return when the server has dealt with everything that was sent before.

    The library's flush writes its ping past what it still holds back, so that the answer to the first one proves nothing yet
    but that the rest was written; the second one is behind it.
    """
    await client.flush(round(CONNECT_SECONDS))
    await client.flush(round(CONNECT_SECONDS))


def _handing(on_message: OnMessage) -> Callable[[Msg], Awaitable[None]]:
    async def hand(message: Msg) -> None:
        on_message(message.subject, message.data)

    return hand


def _unreachable(bus: str, error: Exception | None) -> Refused:
    why = "" if error is None else f" ({str(error) or type(error).__name__})"
    return refused(
        Code.TARGET_UNAVAILABLE, f"the bus at {bus} cannot be reached{why}", rule="client.bus",
        ask="start the broker with remit up, or correct the address", retry_after=1.0,
    )  # fmt: skip


def _stranger(name: str, bus: str) -> Refused:
    return refused(
        Code.UNAUTHENTICATED, f"the bus at {bus} does not know the key of {name}", rule="client.credentials",
        ask=f"register it: remit agents add {name}; and use the credentials file that it writes",
    )  # fmt: skip
