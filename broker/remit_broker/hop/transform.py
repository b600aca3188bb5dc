"""Stage 7. Redact what policy says, validate again, and take the digest of exactly the bytes that will be sent."""

from __future__ import annotations

from remit_broker.hop.hop import Hop
from remit_broker.ports import Ports
from remit_schemas.canonical import canonical_document
from remit_schemas.errors import Code, refusal


async def transform(hop: Hop, ports: Ports) -> Hop:
    """The arguments as they will be sent, with their keyed digest."""
    args = hop.request.args
    redacted: tuple[str, ...] = ()
    if hop.judged.redact and hop.findings:
        args, redacted = ports.detectors.redact(args, hop.judged.redact)
        ports.schemas.arguments(hop.aim.definition, hop.aim.input_schema, args)
        if not hop.held.scope.covers(str(hop.resource), args):
            raise refusal(
                Code.ARGUMENTS_INVALID, "with what policy removes, the arguments are outside the grant",
                rule="transform.scope", ask="send the call without what was found in it",
            )  # fmt: skip
    try:
        data = canonical_document(args)
    except ValueError as error:
        raise refusal(
            Code.ARGUMENTS_INVALID, "the arguments have no canonical form", rule="transform.canonical",
            ask="use finite numbers and valid Unicode", cause=str(error),
        ) from None  # fmt: skip
    return hop.with_(
        args=args, redacted=redacted, args_digest=ports.digester.digest(hop.ask.txn, data), args_size=len(data)
    )
