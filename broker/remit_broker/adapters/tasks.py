<<<<<<< HEAD
"""Ending tasks for certain."""
=======
"""Ending tasks that run for as long as the broker does."""
>>>>>>> main

from __future__ import annotations

import asyncio
from typing import Any, Final

<<<<<<< HEAD
_AGAIN: Final = 0.2


async def ended(task: asyncio.Task[Any]) -> None:
    """Cancel ``task`` until it has ended, whatever it ended with.

    Once is not enough: on Python 3.11 ``asyncio.wait_for`` loses a cancellation that comes together with what it waited for, and
    the NATS client waits so for every entry of a watch (test_a_watch_that_hears_something_at_its_end_ends).
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_AGAIN)
=======
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
>>>>>>> main
