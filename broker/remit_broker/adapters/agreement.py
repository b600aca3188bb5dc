"""What all brokers on one bus must have in common, written down by the first and compared by every other at its start.

Two brokers with other grant keys refuse each other's grants, with another digest key they take a repeated call for a new one.
Neither would show until a hop crosses from one to the other, so a broker that differs does not start.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

import msgspec
from nats.js import JetStreamContext
from nats.js.errors import BucketNotFoundError, KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from remit_broker.adapters.errors import ConfigError
from remit_broker.adapters.keyfiles import KeyFiles

BUCKET: Final = "agreement"
KEY: Final = "keys"


class Shared(msgspec.Struct, frozen=True):
    """Nothing in it is secret: ``digest`` is a keyed digest of a constant, ``grants`` are the ids of the public keys that sign."""

    issuer: str
    digest: str
    grants: tuple[str, ...]


def shared(issuer: str, keys: KeyFiles) -> Shared:
    """What this broker has."""
    mark = hmac.digest(keys.digest_key, b"remit agreement", hashlib.sha256).hex()[:32]
    return Shared(issuer, mark, tuple(found.key.kid for found in keys.signers))


def differences(mine: Shared, theirs: Shared) -> list[str]:
    """In which a broker differs from the others; more grant keys than they have are no difference (a key was rotated in)."""
    found = []
    if mine.issuer != theirs.issuer:
        found.append(f"issuer is {mine.issuer}, the others have {theirs.issuer}")
    if mine.digest != theirs.digest:
        found.append("digest.key is another one")
    if missing := sorted(set(theirs.grants) - set(mine.grants)):
        found.append(f"the key {missing[0]} is missing")
    return found


async def agree(js: JetStreamContext, replicas: int, mine: Shared) -> None:
    """Write down what this broker has, or compare it with what the first one wrote. Raises :class:`ConfigError` where it differs."""
    kv = await _bucket(js, replicas)
    while True:
        try:
            entry = await kv.get(KEY)
        except KeyNotFoundError:
            try:
                await kv.create(KEY, msgspec.json.encode(mine))
            except KeyWrongLastSequenceError:
                continue  # another one was first
            return
        theirs = msgspec.json.decode(entry.value or b"", type=Shared)
        # INVARIANT: a broker whose keys are not those of the others does not start
        # (test_a_second_broker_with_other_keys_does_not_start).
        if found := differences(mine, theirs):
            raise ConfigError(
                f"this broker is not of one mind with those on the bus: {'; '.join(found)}",
                "bring the first broker's keys here: `remit keys export` there, `remit keys import` here; and give all one issuer",
            )
        if set(mine.grants) <= set(theirs.grants):
            return
        try:
            await kv.update(KEY, msgspec.json.encode(mine), entry.revision)
        except KeyWrongLastSequenceError:
            continue
        return


async def _bucket(js: JetStreamContext, replicas: int) -> KeyValue:
    try:
        return await js.key_value(BUCKET)
    except BucketNotFoundError:
        return await js.create_key_value(bucket=BUCKET, history=5, replicas=replicas)
