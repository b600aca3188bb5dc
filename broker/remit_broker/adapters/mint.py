"""The broker's signing key at work: minting, verifying with a memory of what was verified, and keyed digests."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import msgspec

from remit_broker.adapters.remembered import Remembered
from remit_broker.ports import Clock
from remit_schemas import jws
from remit_schemas.approval import Decided, sign
from remit_schemas.errors import Code, refusal
from remit_schemas.grant import Claims, Grant, mint, parse, verify
from remit_schemas.keys import KeySet, SigningKey

NOTICE: Final = "remit-notice+jwt"
"""The type of what signs a message of the webhook: it passes for no grant and no decision."""


REMEMBERED: Final = 24 * 1024 * 1024
"""Bytes of tokens whose signatures are remembered: 20,000 of an ordinary size."""


class KeyMint:
    """Signs with the current key; verifies with every key that is still published."""

    def __init__(self, issuer: str, key: SigningKey, keys: KeySet, clock: Clock, remember: int = REMEMBERED) -> None:
        self.issuer = issuer
        self.keys = keys
        self._key = key
        self._clock = clock
        self._verified: Remembered[str, Grant] = Remembered(remember)

    def mint(self, claims: Claims) -> str:
        """The compact JWS of ``claims``."""
        return mint(claims, self._key)

    def decided(self, decided: Decided) -> str:
        """The compact JWS of a person's decision."""
        return sign(decided, self._key)

    def notice(self, payload: Mapping[str, Any]) -> str:
        """The compact JWS with which a message to somebody outside is signed."""
        return jws.sign(msgspec.json.encode({"iss": self.issuer, **payload}), NOTICE, self._key)

    def verify(self, token: str, audience: str) -> Grant:
        """A genuine, unexpired grant for ``audience``. Only signatures are remembered; audience and times are asked anew."""
        now = self._clock.now()
        grant = self._verified.get(token)
        if grant is None or self.keys.get(grant.kid) is None:
            grant = verify(parse(token), self.keys, issuer=self.issuer, audience=audience, now=now)
            self._verified.put(token, grant, len(token))
            return grant
        if grant.claims.aud != audience:
            raise refusal(
                Code.GRANT_INVALID, "the grant is for another holder", rule="grant.audience", ask="use your own grant"
            )
        if now >= grant.claims.exp:
            raise refusal(
                Code.GRANT_EXPIRED, "the grant has expired", rule="grant.expired", ask="ask for a new one from its user"
            )
        return grant


class HmacDigester:
    """HMAC-SHA-256 with a key per txn, so that digests compare within a txn and say nothing across txns."""

    def __init__(self, master: bytes) -> None:
        @lru_cache(maxsize=10_000)
        def started(txn: str) -> hmac.HMAC:
            key = hmac.digest(master, b"remit digest " + txn.encode(), hashlib.sha256)
            return hmac.new(key, digestmod=hashlib.sha256)

        self._started = started

    def digest(self, txn: str, data: bytes) -> str:
        """Lower-case hex: a commitment to ``data``, whose salt is drawn from ``data`` itself with the key of the txn."""
        # INVARIANT: what opens one commitment says nothing of another, not even of a guess
        # (test_a_salt_opens_one_commitment_and_no_guess_at_another).
        return hmac.digest(self.salt(txn, data), data, hashlib.sha256).hex()

    def salt(self, txn: str, data: bytes) -> bytes:
        """What opens the commitment to ``data``, and nothing else."""
        mac = self._started(txn).copy()
        mac.update(data)
        return mac.digest()

    def mark(self, txn: str, data: bytes) -> str:
        """A keyed digest of what is never disclosed."""
        return self.salt(txn, data).hex()
