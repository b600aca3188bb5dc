"""What an attached server says has changed, said on to every replica: one of them has the clients that want to know."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from remit_broker.ports import at_once

SUBJECT: Final = "remit.changed"

Heard = Callable[[str, str, tuple[str, ...]], None]
"""Told the tenant, the server and the URIs; must not wait."""


class Tidings:
    """One replica's ear and voice. Whoever misses some reads what is there now all the same."""

    def __init__(self, core: Client, heard: Heard) -> None:
        """``core`` is a connection in the broker's own account, where no agent and no server speaks."""
        self._core, self._heard = core, heard

    async def start(self) -> None:
        """Listen."""
        await self._core.subscribe(f"{SUBJECT}.*.*", cb=self._on_changed)

    async def say(self, tenant: str, server: str, uris: tuple[str, ...]) -> None:
        """Say that these resources changed. Best effort, never raises."""
        if self._core.is_connected:
            with contextlib.suppress(NatsError, OSError):
                await self._core.publish(f"{SUBJECT}.{tenant}.{server}", msgspec.json.encode(uris))

    @at_once
    async def _on_changed(self, message: Msg) -> None:
        *_, tenant, server = message.subject.split(".")
        with contextlib.suppress(msgspec.DecodeError):
            self._heard(tenant, server, msgspec.json.decode(message.data, type=tuple[str, ...]))
