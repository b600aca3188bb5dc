"""Waiting for a person: where the question goes, and how it comes back."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final, NamedTuple

from remit.errors import Refused, refused
from remit.plain import seconds
from remit.services import ask_service
from remit_schemas.errors import Code

_LOOK: Final = 30.0
"""Seconds that one question to the broker waits; then it is asked again."""

_PAUSE: Final = 0.5
"""Seconds until a broker that is away is asked again."""

Wait = bool | str | float


class Asked(NamedTuple):
    """What a person is asked: the id of the approval, where they decide, and what it is about."""

    id: str
    url: str
    message: str

    def request(self) -> dict[str, Any]:
        """As the request for an input of a hop that parks until it is decided."""
        return {"approval": {"id": self.id, "url": self.url, "message": self.message}}

    def answer(self) -> dict[str, Any]:
        """The input with which such a hop goes on."""
        return {"approval": {"id": self.id}}


def asked_by(no: Refused) -> Asked | None:
    """What a call waits for that was refused; None where it is not a person."""
    if no.code is not Code.APPROVAL_REQUIRED or no.approval is None:
        return None
    return Asked(no.approval, no.approval_url or "", no.body.message)


def asked_in(value: Any) -> Asked | None:
    """The same, in the request for an input, or in its answer."""
    about = value.get("approval") if isinstance(value, dict) and len(value) == 1 else None
    if not isinstance(about, dict) or not isinstance(about.get("id"), str):
        return None
    return Asked(about["id"], str(about.get("url", "")), str(about.get("message", "")))


async def decided(caller: Any, about: Asked, wait: Wait) -> None:
    """Return when it is decided, one way or the other, or void. Raises :class:`~remit.errors.Refused` when it is not in time."""
    until = caller.until if wait is True else min(caller.until, time.time() + seconds(wait))
    while (left := until - time.time()) > 0:
        try:
            await ask_service(
                caller._link,
                ("approval", "wait"),
                {"id": about.id},
                txn=caller.txn,
                grant=caller._grant,
                wait=min(left, _LOOK),
            )
            return
        except Refused as no:
            if no.rule in ("approval.waiting", "client.deadline"):
                continue
            # Too little time was left for this one question: what counts is the time for the answer.
            if not no.retryable and no.code is not Code.DEADLINE_EXCEEDED:
                raise
            await asyncio.sleep(min(no.retry_after or _PAUSE, left))
    raise refused(
        Code.APPROVAL_REQUIRED, f"nobody has decided in time: {about.message}", rule="client.approval",
        ask=f"have it approved, then repeat the identical call: {about.url or about.id}",
    )  # fmt: skip
