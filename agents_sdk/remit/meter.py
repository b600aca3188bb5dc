"""``hop.meter``: a model that is called through it adds what it used to the cost of the hop."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Final, Protocol

from remit.errors import as_refused, refused
from remit.usage import Usage, additive, field, model_of, usage_of
from remit_schemas.budget import Budget
from remit_schemas.errors import Code
from remit_schemas.model_prices import DEAREST, DEFAULT, ModelPrices, parse_model_price

CALLS: Final = frozenset(
    {
        "create",
        "parse",
        "invoke",
        "ainvoke",
        "astream",
        "stream",
        "generate",
        "agenerate",
        "complete",
        "acomplete",
        "run",
        "arun",
    }
)
"""Methods that call a model."""

DERIVES: Final = frozenset(
    {"bind", "bind_tools", "with_config", "with_options", "with_retry", "with_structured_output"}
)
"""Methods that make another object that calls the same model."""

_DATA: Final = (str, bytes, int, float, bool, list, dict, tuple, set, type(None))


def read_prices(table: Mapping[str, str]) -> ModelPrices:
    """Prices as people write them. Raises :class:`~remit.errors.Refused` with MALFORMED."""
    with as_refused():
        default = parse_model_price(table[DEFAULT]) if DEFAULT in table else DEAREST
        return ModelPrices({name: parse_model_price(text, default) for name, text in table.items()})


class Charged(Protocol):
    """The hop that pays."""

    @property
    def left(self) -> Budget:
        """What is left of its budget."""

    def charge(self, used: Budget) -> None:
        """Add to what the work itself used."""

    def due(self, settle: Callable[[], None]) -> None:
        """Have ``settle`` done before the hop ends."""

    @property
    def tokens_given(self) -> bool:
        """Whether tokens were granted at all."""


class Meter:
    """Charges one hop for one model. ``model`` is its name where the caller knows better than its answers."""

    def __init__(self, hop: Charged, prices: ModelPrices, model: str) -> None:
        self._hop, self._prices, self._model = hop, prices, model

    def around(self, function: Callable[..., Any], named: str = "") -> Callable[..., Any]:
        """``function``, metered: sync or async, with an answer or a stream of them."""

        def call(*args: Any, **kwargs: Any) -> Any:
            name = self._model or str(kwargs.get("model") or "") or named
            self._require_budget(name)
            try:
                answer = function(*args, **kwargs)
            except BaseException:
                self.charge(name, None)
                raise
            return self._awaited(answer, name) if inspect.isawaitable(answer) else self._settled(answer, name)

        return call

    def charge(self, name: str, used: Usage | None) -> None:
        """Charge a call: by its tokens, or what a call costs whose usage nobody knows."""
        price = self._prices.of(name)
        # INVARIANT: what a model used is never charged as nothing because nobody said it
        # (test_usage_that_is_missing_is_charged_by_default).
        if used is None:
            self._hop.charge(Budget(price.call, 0, 0))
        else:
            self._hop.charge(Budget(price.cost(used), sum(used), 0))

    def _require_budget(self, name: str) -> None:
        price, left = self._prices.of(name), self._hop.left
        costs = price.call or price.input or price.output
        if (costs and not left.usd_micros) or (self._hop.tokens_given and not left.tokens):
            raise refused(
                Code.BUDGET_EXCEEDED, f"nothing is left of this hop's budget for {name or 'the model'}", rule="meter.budget",
                ask="ask the caller for more money or tokens",
            )  # fmt: skip

    async def _awaited(self, answer: Any, name: str) -> Any:
        try:
            value = await answer
        except BaseException:
            self.charge(name, None)
            raise
        return self._settled(value, name)

    def _settled(self, answer: Any, name: str) -> Any:
        if hasattr(answer, "__anext__") or (hasattr(answer, "__aiter__") and usage_of(answer) is None):
            return Stream(self, answer.__aiter__(), name)
        if isinstance(answer, Iterator):
            return SyncStream(self, answer, name)
        if hasattr(answer, "__aenter__") or hasattr(answer, "__enter__"):
            self.charge(name, None)
            raise refused(
                Code.MALFORMED, "a stream in a with block cannot be metered", rule="meter.stream",
                ask="use the form that is iterated, such as create(…, stream=True) or astream(…)",
            )  # fmt: skip
        self.charge(name or model_of(answer), usage_of(answer))
        return answer


class _Tally:
    """What a stream has said so far that it used; charged once, when it ends or the hop does."""

    def __init__(self, meter: Meter, name: str) -> None:
        self._meter, self._name = meter, name
        self._used: Usage | None = None
        self._done = False
        meter._hop.due(self._end)

    def _hear(self, piece: Any) -> Any:
        self._name = self._name or model_of(piece) or model_of(field(piece, "message"))
        if (said := usage_of(piece)) is not None:
            before = self._used or (0, 0)
            self._used = (
                (before[0] + said[0], before[1] + said[1])
                if additive(piece)
                else (max(before[0], said[0]), max(before[1], said[1]))
            )
        return piece

    def _end(self) -> None:
        if not self._done:
            self._done = True
            self._meter.charge(self._name, self._used)


class Stream(_Tally):
    """An answer that comes in pieces."""

    def __init__(self, meter: Meter, pieces: AsyncIterator[Any], name: str) -> None:
        super().__init__(meter, name)
        self._pieces = pieces

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Any:
        try:
            return self._hear(await self._pieces.__anext__())
        except BaseException:
            self._end()
            raise

    async def aclose(self) -> None:
        """Want no more of it."""
        self._end()
        close = getattr(self._pieces, "aclose", None)
        if close is not None:
            await close()


class SyncStream(_Tally):
    """The same without waiting."""

    def __init__(self, meter: Meter, pieces: Iterator[Any], name: str) -> None:
        super().__init__(meter, name)
        self._pieces = pieces

    def __iter__(self) -> SyncStream:
        return self

    def __next__(self) -> Any:
        try:
            return self._hear(next(self._pieces))
        except BaseException:
            self._end()
            raise


class Metered:
    """A model, a client of one, or a function that calls one: what calls the model is metered, and nothing else can be called.

    That is on purpose: a method that is not known could call the model past the meter.
    """

    def __init__(self, target: Any, meter: Meter) -> None:
        self._target, self._meter = target, meter

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._meter.around(self._target, self._named())(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        found = getattr(self._target, name)
        if name in CALLS and callable(found):
            return self._meter.around(found, self._named())
        if name in DERIVES and callable(found):
            return lambda *args, **kwargs: Metered(found(*args, **kwargs), self._meter)
        if isinstance(found, _DATA):
            return found
        if inspect.isroutine(found):
            raise AttributeError(
                f"hop.meter does not know what {name!r} would cost; use one of: {', '.join(sorted(CALLS | DERIVES))}"
            )
        return Metered(found, self._meter)

    def _named(self) -> str:
        for name in (field(self._target, "model_name"), field(self._target, "model")):
            if isinstance(name, str) and name:
                return name
        return ""
