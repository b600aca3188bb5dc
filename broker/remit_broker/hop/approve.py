"""Stage 8. If policy demands an approval: is there one for exactly these bytes, this chain and this policy version?"""

from __future__ import annotations

from remit_broker.hop.hop import Hop
from remit_broker.ports import Ports
from remit_schemas.errors import Code, refusal


async def approve(hop: Hop, ports: Ports) -> Hop:
    """Nothing to do where no approval is demanded. A human is never waited for inside a hop."""
    if hop.judged.approve:
        raise refusal(
            Code.APPROVAL_REQUIRED,
            f"{hop.resource} needs a person's approval: {hop.judged.reason}",
            rule=", ".join(hop.judged.approve),
            ask="approvals cannot be answered yet; ask an operator to permit this call in a policy",
        )
    if hop.request.approval is not None:
        raise refusal(
            Code.APPROVAL_INVALID, "no approval of that id exists for this call", rule="approve.unknown",
            ask="send the call without an approval",
        )  # fmt: skip
    return hop
