"""Saying no: any exception becomes an answer, and every answer of that kind has a record."""

from __future__ import annotations

import asyncio

import msgspec

from remit_broker.core.times import rfc3339
from remit_broker.hop.hop import Hop, Refused
from remit_broker.ports import Ports
from remit_schemas.envelope import Error
from remit_schemas.errors import Code, Effect, ErrorBody, Refusal, refusal
from remit_schemas.grant import Grant
from remit_schemas.records import HopRefused, seal
from remit_schemas.subjects import is_own_inbox


async def refuse(hop: Hop, stage: str, error: BaseException, ports: Ports, resource: str = "") -> Refused:
    """Record the refusal, then answer it, unless there is no inbox of the caller's own to answer to."""
    ask, verdict = hop.ask, hop.verdict
    body = answer_of(error, ports, "none")
    grant = hop.grant or _worn_out(hop, body, ports)
    cause = error.cause if isinstance(error, Refusal) else repr(error)
    record = seal(
        HopRefused(
            tenant=ask.tenant,
            txn=grant.jti.txn if grant else None,
            hop=hop.id,
            parent=grant.jti.hop if grant else None,
            user=grant.claims.sub if grant else None,
            at=rfc3339(ports.clock.now()),
            by=ports.bus.replica,
            caller=ask.caller,
            resource=resource or str(ask.resource),
            stage=stage,
            code=body.code,
            message=body.message[:1024],
            rule=body.rule[:512],
            ask=body.ask[:512],
            jti=str(grant.jti) if grant else None,
            args_digest=hop.args_digest,
            decision=verdict.decision if verdict else None,
            findings=hop.findings[:32],
            link=hop.request.trace.traceparent if hop.request.trace else None,
            facts=hop.facts,
        )
    )
    record = msgspec.structs.replace(record, cause=cause[:512])
    await ports.refusals.write(record)
    ports.observer.refused(record)
    body = msgspec.structs.replace(body, txn=record.txn, hop=record.hop)
    if is_own_inbox(ask.reply, ask.caller):
        await ports.bus.answer(ask.reply, Error(error=body))
    return Refused(record=record, body=body)


def _worn_out(hop: Hop, body: ErrorBody, ports: Ports) -> Grant | None:
    """The grant of a call that came too late for it: genuine and the caller's own, so the record says whose it was."""
    if body.code not in (Code.GRANT_REVOKED, Code.GRANT_CLOSED):
        return None
    try:
        return ports.mint.verify(hop.request.grant, hop.ask.caller)
    except Refusal:
        return None


def answer_of(error: BaseException, ports: Ports, effect: Effect) -> ErrorBody:
    """Any exception as an answer: a refusal says what it says, a cancellation that, and a fault nothing but INTERNAL."""
    if isinstance(error, Refusal):
        return error.body
    if isinstance(error, asyncio.CancelledError):
        return refusal(
            Code.CANCELLED, "the broker stopped before this call ended", rule="broker.stopping",
            ask="look at the chain before calling again", effect=effect,
        ).body  # fmt: skip
    ports.observer.fault("stage", error)
    return refusal(
        Code.INTERNAL, "the broker failed to decide, so nothing was done" if effect == "none" else "the broker failed",
        rule="broker.fault", ask="tell an operator; the broker's log has the cause", effect=effect,
    ).body  # fmt: skip
