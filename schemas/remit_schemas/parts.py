"""A result that is larger than an envelope: cut into slices of its JSON text by one side, put together by the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from remit_schemas.canonical import loads
from remit_schemas.envelope import Part, Result, encode
from remit_schemas.errors import Code, Refusal, refusal

SLICE: Final = 200_000
"""Characters of one part. In an envelope a character takes at most four bytes, so that every slice fits."""

AHEAD: Final = 8
"""Parts that a callee may send beyond what the broker has said it has taken: ``{"parts": n}``."""


def split(value: Any) -> Iterator[Part]:
    """The parts of ``value``, in order."""
    text = encode(value).decode()
    for seq, at in enumerate(range(0, len(text), SLICE)):
        yield Part(seq=seq, data=text[at : at + SLICE])


class Joiner:
    """The parts of one result, put together in the order in which they come. ``largest`` is in bytes of JSON text."""

    __slots__ = ("_count", "_largest", "_text")

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._text = bytearray()
        self._count = 0

    def __len__(self) -> int:
        return len(self._text)

    @property
    def count(self) -> int:
        """How many there were."""
        return self._count

    def take(self, part: Part) -> None:
        """The next part.

        Raises a RESULT_INVALID refusal for one that is missing, repeated, empty or out of order, and for a whole that is too large.
        """
        # INVARIANT: a result is whole or it is none (test_parts_that_do_not_make_a_whole_are_refused).
        if part.seq != self._count or not part.data:
            raise _bad(f"part {part.seq} came where part {self._count} belongs", "parts.order")
        data = part.data.encode()
        if len(self._text) + len(data) > self._largest:
            raise too_large(len(self._text) + len(data), self._largest)
        self._count += 1
        self._text += data

    def whole(self, end: Result) -> Result:
        """``end`` with the value that the parts make up; ``parts`` stays what it was. Raises a RESULT_INVALID refusal."""
        if end.parts != self._count or end.value is not None:
            raise _bad(f"{self._count} parts came, the result speaks of {end.parts}", "parts.count")
        data, self._text = bytes(self._text), bytearray()
        try:
            value = loads(data, max_bytes=self._largest)
        except Refusal as bad:
            raise _bad(f"the parts do not make up a value: {bad.body.message}", "parts.value") from None
        return Result(value=value, cost=end.cost, failed=end.failed, parts=end.parts)


def too_large(size: int, largest: int) -> Refusal:
    """The refusal of a whole that has more than ``largest`` bytes."""
    return refusal(
        Code.RESULT_INVALID, f"the result has {size} bytes or more, at most {largest} can be sent", rule="parts.size",
        ask="ask for less, or for a reference", effect="happened",
    )  # fmt: skip


def _bad(what: str, rule: str) -> Refusal:
    return refusal(Code.RESULT_INVALID, what, rule=rule, ask="tell whoever runs the callee", effect="unknown")
