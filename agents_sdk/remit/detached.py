"""A call that outlives the hop or task that made it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

from remit.errors import Refused, ToolFailed
from remit.run import Run
from remit.services import ask_service

if TYPE_CHECKING:
    from remit.caller import Caller


class Detached:
    """A call in a task of its own. ``txn`` is that task, ``id`` the hop. When the call has ended, the task is closed."""

    def __init__(self, task: Caller, run: Run) -> None:
        self.txn: Final = task.txn
        self.id: Final = run.id
        self.run: Final = run
        self._task = task
        self._ending = asyncio.get_running_loop().create_task(self._end())
        _GOING.add(self._ending)
        self._ending.add_done_callback(_done)

    async def result(self) -> Any:
        """The value, as :meth:`~remit.run.Run.result`. To be cancelled while it waits changes nothing for the call."""
        return await asyncio.shield(self._ending)

    async def cancel(self) -> None:
        """Ask the callee to stop. Best effort."""
        await self.run.cancel()

    async def _end(self) -> Any:
        try:
            value = await self.run.result()
        except (Refused, ToolFailed):
            await self._close()
            raise
        await self._close()
        return value

    async def _close(self) -> None:
        # Nothing is lost where this fails: the task ends when its grant expires.
        with contextlib.suppress(Refused):
            await ask_service(self._task._link, ("txn", "close"), {}, txn=self.txn, grant=self._task._grant)


_GOING: Final[set[asyncio.Task[Any]]] = set()
"""Detached calls whose end is awaited: nobody else need hold them."""


def _done(ending: asyncio.Task[Any]) -> None:
    _GOING.discard(ending)
    if not ending.cancelled():
        ending.exception()  # whoever wants to know asks for the result
