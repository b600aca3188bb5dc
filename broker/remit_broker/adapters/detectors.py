"""Looking through nested JSON for what should not travel, and replacing it. Found is reported by kind and place, never as text."""

from __future__ import annotations

import functools
import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

import re2  # type: ignore[import-untyped,unused-ignore]

from remit_broker.adapters.content import pii
from remit_broker.adapters.content.joins import Joins, Piece
from remit_broker.adapters.content.redaction import Redaction
from remit_broker.adapters.content.search import PASS, Finder, Search, Span, Work, apart, options
from remit_broker.adapters.content.secret_checks import KEYED, looks_assigned
from remit_broker.adapters.content.walk import BETWEEN, Part, Path, Quick, Walk, caps, encode, quick
from remit_broker.core.findings import (
    MAX_PLACES,
    MAX_POINTER,
    OVER_CAP,
    class_of,
    pointer,
    summary,
    unredactable,
    within,
)
from remit_schemas.errors import Code, refusal
from remit_schemas.records import Finding

_LONGEST_NAME: Final = 64
_PASSWORD: Final = "secret.password"  # noqa: S105 - the name of a kind, not a password
_PLACEHOLDER_NAME: Final = "[redacted]"
_BETWEEN: Final = BETWEEN.encode()
_ROUNDS: Final = 3


class Hit(NamedTuple):
    """Something found. ``where`` is what it is counted at: of a thing in pieces, the container of the first."""

    kind: str
    where: Path
    pieces: tuple[Piece, ...]


class ContentDetectors:
    """Detectors of secrets, personal data, signs of injection and hidden characters.

    The work for one value is bounded and counted, not timed, so equal values get equal answers; what takes long is for whoever
    asks to weigh (:mod:`remit_broker.hop.heavy`).
    ``finders`` are further detectors, such as Presidio; with them every string is searched one by one.
    """

    def __init__(self, finders: Sequence[Finder] = (), largest: int = 0) -> None:
        """``largest`` is in bytes of JSON: what a result may have that comes in parts is searched too."""
        self._caps = caps(largest)
        self._search = Search(finders)
        self._joins = Joins()
        secret, personal = (re2.compile(names.encode(), options()) for names in (KEYED, pii.KEYED))
        self._names_secret = _of_names(lambda name: secret.search(name) is not None)
        self._says = _of_names(lambda name: secret.search(name) is not None or personal.search(name) is not None)

    def scan(self, value: Any) -> tuple[Finding, ...]:
        """What is found in every string, name of a member and long number of ``value``.

        ``scan.over_cap`` says that there was more than is searched; ``scan.unredactable`` and ``scan.unredactable_pii``
        (…) that something was found in a name or a number.
        """
        found = quick(value, self._caps)
        if found is not None and not self._anything(found):
            return ()
        work = Work()
        hits, over = self._hits(value, work)
        places = _Places(self._shown)
        reported = [(hit.kind, places.of(hit.where)) for hit in hits]
        for hit in hits:
            if any(piece.part.sort != "text" for piece in hit.pieces):
                reported.append((unredactable(hit.kind), places.of(hit.where)))
        # INVARIANT: what is not searched is reported (test_more_than_is_searched_is_a_finding).
        if over or work.over:
            reported.append((OVER_CAP, ""))
        return summary(reported)

    def redact(self, value: Any, classes: Sequence[str]) -> tuple[Any, tuple[str, ...]]:
        """``value`` with what was found replaced by placeholders, and pointers to the strings that changed.

        ``classes`` are classes or kinds (``secret``, ``secret.jwt``). Equal texts get equal placeholders, such as
        ``[redacted:secret.jwt#1]``; of an encoded text the whole is replaced. Names of members and numbers stay as they are:
        what is in them cannot be replaced. Refuses TOO_LARGE for what is more than is searched.
        """
        redaction = Redaction()
        for rounds in range(_ROUNDS + 1):
            work = Work()
            hits, over = self._hits(value, work)
            if over or work.over:
                raise refusal(
                    Code.TOO_LARGE, "more than is searched, so it cannot be redacted", rule="redact.over_cap",
                    ask="send or ask for less at a time, nested less deeply",
                )  # fmt: skip
            wanted = [hit for hit in hits if within(hit.kind, classes)]
            # Where replacing keeps making new matches, nothing of the text is kept.
            value, changed = redaction.apply(value, _spans(wanted), whole=rounds == _ROUNDS)
            if not changed:
                break
        places = _Places(self._shown)
        shown = tuple(dict.fromkeys(places.of(path) for path in redaction.changed))
        return value, shown if len(shown) <= MAX_PLACES else (*shown[: MAX_PLACES - 1], "")

    def _anything(self, found: Quick) -> bool:
        """Whether there is anything to report: one pass over all strings together, so that clean content costs little."""
        if any(map(self._says, found.names)) or self._search.finders:
            return True
        work = Work()
        text = encode(BETWEEN.join([*found.texts, *found.names, *found.numbers]))
        work.allow(len(text))
        return bool(self._search.spans(text, work)) or self._joins.possible(found, work) or work.over

    def _hits(self, value: Any, work: Work) -> tuple[list[Hit], bool]:
        walk = Walk(self._caps)
        parts = list(walk.parts(value))
        # All together first: what is found in a string is found there too, and nearly every string is clean.
        row = Row(parts)
        work.allow(len(row.text))
        spans = self._search.spans(row.text, work)
        near = {index for span in spans for index in row.touched(span)}
        hits: list[Hit] = []
        for index, part in enumerate(parts):
            if (index in near or (part.label and self._says(part.label))) and work.spend(PASS):
                hits += [
                    Hit(span.kind, part.path, (Piece(part, span.start, span.end),)) for span in self.spans(part, work)
                ]
        for joined in () if walk.over else self._joins.find(parts, work):
            hits.append(Hit(joined.kind, _container(joined.pieces), joined.pieces))
        hits += _sentences(row, spans)
        return hits, walk.over

    def spans(self, part: Part, work: Work) -> list[Span]:
        """What is found in one part, also by what its name says it is."""
        spans = self._search.spans(part.text, work)
        if part.label and self._says(part.label):
            label = encode(part.label) + b": "
            more = self._search.spans(label + part.text, work)
            spans = apart([*spans, *(_shift(span, len(label)) for span in more if span.start >= len(label))])
            if not spans and self._names_secret(part.label) and part.sort == "text" and looks_assigned(part.text):
                spans = [Span(0, len(part.text), _PASSWORD)]
        return spans

    def _shown(self, token: str) -> str:
        # INVARIANT: a place never shows what was found, so a name that holds something is replaced in the pointer
        # (test_no_finding_and_no_place_contains_the_secret).
        return _PLACEHOLDER_NAME if self._search.spans(encode(token), Work()) else token


