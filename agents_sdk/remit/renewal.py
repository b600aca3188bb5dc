"""The grant of a hop that works longer than a grant lives: renewed in the background, at half of its life."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from remit.errors import Refused
from remit.hop import Hop
from remit.services import ask_service
from remit_schemas.errors import Code
from remit_schemas.grant import Grant

_ENDED: Final = (Code.GRANT_CLOSED, Code.GRANT_REVOKED, Code.GRANT_INVALID)
"""Refusals after which the hop cannot go on."""

_PAUSE: Final = 1.0
"""Seconds until another attempt, where the refusal names none."""


def needed(hop: Hop) -> bool:
    """Whether the hop may last longer than its grant."""
    return hop.deadline >= hop.grant.claims.exp + 1


async def keep(hop: Hop, verified: Callable[[str], Grant], stop: Callable[[], None]) -> None:
    """Renew the grant of ``hop`` until it is parked, has ended or has no more time; where it has ended, ``stop`` the skill.

    What it had before stays good for the calls that are on their way.
    """
    while needed(hop):
        claims = hop.grant.claims
        await asyncio.sleep(max((claims.iat + claims.exp) / 2 - time.time(), 0))
        while not hop.parked:
            try:
                left = claims.exp - time.time()
                told = await ask_service(
                    hop._link,
                    ("grant", "renew"),
                    {},
                    txn=hop.txn,
                    grant=hop.grant.token,
                    wait=max(1.0, min(left, 10.0)),
                )
                hop._renewed(verified(told["grant"]))
                break
            except Refused as no:
                if hop.parked or no.code is Code.DEADLINE_EXCEEDED:
                    return
                # INVARIANT: a skill does not go on when its hop has ended (test_a_skill_whose_hop_has_ended_is_stopped).
                if no.code in _ENDED:
                    stop()
                    return
                if time.time() >= claims.exp:
                    # Nothing can be called any more, but what is in hand may still be finished.
                    return
                await asyncio.sleep(_PAUSE if no.retry_after is None else max(no.retry_after, 0.05))
        else:
            return
