"""How bugs are planted: by name, and taken out again when it is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

Bug = Callable[[ExitStack], None]
BUGS: Final[dict[str, Bug]] = {}
OF_THE_WHOLE: Final[set[str]] = set()
"""Bugs in what the core of a broker does not have: runs of the core need not be tried."""


@contextmanager
def planted(name: str) -> Iterator[None]:
    """The product with the bug ``name``."""
    with ExitStack() as stack:
        BUGS[name](stack)
        yield


def bug(work: Bug) -> Bug:
    BUGS[work.__name__.replace("_", "-")] = work
    return work


def bug_of_the_whole(work: Bug) -> Bug:
    OF_THE_WHOLE.add(work.__name__.replace("_", "-"))
    return bug(work)


def put(stack: ExitStack, where: Any, name: str, value: Any) -> Any:
    """``value`` in the place of what was there, which is returned."""
    before = getattr(where, name) if not isinstance(where, type) else where.__dict__[name]
    setattr(where, name, value)
    stack.callback(setattr, where, name, before)
    return before