class Row:
    """Parts one after the other in one text."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        self.text = _BETWEEN.join(part.text for part in parts)
        lengths = (len(part.text) + len(_BETWEEN) for part in parts)
        self.starts = [0, *itertools.accumulate(lengths)][: len(parts)]

    def touched(self, span: Span) -> range:
        """The indices of the parts that a span has bytes of."""
        return range(max(0, bisect_right(self.starts, span.start) - 1), bisect_left(self.starts, span.end))

    def pieces(self, span: Span) -> tuple[Piece, ...]:
        """What a span has of the strings."""
        cut = (
            (self.parts[index], span.start - self.starts[index], span.end - self.starts[index])
            for index in self.touched(span)
        )
        return tuple(
            Piece(part, max(0, start), min(len(part.text), end))
            for part, start, end in cut
            if start < len(part.text) and part.sort == "text"
        )


def _sentences(row: Row, spans: Iterable[Span]) -> Iterable[Hit]:
    """Signs of injection that go from one string to the next."""
    for span in spans:
        if class_of(span.kind) == "injection" and len(pieces := row.pieces(span)) > 1:
            yield Hit(span.kind, _container(pieces), pieces)


def _shift(span: Span, by: int) -> Span:
    return Span(span.start - by, span.end - by, span.kind)


def _container(pieces: Sequence[Piece]) -> Path:
    """The nearest common ancestor of the pieces."""
    first = pieces[0].part.path[:-1]
    for piece in pieces[1:]:
        path = piece.part.path[:-1]
        size = next(
            (i for i, (a, b) in enumerate(zip(first, path, strict=False)) if a != b), min(len(first), len(path))
        )
        first = first[:size]
    return first


def _spans(hits: Iterable[Hit]) -> dict[Path, list[Span]]:
    found: dict[Path, list[Span]] = {}
    for hit in hits:
        for piece in hit.pieces:
            if piece.part.sort == "text":
                found.setdefault(piece.part.path, []).append(Span(piece.start, piece.end, hit.kind))
    return found


def _of_names(says: Callable[[bytes], bool]) -> Callable[[str], bool]:
    """``says`` of names of members that are no longer than names are, remembered.

    INVARIANT: only names of a bounded length are kept (test_long_names_of_members_are_not_kept).
    """
    remembered = functools.lru_cache(4096)(lambda name: says(encode(name)))
    return lambda name: len(name) <= _LONGEST_NAME and remembered(name)


class _Places:
    """Pointers to paths; once there are more than a record keeps, no more are made."""

    def __init__(self, shown: Any) -> None:
        self._shown = functools.lru_cache(4096)(shown)
        self._known: dict[Path, str] = {}

    def of(self, path: Path) -> str:
        if path not in self._known:
            if len(self._known) > 4 * MAX_PLACES:
                return ""
            # A longer name is not shown anyway.
            self._known[path] = pointer(
                [self._shown(name) if len(name) <= MAX_POINTER else name for name in path[:MAX_POINTER]]
            )
        return self._known[path]
