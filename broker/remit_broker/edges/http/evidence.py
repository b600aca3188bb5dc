"""``GET /api/chains/{txn}/evidence``: what of it is asked for, and what is left out of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.requests import Request

from remit_broker.core.withholding import GROUPS, withhold
from remit_broker.edges.http.desk import PARAMETER
from remit_broker.edges.http.told import EvidenceQuery
from remit_schemas.errors import Code, refusal

if TYPE_CHECKING:
    from remit_broker.edges.http.desk import Call

NOTHING: Final = "nothing"
"""Said for ``withhold``: the file is whole, also where its user was erased."""
OF_THE_ERASED: Final = ("user", "claims")


def wanted(request: Request) -> EvidenceQuery:
    """What of the evidence is asked for. Refuses MALFORMED."""
    raw: dict[str, Any] = {key: value for key, value in request.query_params.items() if key != PARAMETER}
    try:
        return msgspec.convert(raw, EvidenceQuery)
    except ValueError as error:  # msgspec.ValidationError is one
        raise refusal(
            Code.MALFORMED, str(error), rule="api.query",
            ask=f"payloads is all, or hops; withhold some of {', '.join(GROUPS)}, all, or {NOTHING}; disclose as in 0.user",
        ) from None  # fmt: skip


def named(asked: EvidenceQuery) -> str:
    """As it is recorded that somebody read it."""
    said = f" with contents of {asked.payloads[:256]}" if asked.payloads else ""
    return said + (
        ", whole" if asked.withhold == NOTHING else f" without {asked.withhold[:64]}" if asked.withhold else ""
    )


async def shown(found: dict[str, Any], asked: EvidenceQuery, at: Call) -> dict[str, Any]:
    """The evidence as it leaves: with contents where they are asked for, and without the personal fields that are withheld.

    INVARIANT: evidence of somebody who was erased does not name them, unless whoever asks wants just that
    (test_evidence_of_somebody_who_was_erased_does_not_name_them).
    """
    groups = [] if asked.withhold in (None, NOTHING) else asked.withhold.split(",")
    if asked.withhold is None and await at.desk.vault.erased(found["records"][0]["user"]):
        groups = list(OF_THE_ERASED)
    payloads = {}
    if asked.payloads is not None:
        hops = None if asked.payloads == "all" else asked.payloads.split(",")
        payloads = {"payloads": await at.desk.vault.disclosed(found["records"], hops)}
    if groups:
        found = withhold(
            found, GROUPS if groups == ["all"] else groups, asked.disclose.split(",") if asked.disclose else ()
        )
    elif asked.disclose:
        raise refusal(
            Code.MALFORMED,
            "nothing is withheld that could be disclosed",
            rule="evidence.disclose",
            ask="say withhold=… too",
        )
    return {**found, **payloads}
