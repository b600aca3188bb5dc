"""What was sent and answered, encrypted for the user of each task, in a key-value bucket of the broker's own account.

It is sealed under a key of its own for each person and each place: whoever reads the bucket, its files or a backup learns how large
it was and when. What was moved to another place, or is of somebody who was erased, opens nothing.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from nacl.exceptions import CryptoError
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.api import KeyValueConfig, StorageType
from nats.js.errors import BucketNotFoundError, KeyNotFoundError
from nats.js.kv import KeyValue

from remit_broker.adapters.jetstream import NO_MESSAGE, ApiError, JetStream, Unreachable
from remit_broker.adapters.kept_results import HEAD, pieces
from remit_broker.adapters.secret_store import KeySealer
from remit_broker.adapters.subject_keys import SubjectKeys
from remit_broker.core.vault import Kind, Slot
from remit_schemas.errors import Code, Refusal, refusal

BUCKET: Final = "vault"
STREAM: Final = f"KV_{BUCKET}"
SECONDS: Final = 5.0
"""For one piece to be written or read."""

Keeps = Callable[[str, Kind], float]
"""For how many seconds something of a tenant is kept; 0: not at all."""


class KvVault:
    """One replica's view of the bucket (port ``Vault``)."""

    def __init__(self, keys: SubjectKeys, keeps: Keeps, fault: Callable[[str, BaseException], None]) -> None:
        self._keys, self._keeps, self._fault = keys, keeps, fault
        self.kept = self.failed = 0
        self._kv: KeyValue | None = None
        self._js: JetStream | None = None

    async def start(self, nc: Client, replicas: int, max_bytes: int) -> None:
        """Make the bucket, or give the one that is there this size."""
        js = nc.jetstream()
        self._js = JetStream(nc)
        try:
            self._kv = await js.key_value(BUCKET)
        except BucketNotFoundError:
            self._kv = await js.create_key_value(
                KeyValueConfig(
                    bucket=BUCKET, history=1, max_bytes=max_bytes, storage=StorageType.FILE, replicas=replicas
                )
            )
            return
        config = (await js.stream_info(STREAM)).config
        if config.max_bytes != max_bytes:
            await js.update_stream(config.evolve(max_bytes=max_bytes))

    async def put(self, slot: Slot, data: bytes) -> bool:
        """Keep ``data``. Whether it is kept; never raises."""
        if not self._keeps(slot.tenant, slot.kind):
            return False
        try:
            sealer = KeySealer(await self._keys.key(self._subject(slot)))
            place = self._place(slot)
            for number, piece in pieces(data):
                async with asyncio.timeout(SECONDS):
                    await self._bucket.put(f"{place}.{number}", sealer.seal(f"{place}.{number}", piece))
        except (NatsError, OSError, ValueError, TimeoutError) as error:
            self.failed += 1
            self._fault("vault.put", error)
            return False
        self.kept += 1
        return True

    async def get(self, slot: Slot) -> bytes | None:
        """What is kept, or None. Refuses LEDGER_UNAVAILABLE; INTERNAL for what lies there and was not sealed there."""
        place, found, count = self._place(slot), list[bytes](), 1
        try:
            key = await self._keys.find(self._subject(slot))
            # INVARIANT: what is left of somebody who was erased opens nothing, whoever brought it back
            # (test_what_was_restored_of_an_erased_subject_opens_nothing).
            if key is None:
                return None
            sealer = KeySealer(key)
            while len(found) < count:
                async with asyncio.timeout(SECONDS):
                    entry = await self._bucket.get(f"{place}.{len(found)}")
                # INVARIANT: sealed content opens where it was put, and nowhere else (test_moved_content_opens_nothing).
                piece = sealer.unseal(f"{place}.{len(found)}", entry.value or b"")
                _, count = HEAD.unpack_from(piece)
                found.append(piece[HEAD.size :])
        except KeyNotFoundError:
            return None
        except (CryptoError, struct.error, ValueError) as error:
            raise refusal(
                Code.INTERNAL, "what lies in the vault there was sealed for another place or with another key",
                rule="vault.sealed", ask="somebody moved it, brought it back, or exchanged the key file", cause=str(error),
            ) from None  # fmt: skip
        except (NatsError, OSError, TimeoutError) as error:
            raise _away(error) from None
        return b"".join(found)

    async def shred(self, tenant: str, user: str, between: Callable[[], None]) -> tuple[bool, int]:
        """Destroy the key of a person, then what lies under it: whether there was a key, and how many messages went.

        ``between`` is called between the two. Refuses LEDGER_UNAVAILABLE.
        """
        subject = self._keys.subject(tenant, user)
        try:
            had = await self._keys.destroy(subject)
        except OSError as error:
            raise _away(error) from None
        between()
        return had, await self._purge(f"{tenant}.{subject}.>")

    async def expire(self, tenant: str, kind: Kind, before: float, spared: frozenset[str]) -> int:
        """Forget what was kept before a moment (Unix seconds), but for the users ``spared``; how many messages went."""
        upto = await self._first_since(before)
        if upto <= 1:
            return 0
        if not spared:
            return await self._purge(f"{tenant}.*.{kind}.>", upto)
        # INVARIANT: what is held is not forgotten either (test_a_hold_keeps_what_would_be_forgotten).
        held = {self._keys.subject(tenant, user) for user in spared}
        subjects = await self._subjects(f"{tenant}.*.{kind}.>") - held
        return sum([await self._purge(f"{tenant}.{subject}.{kind}.>", upto) for subject in sorted(subjects)])

    async def _subjects(self, pattern: str) -> set[str]:
        """The names of the people of whom something lies there."""
        found: set[str] = set()
        offset = 0
        while True:
            info = await self._api(f"STREAM.INFO.{STREAM}", {"subjects_filter": _at(pattern), "offset": offset})
            page = info["state"].get("subjects") or {}
            found |= {name.split(".")[3] for name in page}
            offset += len(page)
            if not page or offset >= info.get("total", 0):
                return found

    async def _first_since(self, moment: float) -> int:
        """The place of the first message of the bucket from ``moment`` on: messages stand in the order of time."""
        state = (await self._api(f"STREAM.INFO.{STREAM}", {}))["state"]
        low, high = max(int(state["first_seq"]), 1), int(state["last_seq"]) + 1
        while low < high:
            middle = (low + high) // 2
            found = await self._from(middle)
            if found is None or found[0] >= high or found[1] >= moment:
                high = middle
            else:
                low = found[0] + 1
        return low

    async def _from(self, seq: int) -> tuple[int, float] | None:
        """Place and time of the first message from a place on; None where there is none: the last ones were erased."""
        try:
            got = await self._raw(f"STREAM.MSG.GET.{STREAM}", {"seq": seq, "next_by_subj": ">"})
        except ApiError as error:
            if error.code == NO_MESSAGE:
                return None
            raise _away(error) from None
        except Unreachable as error:
            raise _away(error) from None
        return int(got["message"]["seq"]), _time(got["message"]["time"])

    async def _purge(self, pattern: str, upto: int | None = None) -> int:
        """Forget what lies at ``pattern`` before the place ``upto``."""
        wanted: dict[str, Any] = {"filter": _at(pattern), **({} if upto is None else {"seq": upto})}
        return int((await self._api(f"STREAM.PURGE.{STREAM}", wanted))["purged"])

    async def _api(self, what: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            return await self._raw(what, body)
        except (Unreachable, ApiError) as error:
            raise _away(error) from None

    async def _raw(self, what: str, body: dict[str, Any]) -> dict[str, Any]:
        if self._js is None:
            raise RuntimeError("not started")
        return await self._js.api(what, body)

    def _subject(self, slot: Slot) -> str:
        return self._keys.subject(slot.tenant, slot.user)

    def _place(self, slot: Slot) -> str:
        return f"{slot.tenant}.{self._subject(slot)}.{slot.kind}.{slot.txn}.{slot.hop}.{slot.digest}"

    @property
    def _bucket(self) -> KeyValue:
        if self._kv is None:
            raise RuntimeError("not started")
        return self._kv


def _at(pattern: str) -> str:
    return f"$KV.{BUCKET}.{pattern}"


def _time(text: str) -> float:
    """Of a message, RFC 3339 with nanoseconds, which are cut."""
    return datetime.fromisoformat(text).timestamp()


def _away(error: BaseException) -> Refusal:
    return refusal(
        Code.LEDGER_UNAVAILABLE, "the vault cannot be read or written now", rule="vault.store", ask="try again shortly",
        retry_after=1.0, cause=repr(error),
    )  # fmt: skip
