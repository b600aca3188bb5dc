"""Every message that a server sends, judged as it comes."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

from remit_broker.core.scan.surface import Talk

MAX_MESSAGE: Final = 4 * 1024 * 1024
"""Bytes of one message; more is a finding, and the end of the conversation."""
MAX_UNASKED: Final = 200
"""Messages that nobody asked for."""
MAX_NOISE: Final = 50

Id = int | str


class Broken(Exception):  # noqa: N818 - an answer
    """The conversation cannot go on. The text says why, on one line."""


class Refused(Exception):  # noqa: N818 - an answer
    """The server answered with an error."""

    def __init__(self, code: Any, message: str) -> None:
        super().__init__(f"error {code}: {message[:300]}")
        self.code = code


class Inbox:
    """Answers by id; everything else is counted and noted in ``talk``."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._waiting: dict[Id, asyncio.Future[dict[str, Any]]] = {}
        self._answered: set[Id] = set()
        self._unasked = self._noise = 0
        self.requests: list[dict[str, Any]] = []
        """What the server asks of us, to be refused."""
        self.over: Broken | None = None

    def expect(self, ident: Id) -> asyncio.Future[dict[str, Any]]:
        """The answer to a request with this id. Raises :class:`Broken` where there will be none."""
        if self.over is not None:
            raise self.over
        future = self._waiting[ident] = asyncio.get_running_loop().create_future()
        return future

    def end(self, why: str) -> None:
        """No more messages come."""
        self.over = self.over or Broken(why)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(self.over)

    def hear(self, data: bytes) -> None:
        """One message, or what came instead of one. Never raises."""
        if len(data) > MAX_MESSAGE:
            self._talk.broke("protocol.size", "high", f"a message of more than {MAX_MESSAGE} bytes")
            return self.end("it sent a message that is too large")
        try:
            message = json.loads(data)
        except (ValueError, RecursionError):
            return self._noise_of(data)
        for one in message if isinstance(message, list) else [message]:
            self._take(one, data)

    def _take(self, message: Any, data: bytes) -> None:
        if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
            return self._noise_of(data)
        if "method" in message:
            return self._unasked_of(message)
        ident = message.get("id")
        future = self._waiting.pop(ident, None) if isinstance(ident, int | str) else None
        if future is None:
            # An error without an id says that a request could not be read: that one is ours.
            if ident is not None:
                again = (
                    "an answer came twice" if ident in self._answered else "an answer to a request that was never made"
                )
                self._talk.broke("protocol.id", "high", again, f"id {ident!r}")
                self._count()
            return
        self._answered.add(ident)  # type: ignore[arg-type]
        if future.done():
            return
        if "error" in message or not isinstance(message.get("result"), dict):
            raw = message.get("error")
            error = raw if isinstance(raw, dict) else {}
            future.set_exception(Refused(error.get("code"), str(error.get("message", "no result"))))
        else:
            future.set_result(message["result"])

    def _unasked_of(self, message: dict[str, Any]) -> None:
        method = str(message["method"])
        if "id" in message:
            self.requests.append(message)
            if method != "ping":
                self._talk.broke("protocol.unasked", "high", "it asks the client for something before any call", method)
        self._count()

    def _count(self) -> None:
        self._unasked += 1
        if self._unasked > MAX_UNASKED:
            self._talk.broke("protocol.flood", "high", f"more than {MAX_UNASKED} messages that nobody asked for")
            self.end("it floods its client")

    def _noise_of(self, data: bytes) -> None:
        self._noise += 1
        if self._noise == 1:
            self._talk.broke(
                "protocol.noise",
                "medium",
                "what it says is no message of JSON-RPC 2.0",
                data[:300].decode(errors="replace"),
            )
        if self._noise > MAX_NOISE:
            self.end(f"more than {MAX_NOISE} lines that are no messages")
