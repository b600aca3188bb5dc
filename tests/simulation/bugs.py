"""Planted bugs: each takes one guard out of the product while it lasts. The simulation must find every one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

BUGS: dict[str, Callable[[ExitStack], None]] = {}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """The product with the bug ``name``."""
    with ExitStack() as stack:
        BUGS[name](stack)
        yield
