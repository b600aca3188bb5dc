"""The broker's user in the account of each tenant: its key follows from the one of the default tenant's account.

So a tenant can be added without another key file, and every replica with the same keys is the same user everywhere. A user's
nkey can stand in one account only, hence one for each.
"""

from __future__ import annotations

import hashlib
import hmac

from remit_broker.core import nkey
from remit_schemas.names import DEFAULT_TENANT


def seed_of(bus: str, tenant: str) -> str:
    """The seed of the broker's user in a tenant's account; ``bus`` is that in the default tenant's."""
    if tenant == DEFAULT_TENANT:
        return bus
    raw = hmac.digest(nkey.seed_bytes("U", bus), b"remit tenant " + tenant.encode(), hashlib.sha256)
    return nkey.seed_text("U", raw)
