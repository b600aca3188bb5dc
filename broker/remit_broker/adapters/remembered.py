"""What was used last, bounded by weight and not by number: whoever asks decides how large one entry is."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Remembered(Generic[K, V]):
    """At most ``most`` of whatever unit the weights are in. What is heavier than all of it together is not kept."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self.weight = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """The value, which counts as used; None where there is none."""
        found = self._entries.get(key)
        if found is None:
            return None
        self._entries.move_to_end(key)
        return found[0]

    def put(self, key: K, value: V, weight: int) -> None:
        """Keep a value, instead of an earlier one; those that were not used for longest go."""
        self.drop(key)
        self._entries[key] = (value, weight)
        self.weight += weight
        while self.weight > self._most:
            _, (_, gone) = self._entries.popitem(last=False)
            self.weight -= gone

    def drop(self, key: K) -> None:
        """Forget it, where it is kept."""
        if (found := self._entries.pop(key, None)) is not None:
            self.weight -= found[1]

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.weight = 0
