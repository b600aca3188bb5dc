"""Everything that is found in one text, however it is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol

import re2  # type: ignore[import-untyped,unused-ignore]

from remit_broker.adapters.content import hidden, injection, pii, secrets
from remit_broker.adapters.content.kinds import Kind
from remit_broker.adapters.content.readings import WAYS
from remit_broker.core.findings import class_of

KINDS: Final[tuple[Kind, ...]] = (*secrets.KINDS, *pii.KINDS, *injection.KINDS, *hidden.KINDS)
"""All tables, in the order in which kinds of one class win."""

MAX_WORK: Final = 96 << 20
"""Bytes that patterns go over for one value, all passes together: the bound on time, counted so that equal values get equal answers."""

MAX_MESSAGE: Final = 2 << 20
PASSES: Final = 32
"""Bytes of work for each byte of a value beyond ``MAX_MESSAGE``."""

DEPTH: Final = 4
"""How often a text is read in another way, and that again: base64 of a percent-encoded text of base64 …"""

PASS: Final = 1 << 10
"""What one match, and one text however short, counts as work."""

_SHORTEST: Final = 3


class Span(NamedTuple):
    """Something found: bytes ``start`` to ``end`` of the UTF-8 form of a text."""

    start: int
    end: int
    kind: str


class Work:
    """What is left to be done for one value; ``over`` says that it was not enough."""

    def __init__(self, left: int = MAX_WORK) -> None:
        self.left = left

    def allow(self, size: int) -> None:
        """More for a value of ``size`` bytes, where it is larger than a message: results in parts are."""
        self.left += PASSES * max(0, size - MAX_MESSAGE)

    @property
    def over(self) -> bool:
        return self.left < 0

    def spend(self, amount: int) -> bool:
        """Take ``amount``; False once there is no more."""
        if self.left >= 0:
            self.left -= amount
        return self.left >= 0


class Finder(Protocol):
    """A detector that is not a table of patterns."""

    def find(self, text: bytes) -> Iterable[Span]:
        """What it finds in ``text``."""


def options() -> Any:
    """RE2 over bytes; errors are for the caller to see."""
    found = re2.Options()
    found.encoding = re2.Options.Encoding.LATIN1
    found.log_errors = False
    found.max_mem = 256 << 20
    return found


class Gate:
    """Many patterns looked for in one pass. They stay simple, so that no text makes the automaton grow with every byte."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._meant: list[list[int]] = []
        self._set = re2.Set.SearchSet(options())
        places: dict[str, int] = {}
        for index, pattern in enumerate(patterns):
            if pattern not in places:
                places[pattern] = self._set.Add(pattern.encode())
                self._meant.append([])
            self._meant[places[pattern]].append(index)
        self._set.Compile()

    def __call__(self, text: bytes) -> list[int]:
        """The indices of the patterns that are found in ``text``."""
        # INVARIANT: the set misses nothing that a pattern of its own finds; it would answer with nothing if it ran out of
        # memory, so it has far more than it needs (test_every_kind_is_found_in_a_long_text_of_all_kinds).
        hits: list[int] | None = self._set.Match(text)
        return sorted(index for hit in hits for index in self._meant[hit]) if hits else []


class Search:
    """The tables of kinds, compiled. Linear in the size of what is searched, whatever is in it."""

    def __init__(self, finders: Sequence[Finder] = ()) -> None:
        self.finders = tuple(finders)
        compiled = options()
        self._kinds = [(kind.name, re2.compile(kind.pattern.encode(), compiled), kind.check) for kind in KINDS]
        # Words, numbers and runs of letters are looked for apart: together their automata would multiply.
        numbers = [index for index, kind in enumerate(KINDS) if kind.name.startswith("pii.")]
        words = [index for index, kind in enumerate(KINDS) if not kind.name.startswith("pii.")]
        self._gates = [(Gate([KINDS[index].key for index in some]), some) for some in (words, numbers)]
        self._ways = Gate([way.key for way in WAYS])

    def spans(self, text: bytes, work: Work, depth: int = 0) -> list[Span]:
        """What is in ``text``, in order; spans of one class do not overlap."""
        if len(text) < _SHORTEST or not work.spend(len(text)):
            return []
        spans: list[Span] = []
        for gate, indices in self._gates:
            # INVARIANT: whatever a pattern finds, its key is found too (test_whatever_a_pattern_finds_its_key_finds).
            for hit in gate(text):
                spans += self._of_kind(indices[hit], text, work)
        if depth < DEPTH:
            for hit in self._ways(text):
                spans += self._read(hit, text, work, depth)
        for finder in self.finders:
            spans += finder.find(text)
        return apart(spans) if len(spans) > 1 else spans

    def _of_kind(self, index: int, text: bytes, work: Work) -> list[Span]:
        kind, regex, check = self._kinds[index]
        spans: list[Span] = []
        if not work.spend(len(text)):
            return spans
        for match in regex.finditer(text):
            start, end = group(match, regex)
            if start < end and (check is None or check(text[start:end])):
                spans.append(Span(start, end, kind))
            if not work.spend(PASS):
                break
        return spans

    def _read(self, index: int, text: bytes, work: Work, depth: int) -> list[Span]:
        spans: list[Span] = []
        if not work.spend(4 * len(text)):
            return spans
        for data, back in WAYS[index].read(text):
            found = self.spans(data, work, depth + 1)
            spans += [Span(*back(span.start, span.end), span.kind) for span in found]
            if not work.spend(PASS):
                break
        return spans


def group(match: Any, regex: Any) -> tuple[int, int]:
    """What a match found: its group, or all of it. An alternative without its group is all of it too."""
    for number in range(1, regex.groups + 1):
        if match.start(number) >= 0:
            start, end = match.span(number)
            return int(start), int(end)
    start, end = match.span()
    return int(start), int(end)


RANKS: Final = {name: rank for rank, name in reversed(list(enumerate(kind.name for kind in KINDS)))}


def rank(kind: str) -> int:
    """The place of a kind in the tables; kinds that are in none come last."""
    return RANKS.get(kind, len(RANKS))


def apart(spans: Iterable[Span]) -> list[Span]:
    """Overlapping spans of one class become one that covers them all, of the kind that comes first in the tables."""
    classes: dict[str, list[Span]] = {}
    for span in spans:
        classes.setdefault(class_of(span.kind), []).append(span)
    found = [span for same in classes.values() for span in cover(same)]
    return sorted(found)


def cover(spans: Iterable[Span]) -> list[Span]:
    """Overlapping spans become one that covers them all, whatever their class."""
    found: list[Span] = []
    for span in sorted(spans):
        if found and span.start < found[-1].end:
            last = found[-1]
            found[-1] = Span(last.start, max(last.end, span.end), min(last.kind, span.kind, key=rank))
        else:
            found.append(span)
    return found
