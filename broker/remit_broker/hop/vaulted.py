"""What is sent and what comes back, kept in the vault where there is one. A call is not refused because its content was not kept.

The record is the proof and commits to the content; the vault only has it to show. Were a full vault to stop calls, whoever fills it
would stop everybody's.
"""

from __future__ import annotations

from typing import Any

from remit_broker.core.vault import Kind, Slot
from remit_broker.hop.heavy import weighed
from remit_broker.hop.hop import Hop
from remit_broker.hop.inspect_result import content_of
from remit_broker.ports import Ports
from remit_schemas.canonical import canonical_document


async def keep_arguments(hop: Hop, ports: Ports) -> None:
    """Before the dispatch: of a hop that goes on the input, whose arguments were kept when it was opened."""
    if hop.parked is None:
        await _keep(hop, ports, "arguments", hop.args_digest, hop.args)
    else:
        await _keep(hop, ports, "arguments", hop.input_digest, hop.input)


async def keep_answer(hop: Hop, ports: Ports) -> None:
    """Before the close. What policy replaced something in is kept as it was released, and as it was before that nowhere."""
    seen = hop.result
    # A detached call is answered with a grant.
    if seen is None or hop.request.detach:
        return
    # INVARIANT: what policy takes out of an answer is in no vault (test_what_policy_takes_out_of_an_answer_is_in_no_vault).
    await _keep(hop, ports, "results", seen.released or seen.digest, content_of(seen.frame))


async def _keep(hop: Hop, ports: Ports, kind: Kind, digest: str, value: Any) -> None:
    if ports.vault is None or not digest:
        return
    slot = Slot(hop.ask.tenant, hop.held.claims.sub, kind, hop.ask.txn, hop.id, digest)
    size = hop.args_size if kind == "arguments" else hop.final_size
    data = await weighed(lambda: canonical_document(value), size, hop, ports)
    await ports.vault.put(slot, data)
