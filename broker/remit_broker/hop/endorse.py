"""The two ways down for labels: a person vouches for what is sent, or a result fits the narrow schema its endorser declares.

An error, a request for an input and what comes before the end are never endorsed.
"""

from __future__ import annotations

from typing import Any

from remit_broker.hop.hop import Hop
from remit_schemas.canonical import canonical
from remit_schemas.envelope import Error, InputRequired, Result
from remit_schemas.records import Finding


def vouched(hop: Hop) -> Hop:
    """The hop whose approval was given: these bytes go on without the labels that policy lets it take away."""
    taken = set(hop.judged.endorse) & set(hop.labels)
    return hop.with_(labels=tuple(sorted(set(hop.labels) - taken)), lowered=tuple(sorted(taken)))


def endorsed(hop: Hop, final: Result | Error | InputRequired | None, findings: tuple[Finding, ...]) -> Any:
    """The value as it goes on without the labels that its endorser may take; None where it keeps them all.

    INVARIANT: a result in which there is room for words is not endorsed, nor one in which anything was found
    (test_a_result_that_does_not_fit_keeps_its_labels).
    """
    endorser = hop.aim.endorser
    if endorser is None or endorser.name != hop.endorser or findings or not isinstance(final, Result) or final.failed:
        return None
    if hop.aim.kind == "agent":
        return final.value if endorser.schema.admits(final.value) else None
    value = final.value.get("structuredContent") if isinstance(final.value, dict) else None
    if not endorser.schema.admits(value):
        return None
    # Of a tool's result the text beside the structured content is free: it is written anew.
    text = {"type": "text", "text": canonical(value).decode()}
    return {"content": [text], "structuredContent": value, "isError": False}
