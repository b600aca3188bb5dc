"""The closed list of refusals: one table from a code to every surface it can appear on.

A refusal has a public text (what the caller may know) and a private cause (what the operator may know). Only the
public part is ever put into an :class:`ErrorBody`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Literal, NamedTuple

import msgspec

Effect = Literal["none", "happened", "unknown"]
"""What a caller may assume about the world after an error: retry only on ``none``."""


class Code(StrEnum):
    """Every code a refusal can carry. Closed: another implementation may switch over it exhaustively."""

    MALFORMED = "MALFORMED"
    TOO_LARGE = "TOO_LARGE"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    GRANT_INVALID = "GRANT_INVALID"
    GRANT_EXPIRED = "GRANT_EXPIRED"
    GRANT_REVOKED = "GRANT_REVOKED"
    GRANT_CLOSED = "GRANT_CLOSED"
    OUT_OF_SCOPE = "OUT_OF_SCOPE"
    DEPTH_EXCEEDED = "DEPTH_EXCEEDED"
    CYCLE = "CYCLE"
    UNKNOWN_TARGET = "UNKNOWN_TARGET"
    TARGET_QUARANTINED = "TARGET_QUARANTINED"
    ARGUMENTS_INVALID = "ARGUMENTS_INVALID"
    POLICY_DENIED = "POLICY_DENIED"
    CONTENT_DENIED = "CONTENT_DENIED"
    APPROVAL_REQUIRED = "APPROVAL_REQUIRED"
    APPROVAL_INVALID = "APPROVAL_INVALID"
    BUDGET_EXCEEDED = "BUDGET_EXCEEDED"
    RATE_LIMITED = "RATE_LIMITED"
    CONFLICT = "CONFLICT"
    DUPLICATE = "DUPLICATE"
    TARGET_UNAVAILABLE = "TARGET_UNAVAILABLE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    RESULT_DENIED = "RESULT_DENIED"
    RESULT_INVALID = "RESULT_INVALID"
    LEDGER_UNAVAILABLE = "LEDGER_UNAVAILABLE"
    INTERNAL = "INTERNAL"


class Surface(NamedTuple):
    """How one code looks on each surface.

    ``http`` is a status (RFC 9110), ``jsonrpc`` an error code (JSON-RPC 2.0 §5.1, own ones in -32099…-32000 and below),
    ``frame`` the kind of the NATS frame that carries it, ``exit`` the exit code of the command line.
    """

    http: int
    jsonrpc: int
    frame: str
    exit: int
    retryable: bool


_R = True
SURFACES: Final[dict[Code, Surface]] = {
    Code.MALFORMED: Surface(400, -32700, "error", 1, not _R),
    Code.TOO_LARGE: Surface(413, -32600, "error", 1, not _R),
    Code.UNAUTHENTICATED: Surface(401, -32001, "error", 1, not _R),
    Code.GRANT_INVALID: Surface(401, -32002, "error", 1, not _R),
    Code.GRANT_EXPIRED: Surface(401, -32003, "error", 1, not _R),
    Code.GRANT_REVOKED: Surface(403, -32004, "error", 1, not _R),
    Code.GRANT_CLOSED: Surface(403, -32005, "error", 1, not _R),
    Code.OUT_OF_SCOPE: Surface(403, -32006, "error", 1, not _R),
    Code.DEPTH_EXCEEDED: Surface(403, -32007, "error", 1, not _R),
    Code.CYCLE: Surface(403, -32008, "error", 1, not _R),
    Code.UNKNOWN_TARGET: Surface(404, -32601, "error", 1, not _R),
    Code.TARGET_QUARANTINED: Surface(403, -32009, "error", 1, not _R),
    Code.ARGUMENTS_INVALID: Surface(422, -32602, "error", 1, not _R),
    Code.POLICY_DENIED: Surface(403, -32010, "error", 1, not _R),
    Code.CONTENT_DENIED: Surface(403, -32011, "error", 1, not _R),
    Code.APPROVAL_REQUIRED: Surface(403, -32012, "error", 1, not _R),
    Code.APPROVAL_INVALID: Surface(403, -32013, "error", 1, not _R),
    Code.BUDGET_EXCEEDED: Surface(402, -32014, "error", 1, not _R),
    Code.RATE_LIMITED: Surface(429, -32015, "error", 1, _R),
    Code.CONFLICT: Surface(409, -32016, "error", 1, not _R),
    Code.DUPLICATE: Surface(409, -32017, "error", 1, not _R),
    Code.TARGET_UNAVAILABLE: Surface(503, -32018, "error", 1, _R),
    Code.DEADLINE_EXCEEDED: Surface(504, -32019, "error", 1, not _R),
    Code.CANCELLED: Surface(499, -32020, "error", 1, not _R),
    Code.RESULT_DENIED: Surface(403, -32021, "error", 1, not _R),
    Code.RESULT_INVALID: Surface(502, -32022, "error", 1, not _R),
    Code.LEDGER_UNAVAILABLE: Surface(503, -32023, "error", 3, _R),
    Code.INTERNAL: Surface(500, -32603, "error", 1, not _R),
}


class ErrorBody(msgspec.Struct, frozen=True, omit_defaults=False, kw_only=True):
    """The body of every error, on every surface.

    ``rule`` names what refused (a stage's rule such as ``grant.audience`` or a policy id), ``ask`` says what to request
    instead, ``retry_after`` is in seconds. ``txn`` and ``hop`` are those of the refusal's record, where there is one. ``approval``
    is the id of the approval that is waited for, and ``approval_url`` where a person decides on it.
    """

    code: Code
    message: str
    rule: str = ""
    ask: str = ""
    retryable: bool = False
    retry_after: float | None = None
    approval_url: str | None = None
    effect: Effect = "none"
    txn: str | None = None
    hop: str | None = None
    approval: str | None = None


class Refusal(Exception):  # noqa: N818 - a refusal is an answer, not a fault
    """Something was refused. ``body`` is public; ``cause`` is for the operator's record only and never leaves the broker."""

    def __init__(self, body: ErrorBody, cause: str = "") -> None:
        super().__init__(f"{body.code}: {body.message}")
        self.body = body
        self.cause = cause


def after_effect(body: ErrorBody, effect: Literal["happened", "unknown"]) -> ErrorBody:
    """The answer to a call that something may have come of: whatever the reason said, it is not to be made again for nothing."""
    return (
        body
        if body.effect != "none"
        else msgspec.structs.replace(body, effect=effect, retryable=False, retry_after=None)
    )


def refusal(
    code: Code,
    message: str,
    *,
    rule: str,
    ask: str = "",
    effect: Effect = "none",
    retry_after: float | None = None,
    approval_url: str | None = None,
    approval: str | None = None,
    cause: str = "",
) -> Refusal:
    """Build a :class:`Refusal`; ``retryable`` comes from the table, and never where an effect may have happened."""
    retryable = SURFACES[code].retryable and effect == "none"
    body = ErrorBody(
        code=code, message=message, rule=rule, ask=ask, retryable=retryable,
        retry_after=retry_after, approval_url=approval_url, effect=effect,
        approval=approval,
    )  # fmt: skip
    return Refusal(body, cause)
