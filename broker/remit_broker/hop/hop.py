"""The value that travels through the stages and gains fields as it goes."""

from __future__ import annotations

from typing import Any, NoReturn

import msgspec

from remit_broker.core.accounts import Reservation
from remit_broker.core.fold import Fold, Node
from remit_broker.core.policy import Verdict
from remit_broker.core.registry import Target
from remit_schemas.budget import Budget
from remit_schemas.envelope import Error, InputRequired, Request, Result
from remit_schemas.errors import ErrorBody, Refusal
from remit_schemas.grant import Grant
from remit_schemas.names import Resource
from remit_schemas.records import (
    Decision,
    Epochs,
    Facts,
    Finding,
    HopClosed,
    HopOpened,
    HopParked,
    HopRefused,
    HopResumed,
)
from remit_schemas.scope import Scope


def _missing() -> NoReturn:
    """A field that an earlier stage sets. Missing, it is a bug in the order of the stages, so it fails closed."""
    raise RuntimeError("a stage ran before the one that feeds it")


class Ask(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A request as it came off the bus. ``caller`` was established by the NATS server; nothing in ``data`` is believed yet.

    ``hop`` is the parked hop that the subject names, where it came on ``ctl.…``.
    """

    tenant: str
    caller: str
    txn: str
    resource: Resource
    reply: str
    data: bytes
    at: float
    mono: float
    hop: str = ""


class Child(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What the callee is to be given: never more than the caller holds. ``exp`` is Unix seconds."""

    scope: Scope
    budget: Budget
    exp: int
    depth: int
    max_depth: int
    labels: tuple[str, ...]


class Hop(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Everything known about a hop so far. A field that a later stage sets is None (or empty) before it."""

    ask: Ask
    id: str
    # admit
    size: int = 0
    """Bytes of the request."""
    request: Request = Request()
    deadline: int = 0
    mono_deadline: float = 0.0
    # verify
    grant: Grant | None = None
    fold: Fold | None = None
    parent: Node | None = None
    revocations: int = 0
    parked: Node | None = None
    """Where a parked hop is to go on: that hop."""
    # resolve
    target: Target | None = None
    registry: int = 0
    # narrow
    child: Child | None = None
    # inspect
    searched: bool = False
    """Whether ``findings`` are those of the request: it stays what it is when a lost race has the stages run again."""
    findings: tuple[Finding, ...] = ()
    labels: tuple[str, ...] = ()
    brings: tuple[str, ...] = ()
    endorser: str = ""
    lowers: tuple[str, ...] = ()
    # authorize
    verdict: Verdict | None = None
    epochs: Epochs | None = None
    facts: Facts | None = None
    """What policy was asked, for the record."""
    # transform
    args: dict[str, Any] = {}
    meta: dict[str, Any] = {}
    args_digest: str = ""
    args_size: int = 0
    redacted: tuple[str, ...] = ()
    input: Any = None
    input_digest: str = ""
    input_size: int = 0
    # approve
    approval: str | None = None
    """The approval that opening this uses up."""
    lowered: tuple[str, ...] = ()
    """The labels that whoever approved it took from what is sent."""
    # open
    opened: HopOpened | HopResumed | None = None
    token: str = ""
    reserved: Reservation = Reservation()
    began: float = 0.0
    rated: bool = False
    """Whether its target's rate was asked: it lost a race after that."""
    # dispatch
    final_size: int = 0
    """Bytes of the final frame, with all its parts."""
    final: Result | Error | InputRequired | None = None
    connection: str = ""
    """That of the callee which works on it, once it has said so."""
    heard: tuple[str, ...] = ()
    """The end of what it said before its end."""
    # inspect result
    said: tuple[str, ...] = ()
    """The labels of whatever the hop says by now."""
    result: Inspected | None = None

    @property
    def resource(self) -> Resource:
        """What is called."""
        return self.ask.resource

    def with_(self, **fields: Any) -> Hop:
        """This hop with some fields set."""
        return msgspec.structs.replace(self, **fields)

    # What a stage may rely on, because the stages before it set it. Reading one too early is a bug, not a None.
    @property
    def held(self) -> Grant:
        """The caller's grant, verified."""
        return self.grant if self.grant is not None else _missing()

    @property
    def chain(self) -> tuple[str, ...]:
        """The caller and everybody above it, up to the user's first agent: also in the tasks that this one was detached from."""
        return (*self.held.chain, *reversed(self.past.before))

    @property
    def past(self) -> Fold:
        """The fold this hop was decided on."""
        return self.fold if self.fold is not None else _missing()

    @property
    def above(self) -> Node:
        """The caller's own hop in the fold."""
        return self.parent if self.parent is not None else _missing()

    @property
    def aim(self) -> Target:
        """The target."""
        return self.target if self.target is not None else _missing()

    @property
    def given(self) -> Child:
        """What the callee is to be given."""
        return self.child if self.child is not None else _missing()

    @property
    def judged(self) -> Verdict:
        """The policy's verdict."""
        return self.verdict if self.verdict is not None else _missing()

    @property
    def intent(self) -> HopOpened | HopResumed:
        """The record on which this hop is dispatched."""
        record: HopOpened | HopResumed | None = self.opened
        if record is None:
            raise RuntimeError("a stage ran before the one that feeds it")
        return record


class Inspected(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A final frame after inspection: what may be released, and what the close record says of it.

    ``released`` is the digest of what may be released, where something was ``redacted``; ``digest`` is of what came.
    """

    frame: Result | Error | InputRequired
    digest: str = ""
    released: str = ""
    size: int = 0
    decision: Decision | None = None
    findings: tuple[Finding, ...] = ()
    redacted: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    endorsed: bool = False


class Denied(Refusal):
    """A refusal that brings the hop as it was judged, so that its record names the decision."""

    def __init__(self, no: Refusal, hop: Hop) -> None:
        super().__init__(no.body, no.cause)
        self.hop = hop


class Closed(msgspec.Struct, frozen=True, kw_only=True):
    """A hop that ended or was parked; ``record`` is None where somebody else (the scan, an ancestor) had closed it before."""

    hop: Hop
    record: HopClosed | HopParked | None
    frame: Result | Error | InputRequired


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """A call that never became a hop."""

    record: HopRefused
    body: ErrorBody
