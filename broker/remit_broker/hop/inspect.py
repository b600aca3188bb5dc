"""Stage 5. What do the arguments contain, and which labels do they carry? Findings only; policy decides. Ceilings bind."""

from __future__ import annotations

from typing import Any

import msgspec

from remit_broker.core.findings import REDACTABLE, class_of, unredactable
from remit_broker.hop.heavy import weighed
from remit_broker.hop.hop import Hop
from remit_broker.hop.label import labelled
from remit_broker.ports import Ports
from remit_schemas.records import Finding


async def inspect(hop: Hop, ports: Ports) -> Hop:
    """Findings in whatever the callee gets, and the labels of everything that has reached the caller so far in this txn."""
    if not hop.searched:
        found = await weighed(lambda: ports.detectors.scan(content(hop)), hop.size, hop, ports)
        if hop.request.meta:
            found += await weighed(lambda: _in_meta(hop, ports), hop.size, hop, ports)
        if hop.request.want.scopes:
            found += await weighed(lambda: _in_wishes(hop, ports), hop.size, hop, ports)
        hop = hop.with_(findings=found, searched=True)
    return await labelled(hop, ports)


def content(hop: Hop) -> Any:
    """What is searched, and what findings point into: the arguments, or both where an input comes with them."""
    request = hop.request
    return request.args if request.resume is None else {"args": request.args, "input": request.input}


def _in_meta(hop: Hop, ports: Ports) -> tuple[Finding, ...]:
    """INVARIANT: what a client writes into ``_meta`` carries nothing past the detectors (test_a_secret_in_meta_is_found)."""
    return tuple(
        msgspec.structs.replace(one, where=f"/_meta{one.where}") for one in ports.detectors.scan(hop.request.meta)
    )


def _in_wishes(hop: Hop, ports: Ports) -> tuple[Finding, ...]:
    """What is wished for the callee stands in its grant, where nothing can be replaced.

    INVARIANT: constraints of a scope carry nothing past the detectors (test_a_secret_in_a_wish_is_found).
    """
    found = ports.detectors.scan(msgspec.to_builtins(hop.request.want.scopes))
    kept = {unredactable(one.kind) for one in found if class_of(one.kind) in REDACTABLE}
    return (
        *(msgspec.structs.replace(one, where=f"/want/scopes{one.where}") for one in found),
        *(Finding(kind, "/want/scopes") for kind in sorted(kept)),
    )
