"""What every client of the bus needs that stands on nats-py: to go on hearing after a flush that was given up.

The library (2.16) answers whoever flushed without asking whether they still wait. Where a flush was cancelled, or took too long,
the answer that comes all the same ends its reading: the connection stays, and hears nothing any more.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any


class Hearing:
    """Mixed in before ``nats.aio.client.Client``."""

    _pongs: list[Any]

    def _process_pong(self) -> Coroutine[Any, Any, None]:
        # INVARIANT: a flush that is given up leaves the connection hearing
        # (test_a_flush_that_is_given_up_leaves_the_connection_hearing).
        if self._pongs and self._pongs[0].done():
            given_up = self._pongs[0]
            self._pongs[0] = type(given_up)(loop=given_up.get_loop())
        return super()._process_pong()  # type: ignore[misc,no-any-return]
