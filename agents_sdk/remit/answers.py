"""Requests in flight: which answer a message on the inbox belongs to, and when waiting for it has no point any more."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from typing import Final

from remit.errors import Refused, refused
from remit_schemas.envelope import Frame, parse_frame
from remit_schemas.errors import Code, Refusal

GRACE: Final = 0.5
"""Seconds after its deadline in which the broker's own word on a request is still awaited."""

BACKLOG: Final = 1024
"""Frames that may wait to be read. When more come, the oldest go: a slow reader loses progress, never the end."""


class Answer:
    """The frames of one answer. Implements :class:`~remit.link.Frames`."""

    def __init__(self, answers: Answers, subject: str, seconds: float) -> None:
        self.subject: Final = subject
        self.token: Final = secrets.token_hex(12)
        self.heard = False
        self._answers = answers
        self._loop = asyncio.get_running_loop()
        self._until = self._loop.time() + max(seconds, 0) + GRACE
        self._frames: deque[bytes] = deque(maxlen=BACKLOG)
        self._failure: Refused | None = None
        self._grew = asyncio.Event()

    @property
    def reply(self) -> str:
        """The reply subject: in the private inbox, guessable by nobody."""
        return f"{self._answers.prefix}.{self.token}"

    @property
    def failed(self) -> bool:
        """Whether it is known that no answer will come."""
        return self._failure is not None

    def hear(self, data: bytes) -> None:
        """Take the next frame."""
        self.heard = True
        self._frames.append(data)
        self._grew.set()

    def fail(self, failure: Refused) -> None:
        """No more frames will come."""
        self._failure = self._failure or failure
        self._grew.set()

    async def next(self) -> Frame:
        """See :class:`~remit.link.Frames`."""
        if not self._frames and self._failure is None:
            try:
                async with asyncio.timeout_at(self._until):
                    while not self._frames and self._failure is None:
                        self._grew.clear()
                        await self._grew.wait()
            except TimeoutError:
                raise refused(
                    Code.DEADLINE_EXCEEDED, "no answer came before the deadline", rule="client.deadline", effect="unknown",
                    ask="see with remit chain what became of it before calling again, or allow more time",
                ) from None  # fmt: skip
        if not self._frames:
            assert self._failure is not None  # noqa: S101 - the loop above ends in no other way
            raise self._failure
        try:
            return parse_frame(self._frames.popleft())
        except Refusal as bad:
            raise refused(
                Code.INTERNAL, f"the broker answered with something that is no frame: {bad.body.message}",
                rule="client.frame", ask="check that broker and SDK fit together", effect="unknown",
            ) from None  # fmt: skip

    def close(self) -> None:
        """Listen no longer."""
        self._answers.forget(self)


class Answers:
    """The requests in flight of one connection, by the last token of their reply subject."""

    def __init__(self, prefix: str) -> None:
        self.prefix: Final = prefix
        self._open: dict[str, Answer] = {}

    def __len__(self) -> int:
        return len(self._open)

    def open(self, subject: str, seconds: float) -> Answer:
        """Begin to listen to the answer of a request on ``subject`` that has ``seconds`` left."""
        answer = Answer(self, subject, seconds)
        self._open[answer.token] = answer
        return answer

    def forget(self, answer: Answer) -> None:
        """Listen no longer."""
        self._open.pop(answer.token, None)

    def hear(self, token: str, data: bytes | None) -> None:
        """A message came; ``data`` is None where the server says that nobody listens. What nobody waits for is dropped."""
        answer = self._open.get(token)
        if answer is None:
            return
        if data is not None:
            answer.hear(data)
            return
        answer.fail(
            refused(
                Code.TARGET_UNAVAILABLE,
                "no broker is on the bus",
                rule="client.broker",
                ask="start it with remit up",
                retry_after=1.0,
            )
        )

    def forbid(self, subject: str) -> bool:
        """The server forbade a publish on ``subject`` (or with that reply): whether a request in flight was told."""
        for answer in self._open.values():
            if subject in (answer.subject.lower(), answer.reply.lower()) and not answer.heard:
                answer.heard = True
                answer.fail(
                    refused(
                        Code.OUT_OF_SCOPE, f"the bus does not permit {answer.subject}", rule="bus.permissions",
                        ask="call as the principal whose credentials these are",
                    )
                )  # fmt: skip
                return True
        return False

    def fail_all(self, failure: Refused) -> None:
        """Nothing more will come for anybody."""
        for answer in self._open.values():
            answer.fail(failure)
