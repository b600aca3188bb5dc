"""Stage 3. Does the target exist, is its definition accepted, do the arguments fit its schema?"""

from __future__ import annotations

from remit_broker.hop.hop import Hop
from remit_broker.ports import Ports
from remit_schemas.errors import Code, refusal


async def resolve(hop: Hop, ports: Ports) -> Hop:
    """The target, with the definition the arguments were checked against."""
    target = ports.registry.target(hop.resource)
    if target is None:
        near = ", ".join(ports.registry.nearest(hop.resource))
        raise refusal(
            Code.UNKNOWN_TARGET, f"nothing is attached as {hop.resource}", rule="resolve.unknown",
            ask=f"did you mean {near}?" if near else "attach it, or look with remit agents list and remit servers list",
        )  # fmt: skip
    if target.quarantined:
        raise refusal(
            Code.TARGET_QUARANTINED, f"the definition of {hop.resource} waits to be accepted: {target.quarantined}",
            rule="resolve.pin", ask=f"an operator can compare and accept it: remit servers accept {target.callee}",
        )  # fmt: skip
    # INVARIANT: a resource or a prompt that nobody has accepted is not asked for
    # (test_a_prompt_that_changed_is_neither_shown_nor_got, test_a_resource_that_changed_is_not_read).
    if why := target.shut.why(target.op, hop.request.args):
        raise refusal(
            Code.TARGET_QUARANTINED, f"what {target.callee} says of this waits to be accepted: {why}", rule="resolve.pin",
            ask=f"an operator can compare and accept it: remit servers accept {target.callee}",
        )  # fmt: skip
    ports.schemas.arguments(target.definition, target.input_schema, hop.request.args)
    # The revision this target was read at, not the one at which policy is asked later: a call that is decided again after a
    # lost race keeps its target, and dispatch must see that it is of the past.
    return hop.with_(target=target, registry=ports.registry.revision, args=hop.request.args)
