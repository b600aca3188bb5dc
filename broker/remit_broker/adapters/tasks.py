"""Ending tasks for certain."""

from __future__ import annotations

import asyncio
from typing import Any, Final

_AGAIN: Final = 0.2


async def ended(task: asyncio.Task[Any]) -> None:
    """Cancel ``task`` until it has ended, whatever it ended with.

    Once is not enough: on Python 3.11 ``asyncio.wait_for`` loses a cancellation that comes together with what it waited for, and
    the NATS client waits so for every entry of a watch (test_a_watch_that_hears_something_at_its_end_ends).
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_AGAIN)
