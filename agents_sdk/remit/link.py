"""What the SDK needs of a bus: to ask, to tell, to listen. The NATS client implements it, and so can a test in process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from remit_schemas.envelope import Frame, Request

OnMessage = Callable[[str, bytes], None]
"""Called with a message's subject and data; it must not wait."""


class Frames(Protocol):
    """The answer to one request, frame by frame."""

    async def next(self) -> Frame:
        """The next frame. Raises :class:`~remit.errors.Refused`: time is up, nobody listens, the bus refuses, no frame."""

    def close(self) -> None:
        """Listen no longer."""


class Link(Protocol):
    """One principal's connection."""

    @property
    def name(self) -> str:
        """The principal."""

    @property
    def connection(self) -> str:
        """The random name of this connection: the broker finds its inbox by it."""

    async def ask(self, subject: str, request: Request) -> Frames:
        """Send a request (it must have a deadline) and listen to the answer. Raises :class:`~remit.errors.Refused`."""

    async def tell(self, subject: str, data: bytes, seconds: float = 0) -> bool:
        """Publish. With ``seconds`` it waits that long for a lost connection to come back, and for somebody to listen.

        False where that did not happen, so that nobody heard it.

        Raises :class:`~remit.errors.Refused` with TOO_LARGE before anything is sent.
        """
