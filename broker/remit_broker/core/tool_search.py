"""Finding a tool among many by words: BM25 over its name, title, description and the names of its arguments. Pure.

The words of a name count most. A word that is asked for also finds longer ones that begin with it, at less. The same words over the
same tools give the same answer, in the same order.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

MOST_WORDS: Final = 24
"""Words of a question that are looked for."""
_WORD: Final = re.compile(r"[^\W_]+")
_HUMP: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_NAME, _TITLE, _TEXT, _ARGUMENT = 6, 3, 1, 2
_K, _B = 1.2, 0.6
_BEGINS: Final = 0.4
_TEXT_WORDS: Final = 400


class Described(NamedTuple):
    """A tool as it is looked for."""

    name: str
    title: str
    description: str
    schema: dict[str, Any]


def words(text: str) -> list[str]:
    """The words of a text or of a name, in lower case: ``listOpen_issues`` is list, open and issues."""
    return [word.casefold() for part in _WORD.findall(text) for word in _HUMP.split(part) if word]


def found(question: str, tools: Sequence[Described], most: int) -> list[int]:
    """The places of at most ``most`` tools in which words of ``question`` are, the best first; without any word the first ones."""
    asked = list(dict.fromkeys(words(question)))[:MOST_WORDS]
    if not asked:
        return list(range(min(most, len(tools))))
    bags = [_bag(tool) for tool in tools]
    mean = (sum(bag.total() for bag in bags) / len(bags)) if bags else 1.0
    scores = [0.0] * len(tools)
    for word in asked:
        hits = {at: count for at, bag in enumerate(bags) if (count := _hits(word, bag))}
        rare = math.log(1 + (len(bags) - len(hits) + 0.5) / (len(hits) + 0.5))
        for at, count in hits.items():
            length = 1 - _B + _B * bags[at].total() / mean
            scores[at] += rare * count * (_K + 1) / (count + _K * length)
    order = sorted((at for at, score in enumerate(scores) if score), key=lambda at: (-scores[at], tools[at].name))
    return order[:most]


def _bag(tool: Described) -> Counter[str]:
    bag: Counter[str] = Counter()
    for weight, some in (
        (_NAME, words(tool.name)),
        (_TITLE, words(tool.title)),
        (_TEXT, words(tool.description)[:_TEXT_WORDS]),
        (_ARGUMENT, _arguments(tool.schema)),
    ):
        # Each word once: a description that says a word a hundred times is not found the sooner.
        for word in dict.fromkeys(some):
            bag[word] += weight
    return bag


def _arguments(schema: dict[str, Any]) -> Iterable[str]:
    named = schema.get("properties")
    return [word for name in named for word in words(str(name))] if isinstance(named, dict) else []


def _hits(word: str, bag: Counter[str]) -> float:
    whole = bag.get(word, 0)
    if whole or len(word) < 3:
        return float(whole)
    return _BEGINS * max((count for other, count in bag.items() if other.startswith(word)), default=0)
