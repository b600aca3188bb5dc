"""Every string, name and long number of nested JSON, level by level, with its place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal, NamedTuple

MAX_BYTES: Final = 2 << 20
"""Bytes of strings and names searched in one value; twice what a message on the bus can hold."""

MAX_ITEMS: Final = 200_000
"""Strings, names and containers visited in one value."""

MAX_NESTING: Final = 200
"""Levels followed; more than the 64 that are accepted anywhere."""

BETWEEN: Final = "\n\f\n"
"""Stands between strings that are searched together. A sentence may go across it, nothing else does."""

SHORTEST_JOINED: Final = 15
"""Characters of the shortest thing that is recognised in pieces (an IBAN of Norway)."""

_DENSE: Final = 8
"""Bytes of JSON that an item takes at least in what is worth sending: more items than so many are too much to be searched."""

_LONG_NUMBER: Final = 10**8
_NAMING: Final = ("name", "key", "field", "label", "header")
"""Members that name what the member ``value`` beside them is."""

Path = tuple[str, ...]


class Part(NamedTuple):
    """One string, name or number of a value."""

    text: bytes
    path: Path
    """Of a name: the path of the member that it names."""
    sort: Literal["text", "name", "number"]
    label: str = ""
    """The name that says what it is: of its member, of the member that holds its array, or of a member beside it."""


class Quick(NamedTuple):
    """All there is in a value, without its places: enough to see that there is nothing to find."""

    texts: list[str]
    names: list[str]
    numbers: list[str]
    pairs: list[tuple[str, str]]
    """Names with the strings they name."""


def encode(text: str) -> bytes:
    """UTF-8. Lone surrogates are possible in JSON strings; they must neither hide anything nor stop the search."""
    return text.encode(errors="surrogatepass")


def naming(item: dict[Any, Any]) -> str:
    """What a member ``value`` is, where a member beside it says so."""
    if "value" in item:
        for name in _NAMING:
            if isinstance(said := item.get(name), str):
                return said
    return ""


class Caps(NamedTuple):
    """What is searched of one value at most."""

    size: int = MAX_BYTES
    items: int = MAX_ITEMS


def caps(largest: int) -> Caps:
    """The caps where a result may have ``largest`` bytes of JSON, because it comes in parts: it is searched too."""
    return Caps(max(MAX_BYTES, 2 * largest), max(MAX_ITEMS, largest // _DENSE))


def quick(value: Any, most: Caps) -> Quick | None:
    """All strings, names and long numbers; None where there is more than is searched."""
    found = Quick([], [], [], [])
    texts, names, numbers, pairs = found
    level, items, depth = [value], 1, 0
    while level:
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                texts.append(item)
            elif isinstance(item, dict):
                for key, member in item.items():
                    name = str(key)
                    names.append(name)
                    if isinstance(member, str) and len(name) + len(member) >= SHORTEST_JOINED:
                        pairs.append((name, member))
                if said := naming(item):
                    names.append(said)
                below.extend(item.values())
            elif isinstance(item, list | tuple):
                below.extend(item)
            elif type(item) is int and not -_LONG_NUMBER < item < _LONG_NUMBER:
                numbers.append(digits(item))
        items, depth, level = items + len(below), depth + 1, below
        if items + len(names) > most.items or depth > MAX_NESTING:
            return None
    return found if sum(map(len, texts)) + sum(map(len, names)) <= most.size else None


def digits(number: int) -> str:
    """The decimal form of a number; what has more digits than anything that is looked for is none."""
    return str(number) if -(10**32) < number < 10**32 else ""


class Walk:
    """Every part of a value, until the caps are reached; ``over`` says that they were."""

    def __init__(self, most: Caps) -> None:
        self.over = False
        self._most = most

    def parts(self, value: Any) -> Iterator[Part]:
        """Strings of one level follow each other in their order, so that neighbours are neighbours."""
        left_bytes, left_items, depth = *self._most, 0
        level: list[tuple[Any, Path, str]] = [(value, (), "")]
        while level:
            below: list[tuple[Any, Path, str]] = []
            for item, path, label in level:
                for part in _own(item, path, label):
                    if len(part.text) > left_bytes:
                        self.over = True
                        continue
                    left_bytes -= len(part.text)
                    yield part
                below += _below(item, path, label, left_items - len(below))
            left_items, depth, level = left_items - len(below), depth + 1, below
            # INVARIANT: what is not searched is reported (test_more_than_is_searched_is_a_finding).
            if left_items <= 0 or depth > MAX_NESTING:
                self.over = True
                return


def _own(item: Any, path: Path, label: str) -> Iterator[Part]:
    if isinstance(item, str):
        yield Part(encode(item), path, "text", label)
    elif isinstance(item, dict):
        for name in item:
            yield Part(encode(str(name)), (*path, str(name)), "name")
    elif type(item) is int and not -_LONG_NUMBER < item < _LONG_NUMBER:
        yield Part(digits(item).encode(), path, "number", label)


def _below(item: Any, path: Path, label: str, room: int) -> list[tuple[Any, Path, str]]:
    if isinstance(item, dict):
        said = naming(item)
        return [
            (below, (*path, str(name)), said if said and name == "value" else str(name))
            for name, below in list(item.items())[: room + 1]
        ]
    if isinstance(item, list | tuple):
        return [(below, (*path, str(index)), label) for index, below in enumerate(item[: room + 1])]
    return []
