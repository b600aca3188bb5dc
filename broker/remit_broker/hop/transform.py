"""Stage 7. Redact what policy says, validate again, and take the digest of the canonical JSON of what will be sent."""

from __future__ import annotations

from typing import Any

from remit_broker.hop.heavy import weighed
from remit_broker.hop.hop import Hop
from remit_broker.hop.inspect import content
from remit_broker.hop.label import labelled, marked
from remit_broker.ports import Ports
from remit_schemas.canonical import MAX_INTEGER, canonical_document
from remit_schemas.errors import Code, refusal


async def transform(hop: Hop, ports: Ports) -> Hop:
    """The arguments (and the input) as they will be sent, with their keyed digests."""
    args, given, meta = hop.request.args, hop.request.input, hop.request.meta
    redacted: tuple[str, ...] = ()
    if hop.judged.redact and hop.findings:
        classes = hop.judged.redact
        asked = content(hop)
        cleaned, redacted = await weighed(lambda: ports.detectors.redact(asked, classes), hop.size, hop, ports)
        args, given = (cleaned, None) if hop.request.resume is None else (cleaned["args"], cleaned["input"])
        if meta:
            cleaned, more = await weighed(lambda: ports.detectors.redact(meta, classes), hop.size, hop, ports)
            meta, redacted = cleaned, (*redacted, *(f"/_meta{where}" for where in more))
        ports.schemas.arguments(hop.aim.definition, hop.aim.input_schema, args)
        if not hop.held.scope.covers(str(hop.resource), args):
            raise refusal(
                Code.ARGUMENTS_INVALID, "with what policy removes, the arguments are outside the grant",
                rule="transform.scope", ask="send the call without what was found in it",
            )  # fmt: skip
        hop = marked(await labelled(hop, ports, hop.judged.redact))
    if hop.judged.approve:
        # INVARIANT: an approver sees all that is sent, so what is not shown is not sent
        # (test_what_a_person_approved_is_sent_without_meta).
        args, given = settled(args), settled(given)
        meta = {}
    data = _canonical(args)
    hop = hop.with_(
        args=args,
        meta=meta,
        redacted=redacted,
        args_digest=ports.digester.digest(hop.ask.txn, data),
        args_size=len(data),
    )
    if hop.request.resume is None:
        return hop
    data = _canonical(given)
    return hop.with_(input=given, input_digest=ports.digester.digest(hop.ask.txn, data), input_size=len(data))


def settled(value: Any) -> Any:
    """``value`` with each whole number written as one and members in order, so that the same digest means the same bytes.

    INVARIANT: what was approved is what is sent, to the form of a number (test_numbers_are_sent_in_the_form_that_was_approved).
    """
    if isinstance(value, dict):
        return {name: settled(value[name]) for name in sorted(value)}
    if isinstance(value, list):
        return [settled(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_INTEGER:
        return int(value)
    return value


def _canonical(value: Any) -> bytes:
    try:
        return canonical_document(value)
    except ValueError as error:
        raise refusal(
            Code.ARGUMENTS_INVALID, "the arguments have no canonical form", rule="transform.canonical",
            ask="use finite numbers and valid Unicode", cause=str(error),
        ) from None  # fmt: skip
