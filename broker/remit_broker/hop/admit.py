"""Stage 1. Who is calling, may it be answered there, is it asking too often or too much, is there still time?"""

from __future__ import annotations

import msgspec

from remit_broker.hop.hop import Hop
from remit_broker.ports import Ports
from remit_schemas.envelope import Request, parse_request
from remit_schemas.errors import Code, refusal
from remit_schemas.subjects import is_own_inbox

DEFAULT_TTL = 60.0
"""Life in seconds of a hop whose request says nothing of it."""

LIGHT = 8 * 1024
"""Bytes of an ordinary request; a larger one counts as several."""

_ITEMS = 128
"""So many items of JSON take about as long to read and search as an ordinary request takes in all."""


def weight(data: bytes) -> int:
    """How many ordinary requests this one counts as, from its size and its commas and brackets: before anything reads it.

    INVARIANT: nobody keeps the broker busy with what is large and refused
    (test_large_requests_without_a_grant_use_up_the_rate_of_their_caller).
    """
    if len(data) <= LIGHT:
        return 1
    return 1 + len(data) // LIGHT + (data.count(b",") + data.count(b"[") + data.count(b"{")) // _ITEMS


async def admit(hop: Hop, ports: Ports) -> Hop:
    """The envelope, parsed; the deadline in Unix milliseconds and as a monotonic instant.

    The caller is taken from the subject the NATS server let it publish on, never from what the envelope says.
    """
    ask = hop.ask
    if not is_own_inbox(ask.reply, ask.caller):
        raise refusal(
            Code.MALFORMED, "the reply subject is not an inbox of the caller", rule="admit.reply",
            ask="send the request with your own private inbox as its reply subject",
        )  # fmt: skip
    if ports.registry.principal(ask.caller) is None:
        raise refusal(
            Code.UNAUTHENTICATED, f"{ask.caller} is not registered any more", rule="admit.caller",
            ask="ask an operator for: remit agents add " + ask.caller,
        )  # fmt: skip
    if wait := ports.rates.admit(ask.caller, weight(ask.data)):
        raise refusal(
            Code.RATE_LIMITED, f"{ask.caller} asks too often", rule="admit.rate",
            ask=f"wait {wait:.3f} s before the next call", retry_after=round(wait, 3),
        )  # fmt: skip
    request = parse_request(ask.data)
    _coherent(request, ask.hop)
    now_ms = int(ask.at * 1000)
    deadline = now_ms + _life_ms(request, ports, now_ms)
    if deadline <= now_ms:
        raise refusal(
            Code.DEADLINE_EXCEEDED, "the request arrived after its deadline", rule="admit.deadline",
            ask="send it again with a later deadline; if clocks differ, synchronise them",
        )  # fmt: skip
    # What was parsed is not kept beside what it became, for as long as the hop takes.
    return hop.with_(
        ask=msgspec.structs.replace(ask, data=b""),
        size=len(ask.data),
        request=request,
        deadline=deadline,
        mono_deadline=ask.mono + (deadline - now_ms) / 1000,
    )


def _coherent(request: Request, hop: str) -> None:
    """An input belongs to a resumption, what is resumed cannot be detached, and on ``ctl.…`` a hop is resumed, nothing else."""
    if hop and request.resume != hop:
        why, ask = "the subject names another hop than resume", f"send resume: {hop}, or call on req.…"
    elif request.input is not None and request.resume is None:
        why, ask = "an input without a hop that it is for", "name the parked hop in resume"
    elif request.resume is not None and request.detach:
        why, ask = "a call is either resumed or detached", "leave out detach"
    else:
        _keepable(request)
        return
    raise refusal(Code.MALFORMED, f"{why}", rule="admit.resume", ask=ask)


def _keepable(request: Request) -> None:
    if request.keep and ((request.key is None and request.resume is None) or request.detach):
        raise refusal(
            Code.MALFORMED, "a result is kept for a call that has an idempotency key, and a grant never", rule="admit.keep",
            ask="send a key with it, or do without keep",
        )  # fmt: skip


def _life_ms(request: Request, ports: Ports, now_ms: int) -> int:
    """How long the hop may take: what is wished, at most ``hop_ttl``. Its caller's own deadline narrows it later."""
    # The life of a detached task is not that of the call which asks for it.
    ttl_ms = None if request.detach else request.want.ttl_ms
    wishes = [request.deadline - now_ms] if request.deadline is not None else []
    wishes += [ttl_ms] if ttl_ms is not None else []
    return min(*(wishes or [int(DEFAULT_TTL * 1000)]), int(ports.limits.hop_ttl * 1000))
