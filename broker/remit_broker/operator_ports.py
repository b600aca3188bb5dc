"""What the surfaces of operators need beyond the pipeline: the index, the registry and the revocations as they see them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from remit_broker.core.admin import AdminRecord
from remit_broker.core.listing import ApprovalRow, ChainFilter, ChainPage, HopHit, LogFilter, Logged
from remit_broker.core.pins import Waiting
from remit_broker.core.registry import Attachment, Principal
from remit_broker.core.revocations import Entry
from remit_broker.core.tool_names import Names
from remit_broker.ports import Registry, Revocations
from remit_schemas.names import Resource


class Index(Protocol):
    """Questions about many txns, answered from a projection of the ledger that can always be rebuilt."""

    async def chains(self, tenant: str, wanted: ChainFilter) -> ChainPage:
        """A page of txns, newest first. Refuses MALFORMED for a bad cursor."""

    async def chain(self, tenant: str, txn: str) -> list[dict[str, Any]]:
        """The entries of a txn in order, each ``{"record": …, "grant": token or None}``."""

    async def refusals(self, tenant: str, txn: str) -> list[dict[str, Any]]:
        """Refused calls of one txn, in the order in which they were written."""

    async def refusal(self, tenant: str, hop: str) -> dict[str, Any] | None:
        """The record of a refused call by its id."""

    async def answers(
        self, tenant: str, after: int, limit: int
    ) -> list[tuple[int, dict[str, Any], dict[str, Any], str]]:
        """Records of ends and of questions in order after a place: each with its place, what opened its hop, and its user."""

    async def decisions(
        self, tenant: str, after: int, kind: str, limit: int, since: str = ""
    ) -> list[tuple[int, dict[str, Any], str]]:
        """Records of calls that were ``opened`` or ``refused``, in order after a place: each with its place and its user.

        None from before ``since`` (RFC 3339).
        """

    async def log(self, tenant: str, wanted: LogFilter) -> list[Logged]:
        """Records and refusals after a place, in order of time. Refuses MALFORMED for a bad cursor."""

    async def hops_like(self, tenant: str, prefix: str, limit: int = 10) -> list[HopHit]:
        """Hops and refusals whose id begins with ``prefix``; ``<txn>.<hop>`` (each or its beginning) narrows."""

    async def approvals(self, tenant: str, prefix: str = "", limit: int = 500) -> list[ApprovalRow]:
        """Requests for approvals, newest first, whose id begins with ``prefix``; ``<txn>.<id>`` (each or its beginning) narrows."""

    async def approvals_in(self, tenant: str, state: str, now: float, revision: str, limit: int) -> list[ApprovalRow]:
        """Those in a state (or ``all``) at ``now`` (Unix seconds) under the policies of ``revision``, newest first."""

    async def users(self, tenant: str) -> list[str]:
        """Everybody a task was ever opened for, up to ten thousand."""

    async def find(self, tenant: str, prefix: str, limit: int = 10) -> list[str]:
        """The ids of txns that begin with ``prefix``."""

    async def near(self, tenant: str, txn: str) -> list[str]:
        """Ids of txns that begin as ``txn`` does, those that agree for longest first."""


class Directory(Registry, Protocol):
    """The registry as operators see it."""

    def principals(self) -> list[Principal]:
        """Everybody, by name."""

    def attachment(self, name: str) -> Attachment | None:
        """What a principal serves."""

    def targets(self) -> list[Resource]:
        """Everything that is served."""

    def quarantined(self, name: str) -> list[Resource]:
        """Tools whose definition waits to be accepted."""

    def quarantined_shown(self, name: str) -> list[str]:
        """What of that which a server shows beside its tools waits to be accepted: ``resource/<uri>``, ``prompt/<name>`` …"""

    def tool_names(self) -> Names:
        """What tools are called where all servers are one."""

    def prompt_names(self) -> Names:
        """Likewise of prompts."""

    def presented(self, name: str) -> Attachment | None:
        """What a principal serves, without what it shows beside its tools that waits to be accepted."""

    async def add(self, principal: Principal) -> None:
        """Register. Refuses CONFLICT."""

    async def remove(self, name: str) -> None:
        """Forget. Refuses UNKNOWN_TARGET."""

    def waiting(self, name: str) -> list[Waiting]:
        """The definitions of a server that wait to be accepted, why, and what changed."""

    def forgettable(self, name: str) -> list[str]:
        """What was accepted of a server that it does not offer now."""

    def acceptable(self, name: str, digests: Mapping[str, str], *, forget: bool = False) -> object:
        """Refuses as :meth:`accept` would, and changes nothing."""

    async def accept(self, name: str, digests: Mapping[str, str], *, forget: bool = False) -> list[str]:
        """Accept definitions as they were shown; the names. Refuses CONFLICT where one is not what was shown."""


class RevocationList(Revocations, Protocol):
    """Revocations as operators see them."""

    def entries(self) -> list[Entry]:
        """What was last said of each thing, in force or reinstated, oldest first."""

    async def put(self, entry: Entry) -> None:
        """Write an entry. Durable, and seen by this replica, when it returns. Refuses LEDGER_UNAVAILABLE."""

    async def announce(self, jti: str) -> None:
        """Say to every replica that a grant was revoked in the ledger. Best effort, never raises: the record alone decides."""


class AdminLog(Protocol):
    """What operators did, in one chain of sealed records."""

    async def append(self, entry: Entry) -> AdminRecord:
        """Append the record of ``entry``; durable when it returns. Refuses LEDGER_UNAVAILABLE: then it may be there or not."""

    async def history(self) -> list[AdminRecord]:
        """All records, oldest first. Refuses LEDGER_UNAVAILABLE where they cannot be read."""
