"""What may be used once, remembered by all brokers of a bus for a while: a key-value bucket that is only ever added to."""

from __future__ import annotations

import asyncio
from typing import Final

from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import KeyValueConfig, StorageType
from nats.js.errors import APIError, BucketNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from remit_schemas.errors import Code, refusal

BUCKET: Final = "oauth_once"
SECONDS: Final = 900.0
"""For which something that was used is remembered: longer than anything that may be used once lives."""
BYTES: Final = 64 << 20
WAIT: Final = 5.0


class KvOnce:
    """Port ``Once`` of the OAuth endpoints."""

    def __init__(self) -> None:
        self._kv: KeyValue | None = None

    async def start(self, js: JetStreamContext, replicas: int) -> None:
        """Open the bucket, or make it."""
        try:
            self._kv = await js.key_value(BUCKET)
        except BucketNotFoundError:
            config = KeyValueConfig(
                bucket=BUCKET, history=1, ttl=SECONDS, max_bytes=BYTES, storage=StorageType.FILE, replicas=replicas
            )
            self._kv = await js.create_key_value(config)

    async def take(self, key: str) -> bool:
        """Whether nobody has taken ``key`` before. Refuses LEDGER_UNAVAILABLE where nobody can tell: then it counts as used."""
        if self._kv is None:
            raise RuntimeError("not started")
        try:
            async with asyncio.timeout(WAIT):
                await self._kv.create(key, b"1")
        except KeyWrongLastSequenceError:
            return False
        except (APIError, NatsError, OSError, TimeoutError) as error:
            raise refusal(
                Code.LEDGER_UNAVAILABLE, "nobody can tell now what was used before", rule="oauth.once", ask="try again shortly",
                retry_after=1.0, cause=repr(error),
            ) from None  # fmt: skip
        return True
