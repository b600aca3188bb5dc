"""Where refused calls are recorded: a stream of their own, capped, the oldest discarded, floods written as one record.

A caller can neither grow nor block anybody's txn with calls that are refused. Within a window, the first of a kind is
written at once; those that follow are counted and written as one record with their count when the window ends. A caller
that varies its calls to be no two of a kind gets so many kinds a window; the rest of its refusals share one record.
"""

from __future__ import annotations

import asyncio
import collections
from typing import Any, Final

import msgspec
from nats.aio.client import Client

from remit_broker.adapters.jetstream import JetStream, Unreachable
from remit_schemas.records import HopRefused, plain, seal

STREAM: Final = "REFUSALS"
SUBJECTS: Final = "refusals.*"
LATELY: Final = 10.0
"""Seconds for which a refusal that could not be recorded counts as a trouble of now."""
MANY: Final = "**"
"""The resource of a record that counts refusals of several resources."""

_Kind = tuple[str, str | None, str, str, str, str]
_encode = msgspec.json.Encoder().encode


class RefusalStream:
    """Records refusals (port ``Refusals``).

    ``window`` is in seconds; ``kinds`` is how many different refusals of one caller are kept apart in a window.
    """

    def __init__(self, js: JetStream, *, window: float = 1.0, kinds: int = 64) -> None:
        self._js = js
        self._window = window
        self._kinds = kinds
        self._waiting: dict[_Kind, HopRefused | None] = {}
        self._of_caller: collections.Counter[str] = collections.Counter()
        self._timers: dict[_Kind, asyncio.TimerHandle] = {}
        self._writing: set[asyncio.Task[None]] = set()
        self.high = 0
        """The newest message of the stream that this replica has written."""
        self.lost = 0
        """Refusals (counted as calls) that could not be recorded since the start."""
        self._lost_at = float("-inf")

    @classmethod
    async def start(
        cls, nc: Client, *, replicas: int = 1, max_bytes: int = 256 * 1024**2, **limits: Any
    ) -> RefusalStream:
        """Make or check the stream. Raises :class:`~remit_broker.adapters.errors.ConfigError`."""
        js = JetStream(nc)
        await js.ensure(_settings(replicas, max_bytes), unequal_ok=frozenset({"max_bytes"}))
        return cls(js, **limits)

    async def write(self, record: HopRefused) -> None:
        """Record a refusal, or count it with those it repeats. Never raises: what cannot be recorded counts as lost."""
        kind = _kind(record)
        # INVARIANT: a flood of refusals is a few records (test_a_flood_of_refusals_is_a_few_records).
        if kind not in self._timers and self._of_caller[record.caller] >= self._kinds:
            record = msgspec.structs.replace(record, resource=MANY, txn=None, user=None, parent=None, jti=None)
            kind = _kind(record)
        if kind in self._timers:
            self._count(kind, record)
            return
        self._of_caller[record.caller] += 1
        self._timers[kind] = asyncio.get_running_loop().call_later(self._window, self._ended, kind)
        await self._publish(record)

    async def stop(self) -> None:
        """Write what was counted so far."""
        for kind, timer in list(self._timers.items()):
            timer.cancel()
            self._ended(kind)
        while self._writing:
            await asyncio.gather(*self._writing)

    def _count(self, kind: _Kind, record: HopRefused) -> None:
        before = self._waiting.get(kind)
        count = record.count + (before.count if before else 0)
        self._waiting[kind] = msgspec.structs.replace(before or record, count=count)

    def _ended(self, kind: _Kind) -> None:
        del self._timers[kind]
        self._of_caller[kind[2]] -= 1
        if not self._of_caller[kind[2]]:
            del self._of_caller[kind[2]]
        if counted := self._waiting.pop(kind, None):
            task = asyncio.get_running_loop().create_task(self._publish(counted))
            self._writing.add(task)
            task.add_done_callback(self._writing.discard)

    async def _publish(self, record: HopRefused) -> None:
        try:
            # Sealed without its cause, which does not leave with the evidence: what does leave can still be checked.
            sealed = seal(msgspec.structs.replace(record, cause=""))
            payload = _encode({"record": plain(msgspec.structs.replace(sealed, cause=record.cause))})
            ack = await self._js.publish(f"refusals.{record.tenant}", payload, {})
            if ack.error is not None or ack.stream != STREAM:
                self._lose(record)
            else:
                self.high = max(self.high, ack.seq)
                self._lost_at = float("-inf")
        except (Unreachable, ValueError):
            self._lose(record)

    def _lose(self, record: HopRefused) -> None:
        self.lost += record.count
        self._lost_at = asyncio.get_running_loop().time()

    @property
    def failing(self) -> bool:
        """Whether the last one could not be recorded, and that is not long ago: what is over is not what is wrong now."""
        return asyncio.get_running_loop().time() - self._lost_at < LATELY


def _kind(record: HopRefused) -> _Kind:
    """What makes two refusals the same: two txns (as verified) are never mixed."""
    return (record.tenant, record.txn, record.caller, record.resource, record.code.value, record.rule)


def _settings(replicas: int, max_bytes: int) -> dict[str, Any]:
    return {
        "name": STREAM,
        "subjects": [SUBJECTS],
        "retention": "limits",
        "storage": "file",
        "discard": "old",
        "num_replicas": replicas,
        "max_bytes": max_bytes,
        "deny_delete": True,
        "deny_purge": True,
        "allow_direct": False,
        "no_ack": False,
        "sealed": False,
    }
