"""Questions to the NATS servers themselves, asked over a connection in the system account."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from nats.aio.client import Client
from nats.errors import NoRespondersError

SECONDS: Final = 2.0
"""How long the first server has to answer."""

SETTLED: Final = 0.25
"""Seconds after the first server's answer in which the others of a cluster answer too."""


async def ask_all(sys: Client, subject: str, body: bytes = b"", clustered: bool = True) -> list[dict[str, Any]]:
    """The answers of all servers; there is at least one. Raises ``TimeoutError``, or what the client raises."""
    ear = await sys.subscribe(inbox := sys.new_inbox())
    try:
        await sys.publish(subject, body, reply=inbox)
        answers = [await ear.next_msg(timeout=SECONDS)]
        if not answers[0].data:  # a status: this is not the system account
            raise NoRespondersError
        while clustered:
            try:
                answers.append(await ear.next_msg(timeout=SETTLED))
            except TimeoutError:
                break
        return [msgspec.json.decode(answer.data) for answer in answers]
    finally:
        await ear.unsubscribe()


async def ask_one(sys: Client, server: str, what: str, body: bytes = b"") -> dict[str, Any]:
    """What one server says of itself (``VARZ``, ``CONNZ`` …), by its id. Raises ``TimeoutError``, or what the client raises."""
    answer = await sys.request(f"$SYS.REQ.SERVER.{server}.{what}", body, timeout=SECONDS)
    told: dict[str, Any] = msgspec.json.decode(answer.data)["data"]
    return told
