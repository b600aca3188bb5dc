"""Changes as a server of the generation 2026-07-28 tells them: on a stream that has to be asked for, with what it is to be about."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import mcp_types as types
from mcp import Client
from mcp.client.subscriptions import ResourceUpdated, SubscriptionLost
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

AGAIN: Final = 5.0
"""Seconds before a stream that broke is asked for again."""
ACKNOWLEDGED: Final = 10.0
"""Seconds within which a server says that it will tell of a resource."""


class Changes:
    """One server's. ``on_change`` is called when one of its lists changed, ``on_update`` with the URI of a resource that did."""

    def __init__(self, client: Client, on_change: Callable[[], None], on_update: Callable[[str], None]) -> None:
        self._client, self._on_change, self._on_update = client, on_change, on_update
        self._wanted: dict[str, None] = {}
        self._told: frozenset[str] = frozenset()
        self._again = asyncio.Event()
        self._acknowledged = asyncio.Condition()

    async def want(self, uri: str) -> None:
        """Be told of a resource from now on. Raises :class:`MCPError` where the server does not agree in time."""
        if uri not in self._wanted:
            self._wanted[uri] = None
            self._again.set()
        try:
            async with asyncio.timeout(ACKNOWLEDGED), self._acknowledged:
                await self._acknowledged.wait_for(lambda: uri in self._told)
        except TimeoutError:
            self._wanted.pop(uri, None)
            raise MCPError(types.INVALID_PARAMS, "the server does not tell of changes of this resource") from None

    async def run(self) -> None:
        """Listen, for as long as the session lives."""
        can = self._client.server_capabilities
        lists: dict[str, Any] = {
            f"{name}_list_changed": bool(one is not None and one.list_changed)
            for name, one in (("tools", can.tools), ("prompts", can.prompts), ("resources", can.resources))
        }
        while True:
            self._again.clear()
            if not any(lists.values()) and not self._wanted:
                await self._again.wait()
                continue
            try:
                async with self._client.listen(**lists, resource_subscriptions=list(self._wanted)) as told:
                    await self._acknowledge(told.honored.resource_subscriptions or ())
                    await self._heard(told)
                if self._again.is_set():
                    continue
            except (MCPError, SubscriptionLost, TimeoutError, ValidationError):
                pass
            await asyncio.sleep(AGAIN)
            # Whatever changed while nobody listened.
            self._on_change()

    async def _acknowledge(self, uris: Any) -> None:
        async with self._acknowledged:
            self._told = frozenset(str(uri) for uri in uris)
            self._acknowledged.notify_all()

    async def _heard(self, told: Any) -> None:
        """Until the stream ends, or another one is wanted."""
        more = asyncio.ensure_future(self._again.wait())
        try:
            while True:
                event = asyncio.ensure_future(anext(told, None))
                try:
                    await asyncio.wait({more, event}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if not event.done():
                        event.cancel()
                if more.done() or (said := event.result()) is None:
                    return
                if isinstance(said, ResourceUpdated):
                    self._on_update(str(said.uri))
                else:
                    self._on_change()
        finally:
            more.cancel()
