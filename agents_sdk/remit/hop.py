"""A hop from inside the skill that serves it: for whom, through whom, within what, and what it says before its result."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final, NoReturn

from remit.approvals import Asked, Wait, asked_by, asked_in, decided
from remit.caller import Caller
from remit.errors import Refused, refused, text
from remit.flow import Flow
from remit.link import Link
from remit.meter import Meter, Metered, read_prices
from remit.parked import LAST_WORD, Parked
from remit.plain import micros, plain, seconds
from remit.streaming import pieces_of, said
from remit_schemas.budget import ONE_CALL, ZERO, Budget
from remit_schemas.envelope import Dispatch, Event, Frame, InputRequired, Progress, encode
from remit_schemas.errors import Code
from remit_schemas.grant import Grant
from remit_schemas.model_prices import ModelPrices

MAX_PROGRESS: Final = 1000
"""Progress frames of one hop that are sent; the rest are dropped, since they are for people."""

MAX_EVENTS: Final = 5000
"""Events of one hop. They are output, so one too many is refused, not dropped."""

_MESSAGE: Final = 4096


class Hop(Caller):
    """What a skill is called with, first of all. ``id`` and ``txn`` name it; ``grant`` is the verified grant it works under."""

    def __init__(
        self, link: Link, grant: Grant, dispatch: Dispatch, where: str, prices: ModelPrices | None = None
    ) -> None:
        """``where`` is the subject that its frames go to, ``prices`` are those of models."""
        super().__init__(link, grant.token, dispatch.txn, grant.claims.budget, dispatch.deadline / 1000)
        self.id: Final = dispatch.hop
        self.resource: Final = dispatch.resource
        self.grant = grant
        self.input: Any = dispatch.resumed.input if dispatch.resumed else None
        self.reported: Budget | None = None
        self._where = where
        # What it was resumed with and nobody has asked for yet; who waits for the next input; what ends it in time.
        # An approval that was given is no answer to a question of the skill's own.
        self._unread = dispatch.resumed is not None and asked_in(dispatch.resumed.input) is None
        self._answer: asyncio.Future[Any] | None = None
        self._clock: asyncio.Timeout | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._largest = dispatch.parts
        self._flow = Flow(dispatch.window)
        self._prices = prices or ModelPrices({})
        self._due: list[Callable[[], None]] = []
        # Whether its own work costs nothing where it reports nothing.
        self._free = False
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

    @property
    def parked(self) -> bool:
        """Whether it has asked for an input that has not come."""
        return self._answer is not None

    async def ask(self, request: Any, wait: str | float = "10m") -> Any:
        """Ask the caller for an input and return it. Meanwhile the hop is parked: it holds no budget, and its grant is of no use.

        For ``wait`` the skill waits here. An input that comes later, or to another process, runs the skill again from its beginning,
        with the same arguments and the input in :attr:`input`; then the first ``ask`` returns it at once. A skill that asks more than
        once has to tell from ``input`` where it is. What still runs below is cancelled; what is parked below stays so.
        """
        if self._unread:
            self._unread = False
            return self.input
        answer = await self._park(request)
        try:
            async with asyncio.timeout(seconds(wait)):
                return await answer
        except TimeoutError:
            if answer.done() and not answer.cancelled():
                return answer.result()
            raise Parked from None

    async def approved(self, no: Refused, wait: str | float = "10m") -> str:
        """Park until a person has decided on a call that was refused with ``no`` for want of an approval; its id.

        The identical call may then be made again: it goes through, or is refused with the reason. Otherwise as :meth:`ask`. Raises
        ``no`` where it is about nothing that a person decides.
        """
        about = asked_by(no)
        if about is None:
            raise no
        await self.ask(about.request(), wait)
        return about.id

    async def _decided(self, about: Asked, wait: Wait) -> None:
        if wait is True:
            await self.ask(about.request())
        else:
            await decided(self, about, wait)

    async def park(self, request: Any) -> NoReturn:
        """Ask the caller for an input and end this run: with it the skill is run again, and finds it in :attr:`input`."""
        await self._park(request)
        raise Parked

    async def _park(self, request: Any) -> asyncio.Future[Any]:
        self.settle()
        frame = InputRequired(request=plain(request, "the request", Code.MALFORMED), cost=self.reported)
        if self._ended:
            raise _over()
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._answer = answer
        seconds_left = max(self.remaining, LAST_WORD)
        if self._clock is not None:
            # Waiting is not working: the deadline that counts is that of what comes next.
            self._clock.reschedule(None)
        # INVARIANT: a request is not said again once it was answered: it would pass for the next one
        # (test_a_request_that_was_answered_is_not_said_again).
        telling = asyncio.ensure_future(self._link.tell(self._where, encode(frame), seconds_left))
        try:
            await asyncio.wait({telling, answer}, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer
            heard = await telling
        except Refused:
            self._answer = None
            raise
        finally:
            telling.cancel()
        if not heard:
            raise refused(
                Code.TARGET_UNAVAILABLE, "nobody heard the request for an input", rule="hop.unheard", effect=self.effect,
                ask="call again when the broker is back",
            )  # fmt: skip
        return answer

    @property
    def _waits(self) -> bool:
        """Whether the skill still waits for an input here."""
        return self._answer is not None and not self._answer.done()

    def _go_on(self, grant: Grant, dispatch: Dispatch, where: str) -> None:
        """The input has come, with a new grant, budget and deadline, and perhaps from another replica."""
        answer, self._answer = self._answer, None
        self._renewed(grant)
        self.until = dispatch.deadline / 1000
        self.reported = None
        self._where, self._largest, self._flow = where, dispatch.parts, Flow(dispatch.window)
        self._limit, self._spent, self._held = grant.claims.budget, ONE_CALL, ZERO
        self.input = dispatch.resumed.input if dispatch.resumed else None
        if self._clock is not None:
            self._clock.reschedule(asyncio.get_running_loop().time() + self.remaining)
        if answer is not None:
            answer.set_result(self.input)

    def _renewed(self, grant: Grant) -> None:
        self.grant, self._grant = grant, grant.token

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
        self.charge(Budget(micros(usd), tokens, 0))

    def charge(self, used: Budget) -> None:
        """As :meth:`cost`, for an amount."""
        self.reported = (self.reported or ZERO) + used
        self._spent = self._spent + used

    def meter(self, model: Any, name: str = "", prices: Mapping[str, str] | None = None) -> Any:
        """``model`` as it is, but that each of its calls adds what it used to the cost of this hop.

        It is a function that calls a model, an object with ``invoke``, ``ainvoke`` or ``astream``, or a client in the shape of
        OpenAI's or Anthropic's; sync or async, with an answer or a stream. ``name`` is the model's, where neither the call nor the
        answer says it. Prices are those of the broker's configuration, or ``prices``: ``{"gpt-4o": "in=2.5,out=10,call=0.05"}``,
        dollars for a million tokens, and for a call of which nobody says what it used. What is spent already is refused with
        BUDGET_EXCEEDED before the model is called.
        """
        table = self._prices if prices is None else read_prices(prices)
        # From now on the cost is known, also where it is none.
        self.charge(ZERO)
        return Metered(model, Meter(self, table, name))

    @property
    def tokens_given(self) -> bool:
        """Whether this hop was given any tokens to spend."""
        return self._limit.tokens > 0

    def due(self, settle: Callable[[], None]) -> None:
        """Have ``settle`` done before the hop ends: it charges what a stream used that was not read to its end."""
        self._due.append(settle)

    def settle(self) -> None:
        """Charge what is still due."""
        for settle in self._due:
            settle()
        if self._free:
            self.charge(ZERO)

    async def stream(self, source: Any, *args: Any, **kwargs: Any) -> Any:
        """Send what ``source`` says, piece by piece, each as an event, and return all of it.

        ``source`` is an async iterator, an object with ``astream`` (LangChain, LangGraph) or ``run_stream``, or a function that gives
        such an iterator; it is called with the arguments. Of messages their text is sent. Returned is the joined text where all
        pieces were text, else the last piece. Within the window of the caller it waits for its reader, as :meth:`event` does.
        """
        texts: list[str] | None = []
        last: Any = None
        async for piece in pieces_of(source, args, kwargs):
            last = plain(said(piece), "a piece of the stream", Code.MALFORMED)
            if not isinstance(last, str):
                texts = None
            elif texts is not None:
                texts.append(last)
            if last != "":
                await self.event(last)
        return last if texts is None else "".join(texts)

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
