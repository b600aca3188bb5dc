"""A hop from inside the skill that serves it: for whom, through whom, within what, and what it says before its result."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any, Final

from remit.caller import Caller
from remit.errors import Refused, refused, text
from remit.flow import Flow
from remit.link import Link
from remit.plain import micros, plain
from remit_schemas.budget import ONE_CALL, ZERO, Budget
from remit_schemas.envelope import Dispatch, Event, Frame, Progress, encode
from remit_schemas.errors import Code
from remit_schemas.grant import Grant

MAX_PROGRESS: Final = 1000
"""Progress frames of one hop that are sent; the rest are dropped, since they are for people."""

MAX_EVENTS: Final = 5000
"""Events of one hop. They are output, so one too many is refused, not dropped."""

_MESSAGE: Final = 4096


class Hop(Caller):
    """What a skill is called with, first of all. ``id`` and ``txn`` name it; ``grant`` is the verified grant it works under."""

    def __init__(self, link: Link, grant: Grant, dispatch: Dispatch, where: str) -> None:
        """``where`` is the subject that its frames go to."""
        super().__init__(link, grant.token, dispatch.txn, grant.claims.budget, dispatch.deadline / 1000)
        self.id: Final = dispatch.hop
        self.resource: Final = dispatch.resource
        self.grant: Final = grant
        self.reported: Budget | None = None
        self._where = where
        self._largest = dispatch.parts
        self._flow = Flow(dispatch.window)
        self._progress = self._events = 0
        # A hop costs one call, its own.
        self._spent = ONE_CALL

    @property
    def user(self) -> str:
        """On whose behalf, all along the chain."""
        return self.grant.claims.sub

    @property
    def chain(self) -> tuple[str, ...]:
        """Who acts, newest first: this agent, who called it, … up to the user's own first agent."""
        return self.grant.chain

    @property
    def deadline(self) -> float:
        """The Unix second at which the answer must be there. The skill is cancelled then."""
        return self.until

    async def progress(self, message: str = "", progress: float | None = None, total: float | None = None) -> None:
        """Say how far the work is. For people: it may get lost, and beyond 1,000 a hop it does."""
        self._progress += 1
        if self._progress <= MAX_PROGRESS:
            frame = Progress(message=message[:_MESSAGE], progress=_finite(progress), total=_finite(total))
            await self._say(frame)

    async def event(self, data: Any) -> None:
        """Send a piece of output before the result. Raises :class:`~remit.errors.Refused` for too many or what is no JSON."""
        self._events += 1
        if self._events > MAX_EVENTS:
            raise refused(
                Code.TOO_LARGE,
                f"a hop has at most {MAX_EVENTS} events",
                rule="hop.events",
                ask="send fewer, larger events",
            )
        await self._say(Event(data=plain(data, "the event", Code.MALFORMED)))

    async def note(self, message: str) -> None:
        """Send a remark for whoever reads along, as the event ``{"note": message}``."""
        await self.event({"note": message})

    def cost(self, *, usd: float | str | Decimal = 0, tokens: int = 0) -> None:
        """Report what the work itself used, such as a model's tokens; it adds up. What calls cost is known without this."""
        if tokens < 0:
            raise refused(Code.MALFORMED, "a cost is not negative", rule="value.cost", ask="report what was used")
        used = Budget(micros(usd), tokens, 0)
        self.reported = (self.reported or ZERO) + used
        self._spent = self._spent + used

    @staticmethod
    def text(value: Any) -> str:
        """The text of a result: a string as it is, of an MCP tool's result its text, of anything else its JSON."""
        return text(value)

    async def _say(self, frame: Frame) -> None:
        await self._flow.output()
        # INVARIANT: nothing is sent after the final frame (test_nothing_follows_the_final_frame).
        if self._ended:
            raise _over()
        await self._link.tell(self._where, encode(frame))


def _over() -> Refused:
    return refused(Code.GRANT_CLOSED, "this hop has ended", rule="hop.ended", ask="say it before the skill returns")


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None
