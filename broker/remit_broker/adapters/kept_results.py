"""Ends of hops that their callers asked to be kept, and arguments that wait for an approval: encrypted, for a while, in key-value
buckets of the broker's own account.

What is kept is sealed under a key of its own for each hop (or approval), drawn from ``results.key``: whoever reads the bucket, its
files or a backup learns how large it was, and no more. A large one lies in several pieces, of which the first is written last:
what has a first piece is whole.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import struct
from collections.abc import Callable, Iterator
from typing import Final

from nacl.exceptions import CryptoError
from nacl.secret import SecretBox
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import KeyValueConfig, StorageType
from nats.js.errors import BucketNotFoundError, KeyNotFoundError
from nats.js.kv import KeyValue

BUCKET: Final = "results"
ARGUMENTS: Final = "approvals"
"""The bucket of what people are asked about."""
PIECE: Final = 512 * 1024
"""Bytes of a result in one message."""
SECONDS: Final = 5.0
"""For one piece to be written or read."""

HEAD: Final = struct.Struct(">II")
"""Before each piece: its number, and how many there are. It is encrypted with it."""


class KvResults:
    """One replica's view of a bucket (port ``Results``, and that of ``ARGUMENTS`` port ``Kept``)."""

    def __init__(self, master: bytes, fault: Callable[[str, BaseException], None], bucket: str = BUCKET) -> None:
        self._master, self._fault, self._name = master, fault, bucket
        # Of each bucket other keys: what lies in one is of no use in another.
        self._purpose = b"remit result " if bucket == BUCKET else f"remit {bucket} ".encode()
        self._kv: KeyValue | None = None

    async def start(self, js: JetStreamContext, replicas: int, seconds: float, max_bytes: int) -> None:
        """Make the bucket, or give the one that is there these settings. ``seconds`` is how long a result is kept."""
        try:
            self._kv = await js.key_value(self._name)
        except BucketNotFoundError:
            self._kv = await js.create_key_value(
                KeyValueConfig(
                    bucket=self._name, history=1, ttl=seconds, max_bytes=max_bytes, storage=StorageType.FILE, replicas=replicas
                )
            )  # fmt: skip
            return
        config = (await js.stream_info(f"KV_{self._name}")).config
        if (config.max_age, config.max_bytes) != (seconds, max_bytes):
            await js.update_stream(config.evolve(max_age=seconds, max_bytes=max_bytes))

    async def put(self, at: tuple[str, str, str], data: bytes) -> bool:
        """Keep ``data`` for the hop ``at`` (tenant, txn, hop). Whether it is kept; never raises."""
        box, key = self._box(at), _key(at)
        try:
            for number, piece in pieces(data):
                async with asyncio.timeout(SECONDS):
                    await self._bucket.put(f"{key}.{number}", box.encrypt(piece))
        except (NatsError, OSError, TimeoutError) as error:
            self._fault(f"{self._name}.put", error)
            return False
        return True

    async def get(self, at: tuple[str, str, str]) -> bytes | None:
        """What is kept for a hop; None where nothing is, or no longer, or cannot be read. Never raises."""
        box, key = self._box(at), _key(at)
        found: list[bytes] = []
        count = 1
        try:
            while len(found) < count:
                async with asyncio.timeout(SECONDS):
                    entry = await self._bucket.get(f"{key}.{len(found)}")
                piece = box.decrypt(entry.value or b"")
                number, count = HEAD.unpack_from(piece)
                # INVARIANT: pieces count only in their own place of their own result (test_pieces_cannot_be_exchanged).
                if number != len(found):
                    raise CryptoError("a piece stands in the place of another")
                found.append(piece[HEAD.size :])
        except KeyNotFoundError:
            return None
        except (NatsError, OSError, TimeoutError, CryptoError, struct.error) as error:
            self._fault(f"{self._name}.get", error)
            return None
        return b"".join(found)

    async def forget(self, at: tuple[str, str, str]) -> None:
        """Keep it no longer. Best effort, never raises: it goes by itself when its time is over."""
        try:
            async with asyncio.timeout(SECONDS):
                # Of a large one the first piece, without which the others are of no use, and cannot be put together.
                await self._bucket.purge(f"{_key(at)}.0")
        except (NatsError, OSError, TimeoutError) as error:
            self._fault(f"{self._name}.forget", error)

    def _box(self, at: tuple[str, str, str]) -> SecretBox:
        return SecretBox(hmac.digest(self._master, self._purpose + ".".join(at).encode(), hashlib.sha256))

    @property
    def _bucket(self) -> KeyValue:
        if self._kv is None:
            raise RuntimeError("not started")
        return self._kv


def _key(at: tuple[str, str, str]) -> str:
    return f"{at[0]}.{at[1]}.{at[2]}"


def pieces(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The pieces with their numbers, the first one last."""
    count = max(1, -(-len(data) // PIECE))
    for number in (*range(1, count), 0):
        yield number, HEAD.pack(number, count) + data[number * PIECE : (number + 1) * PIECE]
