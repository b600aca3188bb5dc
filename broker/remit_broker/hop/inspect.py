"""Stage 5. What do the arguments contain, and which labels do they carry? Findings only; policy decides."""

from __future__ import annotations

from typing import Any

from remit_broker.hop.hop import Hop
from remit_broker.ports import Ports


async def inspect(hop: Hop, ports: Ports) -> Hop:
    """Findings in the arguments (and in the input), and the labels of everything that has reached the caller so far in this txn."""
    return hop.with_(findings=ports.detectors.scan(content(hop)), labels=tuple(sorted(hop.above.labels)))


def content(hop: Hop) -> Any:
    """What is searched, and what findings point into: the arguments, or both where an input comes with them."""
    request = hop.request
    return request.args if request.resume is None else {"args": request.args, "input": request.input}
