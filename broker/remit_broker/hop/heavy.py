"""Work that takes the longer the larger a value is: it stops no other hop, and whoever asked for it pays in calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from remit_broker.hop.hop import Hop
from remit_broker.ports import Ports

T = TypeVar("T")

HEAVY: Final = 256 * 1024
"""Bytes of JSON from which on a value is read and searched aside, in a thread, where it takes several times as long. The worst of a
smaller one stops the other hops for about a second, less than the silence after which a replica refuses."""
_FREE: Final = 0.005
"""Seconds that any call may take of this."""
_CALL: Final = 0.001
"""Seconds that count as one call more: about what a hop costs in all."""


async def weighed(work: Callable[[], T], size: int, hop: Hop, ports: Ports) -> T:
    """What ``work`` on a value of ``size`` bytes gives. It must touch nothing that another hop could be changing meanwhile.

    INVARIANT: a caller cannot keep the broker busy with what takes long to search, however few and small its calls are: what is
    searched aside takes one thread, and nothing of the others' time; what is not counts as more calls
    (test_a_large_value_is_searched_aside, test_what_takes_long_to_search_counts_as_more_calls).
    """

    took = 0.0

    def timed() -> T:
        nonlocal took
        began = ports.room.processor()
        try:
            return work()
        finally:
            took = ports.room.processor() - began

    if size > HEAVY:
        return await ports.room.aside(work)
    try:
        return timed()
    finally:
        if took > _FREE:
            ports.rates.charge(hop.ask.caller, round(took / _CALL))
