"""Clients, and what people allowed them, in key-value buckets of the broker's own account: the same for every broker of a bus.

Each value is sealed under a key of its own, drawn from ``results.key``; of codes and tokens there are digests alone. Whoever reads
the buckets, their files or a backup can neither act with what stands there nor learn who logged in.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import msgspec
from nacl.exceptions import CryptoError
from nacl.secret import SecretBox
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import KeyValueConfig, StorageType
from nats.js.errors import (
    APIError,
    BucketNotFoundError,
    KeyNotFoundError,
    KeyWrongLastSequenceError,
)
from nats.js.kv import KeyValue

from remit_schemas.errors import Code, refusal

BUCKETS: Final[dict[str, tuple[str, float, int]]] = {
    "client": ("oauth_clients", 90 * 86400.0, 64 << 20),
    "away": ("oauth_away", 1200.0, 64 << 20),
    "consent": ("oauth_away", 1200.0, 64 << 20),
    "connect": ("oauth_away", 1200.0, 64 << 20),
    "login": ("oauth_logins", 31 * 86400.0, 256 << 20),
}
"""Of each kind its bucket, the seconds after which what nobody touched is forgotten, and its bytes. What anybody can have written is
not with what people allowed: a flood of it keeps nobody from going on who has logged in.
"""
WAIT: Final = 5.0

T = TypeVar("T")


class LoginStore:
    """Values by kind and id. What is read has the revision that a change names, so of two changes one wins."""

    def __init__(self, master: bytes) -> None:
        self._master = master
        self._kv: dict[str, KeyValue] = {}

    async def start(self, js: JetStreamContext, replicas: int) -> None:
        """Open the buckets, or make them."""
        for kind, (bucket, seconds, most) in BUCKETS.items():
            try:
                self._kv[kind] = await js.key_value(bucket)
            except BucketNotFoundError:
                config = KeyValueConfig(
                    bucket=bucket, history=1, ttl=seconds, max_bytes=most, storage=StorageType.FILE, replicas=replicas
                )  # fmt: skip
                self._kv[kind] = await js.create_key_value(config)

    async def put(self, kind: str, id_: str, value: Any) -> None:
        """Keep something new. Refuses LEDGER_UNAVAILABLE."""
        async with _told():
            await self._kv[kind].create(f"{kind}.{id_}", self._sealed(kind, id_, value))

    async def get(self, kind: str, id_: str, type_: type[T]) -> tuple[T, int] | None:
        """What is kept and its revision; None where nothing is, or what is there cannot be opened. Refuses LEDGER_UNAVAILABLE."""
        async with _told():
            try:
                entry = await self._kv[kind].get(f"{kind}.{id_}")
            except KeyNotFoundError:
                return None
        try:
            plain = self._box(kind, id_).decrypt(entry.value or b"")
            return msgspec.json.decode(plain, type=type_), entry.revision or 0
        except (CryptoError, msgspec.DecodeError, ValueError):
            return None

    async def change(self, kind: str, id_: str, value: Any, revision: int) -> bool:
        """Replace what was read at ``revision``; False where it has changed since. Refuses LEDGER_UNAVAILABLE."""
        async with _told():
            try:
                await self._kv[kind].update(f"{kind}.{id_}", self._sealed(kind, id_, value), revision)
            except KeyWrongLastSequenceError:
                return False
        return True

    async def take(self, kind: str, id_: str, type_: type[T]) -> T | None:
        """What is kept, which from now on nobody else gets. Refuses LEDGER_UNAVAILABLE."""
        found = await self.get(kind, id_, type_)
        if found is None:
            return None
        value, revision = found
        # INVARIANT: of two that come with one state, one goes on (test_a_callback_counts_once): the change is a compare-and-set.
        if not await self.change(kind, id_, None, revision):
            return None
        await self.forget(kind, id_)
        return value

    async def forget(self, kind: str, id_: str) -> None:
        """Keep it no longer. Refuses LEDGER_UNAVAILABLE."""
        async with _told():
            await self._kv[kind].delete(f"{kind}.{id_}")

    def _sealed(self, kind: str, id_: str, value: Any) -> bytes:
        return bytes(self._box(kind, id_).encrypt(msgspec.json.encode(value)))

    def _box(self, kind: str, id_: str) -> SecretBox:
        # INVARIANT: what stands in one place is of no use in another (test_what_is_kept_of_logins_cannot_be_read_or_moved).
        return SecretBox(hmac.digest(self._master, f"remit oauth {kind} {id_}".encode(), hashlib.sha256))


@asynccontextmanager
async def _told() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(WAIT):
            yield
    except KeyWrongLastSequenceError:
        raise
    except (APIError, NatsError, OSError, TimeoutError) as error:
        raise refusal(
            Code.LEDGER_UNAVAILABLE, "logins cannot be read or written now", rule="oauth.store", ask="try again shortly",
            retry_after=1.0, cause=repr(error),
        ) from None  # fmt: skip
