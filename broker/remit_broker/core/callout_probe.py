"""A NATS user that may do nothing: with it, anyone who holds the callout's issuer key finds out whether the callout works.

Its key follows from the issuer's, so every process that answers for the callout knows it, and nobody else can have it. To be let
in with it shows that the server asks, that the request can be opened, and that the answer counts.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any, Final

from remit_broker.core import nkey

NAME: Final = "remit-probe"
SECONDS: Final = 10
"""Life of its permissions."""

PERMISSIONS: Final[dict[str, Any]] = {
    "pub": {"deny": [">"]}, "sub": {"deny": [">"]}, "subs": 0, "data": -1, "payload": 0,
}  # fmt: skip
"""INVARIANT: whoever is let in as the probe can neither say nor hear anything (test_the_probe_may_do_nothing)."""


def seed_of(issuer: str) -> str:
    """The probe's user seed that belongs to the seed of an issuer."""
    raw = hmac.digest(nkey.seed_bytes("A", issuer), b"remit callout probe", hashlib.sha256)
    return nkey.seed_text("U", raw)
