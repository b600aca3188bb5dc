"""The worker's connection, kept for as long as the worker lives: made anew in good time, and again when it was closed for good."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from remit.overlap import End, Renewing
from remit_broker.edges.attach.credentials import Credentials
from remit_broker.edges.attach.wire import (
    BusError,
    Shown,
    connect,
    connection_name,
    credentials,
    register,
    tell_changed,
)
from remit_schemas.callee import control_subject
from remit_schemas.envelope import Frame, encode
from remit_schemas.errors import Code, Refusal, refusal
from remit_schemas.names import token

SECONDS: Final = 10.0
"""For the first connection, and for each answer of the broker."""

_AGAIN: Final = (0.1, 10.0)
"""First and last pause, in seconds, between new connections after one was closed for good."""

OnDispatch = Callable[[str, bytes], Awaitable[None]]
OnControl = Callable[[str, str, bytes], None]


class Link:
    """One principal's place on the bus. ``on_back`` is called after every interruption: a broker may have forgotten us."""

    def __init__(
        self,
        credentials: Credentials,
        bus: str,
        *,
        on_dispatch: OnDispatch,
        on_control: OnControl,
        on_back: Callable[[], None],
        on_error: Callable[[Exception], None],
    ) -> None:
        self.connection = connection_name()
        self._name = credentials.agent
        self._credentials = credentials
        self._bus = bus
        self._on_dispatch = on_dispatch
        self._on_control = on_control
        self._on_back = on_back
        self._on_error = on_error
        self._client: Client | None = None
        self._services: Subscription | None = None
        self._renewal = Renewing(self._control)
        self._dialling = asyncio.Lock()
        self._again: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._leaving = False

    async def up(self) -> None:
        """Connect, where that was not done yet. Raises :class:`BusError` or UNAUTHENTICATED."""
        if self._client is None:
            await self._connect()
            if self._credentials.lives is not None:
                renewing = self._renewal.run(self._credentials.lives, self._current, self._renewed)
                self._renewing = asyncio.create_task(renewing)

    async def register(self, args: dict[str, Any]) -> dict[str, Any]:
        """Tell the broker what is served; what it says to that. Raises its refusal, or TARGET_UNAVAILABLE."""
        return await register(self._connected(), self._name, args, SECONDS)

    async def credentials(self, grant: str) -> Shown:
        """With what the server is called for the user of a grant. Raises a refusal; nothing has happened then."""
        return await credentials(self._connected(), self._name, grant, SECONDS)

    def _connected(self) -> Client:
        if self._client is None or not self._client.is_connected:
            raise refusal(Code.TARGET_UNAVAILABLE, "the bus is away", rule="attach.bus", ask="wait until it is back")
        return self._client

    async def changed(self, uris: list[str]) -> None:
        """Tell the broker of resources that changed; what cannot be told is lost."""
        if self._client is not None and self._client.is_connected:
            with contextlib.suppress(Exception):
                await tell_changed(self._client, self._name, uris)

    async def publish(self, subject: str, frame: Frame) -> None:
        """Send a frame; one that cannot be sent is lost, and its hop ends at its deadline."""
        if self._client is not None:
            with contextlib.suppress(Exception):
                await self._client.publish(subject, encode(frame))

    async def hush(self) -> None:
        """Take no more calls."""
        self._leaving = True
        if self._services is not None:
            with contextlib.suppress(Exception):
                await self._services.unsubscribe()

    async def down(self) -> None:
        """Send what is still to be sent, and disconnect."""
        self._leaving = True
        for task in (self._renewing, self._again):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self._client is not None:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(2):
                    await self._client.flush()
            await self._client.close()

    async def _connect(self) -> None:
        client: Client | None = None

        async def closed() -> None:
            await self._closed(client)

        client = await connect(
            self._credentials, self.connection, bus=self._bus, seconds=SECONDS,
            on_reconnect=self._reconnected, on_error=self._failed, on_closed=closed,
        )  # fmt: skip
        try:
            await client.subscribe(control_subject(self._name, self.connection), cb=self._renewal.hearing())
            # In the queue group of its own name: several workers of one server share its calls.
            services = await client.subscribe(f"svc.mcp.{token(self._name)}.>", queue=self._name, cb=self._dispatch)
            await client.flush()
        except (nats.errors.Error, OSError, TimeoutError) as error:
            await client.close()
            raise BusError(f"{self._bus}: {str(error) or type(error).__name__}") from None
        self._client, self._services = client, services

    def _current(self) -> End | None:
        client, services = self._client, self._services
        if client is None or services is None or self._leaving:
            return None

        async def end() -> None:
            await services.drain()  # type: ignore[no-untyped-call]
            await client.drain()

        return end

    async def _renewed(self) -> bool:
        """INVARIANT: permissions that run out cost no call (test_permissions_of_a_server_that_run_out_cost_no_call)."""
        try:
            async with self._dialling:
                await self._connect()
        except (BusError, Refusal) as error:
            self._on_error(error)
            return False
        return True

    async def _reconnect(self) -> None:
        pause, longest = _AGAIN
        while not self._leaving:
            try:
                # Perhaps the old one broke while another was made in good time.
                async with self._dialling:
                    if self._client is None:
                        await self._connect()
            except (BusError, Refusal) as error:
                self._on_error(error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, longest)
            else:
                self._on_back()
                return

    async def _closed(self, client: Client | None) -> None:
        # The client closes for good on most errors of the server, also when a credential has run out.
        if self._client is not None and self._client is client and not self._leaving:
            self._client = None
            self._again = asyncio.create_task(self._reconnect())

    async def _reconnected(self) -> None:
        self._on_back()

    async def _failed(self, error: Exception) -> None:
        self._on_error(error)

    async def _dispatch(self, message: Msg) -> None:
        await self._on_dispatch(message.subject, message.data)

    async def _control(self, message: Msg) -> None:
        *_, txn, hop = message.subject.split(".")
        self._on_control(txn, hop, message.data)
