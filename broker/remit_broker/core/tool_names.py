"""What a tool or a prompt is called where all servers are one: at most 60 letters, digits, ``_`` and ``-``. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

MAX_NAME: Final = 60
"""Characters of such a name: clients put a prefix of their own before it, and allow 64 in all."""
JOIN: Final = "__"
_ODD: Final = re.compile(r"[^A-Za-z0-9_-]")


def joined(server: str, op: str) -> str:
    """The name of what ``server`` calls ``op``.

    A name that has other letters, or is longer, gets a few digits of its digest, so that two such names stay two.
    """
    plain = f"{server}{JOIN}{op}"
    made = _ODD.sub("_", plain)
    if made == plain and len(made) <= MAX_NAME:
        return made
    mark = hashlib.sha256(plain.encode()).hexdigest()[:8]
    return f"{made[: MAX_NAME - 9]}_{mark}"


class Named(NamedTuple):
    """One thing of one server, by its own name there."""

    server: str
    name: str


class Names:
    """Which tools, or which prompts, have a name."""

    def __init__(self, things: Iterable[Named]) -> None:
        self._of: dict[str, list[Named]] = {}
        for one in dict.fromkeys(things):
            self._of.setdefault(joined(*one), []).append(one)

    def only(self, name: str) -> Named | None:
        """What has this name, and shares it with nothing; None where that is nothing.

        INVARIANT: of two tools with one name neither is called (test_of_two_tools_with_one_name_neither_is_called_and_it_is_said).
        """
        same = self._of.get(name, ())
        return same[0] if len(same) == 1 else None

    def shared(self) -> Mapping[str, list[Named]]:
        """Names of several, and whose they are."""
        return {name: same for name, same in self._of.items() if len(same) > 1}
