"""Ending tasks that run for as long as the broker does."""

from __future__ import annotations

import asyncio
from typing import Any, Final

AGAIN: Final = 0.5
"""Seconds after which a task that goes on is cancelled once more."""


async def ended(*tasks: asyncio.Task[Any]) -> None:
    """Cancel ``tasks`` until they have ended, whatever they end with.

    Once is not enough: ``asyncio.wait_for`` of Python 3.11 returns a result that comes in the same moment instead of the
    cancellation, and a loop around it goes on for ever.

    INVARIANT: a broker that is stopped does stop (test_a_task_that_swallows_its_cancellation_is_ended_all_the_same).
    """
    waiting = set(tasks)
    while waiting:
        for task in waiting:
            task.cancel()
        done, waiting = await asyncio.wait(waiting, timeout=AGAIN)
        for task in done:
            if not task.cancelled():
                task.exception()
