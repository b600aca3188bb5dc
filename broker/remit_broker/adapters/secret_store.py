"""Secrets of users for MCP servers behind the broker: sealed, in a key-value bucket of the broker's own account.

They are set, replaced, removed and used; nothing gives one back to whoever set it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import msgspec
from nacl.exceptions import CryptoError
from nacl.secret import SecretBox
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import KeyValueConfig, StorageType
from nats.js.errors import APIError, BucketNotFoundError, KeyNotFoundError
from nats.js.kv import KeyValue

from remit_broker.adapters.errors import ConfigError
from remit_broker.adapters.private_files import read_private
from remit_broker.core.backends import Secret
from remit_schemas.base64url import decode
from remit_schemas.errors import Code, Refusal, refusal

BUCKET: Final = "secrets"
BYTES: Final = 256 << 20
WAIT: Final = 5.0
# What a server tells of at once.
LISTED: Final = 100_000


class Sealer(Protocol):
    """What secrets are sealed with: a key file here, something else where an operator has it."""

    def seal(self, place: str, plain: bytes) -> bytes:
        """Sealed for ``place``, and for no other."""

    def unseal(self, place: str, sealed: bytes) -> bytes:
        """Raises ``CryptoError`` for what was sealed elsewhere, or with another key."""


class KeySealer:
    """Seals under a key of its own for each place, drawn from a master key."""

    def __init__(self, master: bytes) -> None:
        self._master = master

    @classmethod
    def of(cls, file: Path | None, otherwise: bytes) -> KeySealer:
        """With the key of ``file`` (32 bytes of base64url, mode 0600), else drawn from ``otherwise``. Raises :class:`ConfigError`."""
        if file is None:
            return cls(hmac.digest(otherwise, b"remit secrets", hashlib.sha256))
        try:
            key = decode(read_private(file).strip())
        except ValueError:
            key = b""
        if len(key) != 32:
            raise ConfigError(f"{file} is no key: 32 bytes of base64url", "draw one, mode 0600, and keep a copy of it")
        return cls(key)

    def seal(self, place: str, plain: bytes) -> bytes:
        """Sealed for ``place``."""
        return bytes(self._box(place).encrypt(plain))

    def unseal(self, place: str, sealed: bytes) -> bytes:
        """The content."""
        return bytes(self._box(place).decrypt(sealed))

    def _box(self, place: str) -> SecretBox:
        # INVARIANT: a secret in another user's place is none (test_a_secret_is_its_users_alone).
        return SecretBox(hmac.digest(self._master, place.encode(), hashlib.sha256))


class _Opened(NamedTuple):
    """What there is once the bucket is open."""

    js: JetStreamContext
    kv: KeyValue


class SecretStore:
    """By tenant, server and user."""

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer
        self._opened: _Opened | None = None

    async def start(self, js: JetStreamContext, replicas: int) -> None:
        """Open the bucket, or make it."""
        try:
            kv = await js.key_value(BUCKET)
        except BucketNotFoundError:
            config = KeyValueConfig(
                bucket=BUCKET, history=1, max_bytes=BYTES, storage=StorageType.FILE, replicas=replicas
            )
            kv = await js.create_key_value(config)
        self._opened = _Opened(js, kv)

    async def put(self, tenant: str, secret: Secret) -> None:
        """Set one. Refuses LEDGER_UNAVAILABLE."""
        key = _key(tenant, secret.server, secret.user)
        sealed = self._sealer.seal(key, msgspec.json.encode(secret))
        try:
            async with asyncio.timeout(WAIT):
                await self._started.kv.put(key, sealed)
        except (APIError, NatsError, OSError, TimeoutError) as error:
            raise _away(error) from None

    async def get(self, tenant: str, server: str, user: str) -> Secret | None:
        """One, or None. Refuses LEDGER_UNAVAILABLE; INTERNAL for what another key sealed."""
        return await self._open(_key(tenant, server, user))

    async def remove(self, tenant: str, server: str, user: str) -> bool:
        """Whether there was one. Refuses LEDGER_UNAVAILABLE."""
        key = _key(tenant, server, user)
        if await self._open(key) is None:
            return False
        try:
            async with asyncio.timeout(WAIT):
                await self._started.kv.purge(key)
        except (APIError, NatsError, OSError, TimeoutError) as error:
            raise _away(error) from None
        return True

    async def all(self, tenant: str) -> list[Secret]:
        """Those of a tenant, without their values."""
        # Not keys(): the client takes a bucket for empty whose first message comes while it asks how many there are.
        before = f"$KV.{BUCKET}."
        try:
            async with asyncio.timeout(WAIT):
                info = await self._started.js.stream_info(f"KV_{BUCKET}", subjects_filter=f"{before}{tenant}.>")
        except (APIError, NatsError, OSError, TimeoutError) as error:
            raise _away(error) from None
        subjects = info.state.subjects or {}
        if len(subjects) >= LISTED:
            raise refusal(
                Code.TOO_LARGE, f"a tenant has {LISTED} secrets or more: too many to list", rule="secrets.listed",
                ask="set and remove them by server and user",
            )  # fmt: skip
        found = [await self._open(subject.removeprefix(before)) for subject in subjects]
        kept = [msgspec.structs.replace(one, value="") for one in found if one is not None]
        return sorted(kept, key=lambda one: (one.server, one.user))

    async def _open(self, key: str) -> Secret | None:
        try:
            async with asyncio.timeout(WAIT):
                entry = await self._started.kv.get(key)
        except KeyNotFoundError:
            return None
        except (APIError, NatsError, OSError, TimeoutError) as error:
            raise _away(error) from None
        try:
            return msgspec.json.decode(self._sealer.unseal(key, entry.value or b""), type=Secret)
        except (CryptoError, msgspec.DecodeError, ValueError):
            raise refusal(
                Code.INTERNAL, "a secret cannot be opened: it was sealed with another key", rule="secrets.sealed",
                ask="bring back the key file, or set the secret again",
            ) from None  # fmt: skip

    @property
    def _started(self) -> _Opened:
        if self._opened is None:
            raise RuntimeError("not started")
        return self._opened


def _key(tenant: str, server: str, user: str) -> str:
    """Names of users hold what no key may, and are nobody's business."""
    return f"{tenant}.{server}.{hashlib.sha256(user.encode()).hexdigest() if user else 'service'}"


def _away(error: BaseException) -> Refusal:
    return refusal(
        Code.LEDGER_UNAVAILABLE, "secrets cannot be read or written now", rule="secrets.store", ask="try again shortly",
        retry_after=1.0, cause=type(error).__name__,
    )  # fmt: skip
