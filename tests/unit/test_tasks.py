"""Tasks that run as long as the broker end when it does."""

from __future__ import annotations

import asyncio

from remit_broker.adapters.tasks import ended


async def test_a_task_that_swallows_its_cancellation_is_ended_all_the_same() -> None:
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed > 2:
                    raise

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await ended(task)
    assert task.cancelled() and swallowed == 3


async def test_a_task_that_failed_before_does_not_fail_who_ends_it() -> None:
    async def failing() -> None:
        raise RuntimeError("long ago")

    task = asyncio.create_task(failing())
    await asyncio.sleep(0)
    await ended(task)
    assert task.done()
