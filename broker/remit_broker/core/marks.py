"""What a task is found by: the names, codes, rules, labels and words of its records, each a mark that a listing looks up.

Pure. A record of a kind or of a shape that this version does not know has the marks that can be read of it, and is no error. Every
record of a broker goes through here, so what is said again and again is worked out once.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, Literal

Kind = Literal["user", "agent", "tool", "decision", "rule", "code", "label", "word", "cost"]
"""``cost`` has no marks of records: it is what the whole task was charged."""
Mark = tuple[Kind, str]

LONGEST: Final = 256
"""Characters of a value that count."""
WORDS: Final = 64
"""Words of one text that count."""
_WORD: Final = re.compile(r"\w{2,32}")
_LABELS: Final = ("labels", "brings", "lowered")
_TEXTS: Final = ("reason", "why", "message")
_PLAIN: Final[tuple[Kind, ...]] = ("code", "rule")


def marks(record: Mapping[str, Any]) -> list[Mark]:
    """The marks of one record of a txn, or of a refusal in it; some may be there twice."""
    kind, get = record.get("kind"), record.get
    found: list[Mark] = []
    if kind == "hop.opened":
        caller, resource = get("caller"), get("resource")
        if isinstance(caller, str) and isinstance(resource, str):
            found += _called(caller, resource)
    elif kind == "txn.opened":
        found += _each("user", [get("user")]) + _each("agent", [get("agent")])
    elif kind == "hop.refused":
        found.append(("decision", "deny"))
    for plain in _PLAIN:
        if value := get(plain):
            found += _each(plain, [value])
    if decision := get("decision"):
        found += _decided(decision)
    if needs := get("needs"):
        found += _each("rule", [need.get("rule") for need in _list(needs) if isinstance(need, dict)])
    for field in _LABELS:
        if labels := get(field):
            found += _each("label", labels)
    for field in _TEXTS:
        if isinstance(text := get(field), str) and text:
            found += _worded(text)
    return found


def words(text: str) -> list[str]:
    """The words of a text as they are marked: without case, compatible forms folded, each once, in order."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return list(dict.fromkeys(_WORD.findall(folded)))[:WORDS]


def levels(resource: str) -> list[str]:
    """A resource, and what stands for all of its server or agent, and for all of a kind: ``mcp/fs/read``, ``mcp/fs/``, ``mcp/``."""
    kind, name, *rest = [*resource.split("/", 2), ""]
    return [resource, f"{kind}/", *([f"{kind}/{name}/"] if rest else [])]


def digits(usd_micros: int) -> str:
    """The value of the mark ``cost``: how many decimal digits a cost has. In the order of costs."""
    return f"{len(str(usd_micros)):02d}"


@lru_cache(maxsize=4096)
def _called(caller: str, resource: str) -> tuple[Mark, ...]:
    found = _each("agent", [caller, *resource.split("/")[1:2]])
    return (*found, *_each("tool", levels(resource)))


@lru_cache(maxsize=1024)
def _worded(text: str) -> tuple[Mark, ...]:
    return tuple(("word", word) for word in words(text))


def _decided(decision: Any) -> list[Mark]:
    if not isinstance(decision, dict):
        return []
    return _each("decision", [decision.get("effect")]) + _each("rule", decision.get("rules"))


def _each(kind: Kind, values: Any) -> list[Mark]:
    """Of those of ``values`` that say something."""
    return [(kind, value[:LONGEST]) for value in _list(values) if isinstance(value, str) and value]


def _list(values: Any) -> list[Any] | tuple[Any, ...]:
    return values if isinstance(values, list | tuple) else ()
