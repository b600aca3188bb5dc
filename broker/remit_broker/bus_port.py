"""The agents' side of the bus, as the pipeline needs it (a part of :mod:`remit_broker.ports`)."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from remit_schemas.control import Control
from remit_schemas.envelope import Dispatch, Frame, Result
from remit_schemas.names import Resource

MAX_FRAMES: Final = 10_000
"""Frames that one hop may have."""
Callback = TypeVar("Callback", bound=Callable[..., Coroutine[Any, Any, None]])


def at_once(callback: Callback) -> Callback:
    """Marks what is done with a message of a subscription and never waits: a client may do it while it reads."""
    callback.at_once = True  # type: ignore[attr-defined]
    return callback


class CallerCancelled(Exception):  # noqa: N818 - the caller's wish, not a fault
    """The caller of a hop does not wait for it any more."""


class Withdrawn(Exception):  # noqa: N818 - an operator's wish, not a fault
    """Something that a running hop depends on was revoked; the text says what, ``rule`` names it."""

    def __init__(self, why: str, rule: str) -> None:
        super().__init__(why)
        self.rule = rule


class Channel(Protocol):
    """The frames of one callee for one hop."""

    worker: str
    """The connection that is told how many frames of output the caller has read; "" where nobody is."""

    async def next(self, seconds: float) -> bytes | None:
        """The next frame as it came, or None when no callee is there to hear the dispatch.

        Raises TimeoutError, :class:`CallerCancelled` once the caller has asked for that on its ``ctl`` subject, or
        :class:`Withdrawn` once somebody revoked what the hop depends on.
        """


class Parties(NamedTuple):
    """The two ends of a hop, and what it depends on beside them: everybody in its chain, its user and tenant, what is called."""

    caller: str
    callee: str
    chain: tuple[str, ...] = ()
    user: str = ""
    resource: Resource | None = None
    tenant: str = "default"


class Recipient(NamedTuple):
    """Who gets the end of a hop, and where."""

    reply: str
    caller: str
    txn: str
    hop: str


class Bus(Protocol):
    """The agents' side of the bus."""

    replica: str

    async def answer(self, reply: str, frame: Frame) -> None:
        """Publish one frame to a caller's inbox."""

    async def release(self, to: Recipient, result: Result) -> None:
        """Publish a result to a caller who takes it in parts, in parts where it is larger than an envelope."""

    async def tell(self, callee: str, connection: str, at: tuple[str, str], said: Control) -> None:
        """Say something about a hop (``at``: its txn and id) to the connection that works on it. Best effort."""

    def channel(self, parties: Parties, txn: str, hop: str) -> AbstractAsyncContextManager[Channel]:
        """Listen to the callee's frames for a hop, and to its caller's wish to end it."""

    async def dispatch(self, resource: Resource, callee: str, dispatch: Dispatch) -> None:
        """Hand a governed call to its callee, once."""

    async def resume(self, callee: str, connection: str, dispatch: Dispatch) -> None:
        """Hand a call that goes on to the connection that parked it; where that is gone, the channel says so with None."""

    async def cancel(self, callee: str, connection: str, txn: str, hop: str) -> None:
        """Ask the connection that works on a hop to stop; where none has said so yet (""), as soon as one does. Best effort."""

    async def ended(self, tenant: str, txn: str, hop: str) -> None:
        """Say to every replica that a hop has ended which another may run. Best effort, never raises: the record decides."""

    async def until_ended(self, at: tuple[str, str], seconds: float) -> None:
        """Wait until it is said that the hop ``at`` (its txn and id) has ended, at most ``seconds``."""


class Inside(Protocol):
    """The bus as a caller in the broker's own process uses it: frames come to a function, and nothing is published."""

    replica: str

    def hear_inside(self, reply: str, hear: Callable[[Frame], None]) -> None:
        """What is answered to ``reply`` goes to ``hear``, which must not wait."""

    def deaf_inside(self, reply: str) -> None:
        """Nobody listens there any more."""

    def cancel_inside(self, caller: str, txn: str, hop: str) -> None:
        """The caller does not want a hop any more."""
