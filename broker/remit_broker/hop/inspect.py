"""Stage 5. What do the arguments contain, and which labels do they carry? Findings only; policy decides."""

from __future__ import annotations

from remit_broker.hop.hop import Hop
from remit_broker.ports import Ports


async def inspect(hop: Hop, ports: Ports) -> Hop:
    """Findings in the arguments, and the labels of everything that has reached the caller so far in this txn."""
    return hop.with_(findings=ports.detectors.scan(hop.request.args), labels=tuple(sorted(hop.above.labels)))
