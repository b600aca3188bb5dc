"""What the pipeline needs of the world, as narrow protocols. Adapters implement them; tests and simulations replace them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from remit_broker.bus_port import (
    MAX_FRAMES,
    Bus,
    CallerCancelled,
    Channel,
    Parties,
    Recipient,
    Withdrawn,
    at_once,
)
from remit_broker.core.accounts import Reservation
from remit_broker.core.arguments import Arguments
from remit_broker.core.caps import Whose
from remit_broker.core.fold import Fold, Node
from remit_broker.core.issuers import OperatorRole
from remit_broker.core.label_sources import NO_LABELS, LabelSources
from remit_broker.core.policy import PolicyRequest, Verdict
from remit_broker.core.registry import Principal, Target
from remit_broker.core.revocations import Entry
from remit_broker.core.user_tokens import Identity
from remit_broker.core.vault import Slot
from remit_broker.ledger_port import Ledger
from remit_schemas.approval import Decided
from remit_schemas.budget import Budget
from remit_schemas.grant import Claims, Grant
from remit_schemas.names import DEFAULT_TENANT, Resource
from remit_schemas.records import Finding, HopClosed, HopOpened, HopRefused, HopResumed, TxnOpened

T = TypeVar("T")


class Clock(Protocol):
    """Time, injected so that a simulation can own it."""

    def now(self) -> float:
        """Unix seconds."""

    def monotonic(self) -> float:
        """Seconds that only grow, for deadlines that a clock jump must not move."""


class Ids(Protocol):
    """Randomness, injected so that a simulation can seed it."""

    def txn(self) -> str:
        """A new txn id: 32 lower-case hex digits, never all zero."""

    def hop(self) -> str:
        """A new hop id: 16 lower-case hex digits, never all zero."""

    def blind(self) -> str:
        """16 bytes that nobody can guess, as 32 lower-case hex digits."""


class Refusals(Protocol):
    """Where calls that never became hops are recorded."""

    async def write(self, record: HopRefused) -> None:
        """Record a refusal (floods are aggregated). Never raises."""


class Registry(Protocol):
    """Who exists and what they serve."""

    @property
    def revision(self) -> int:
        """Grows with every change."""

    def principal(self, name: str) -> Principal | None:
        """An agent or server by name."""

    def target(self, resource: Resource) -> Target | None:
        """What a resource is: its schemas, annotations, ceiling and price."""

    def nearest(self, resource: Resource) -> Sequence[str]:
        """Resources with similar names, for the message of a refusal."""


class Revocations(Protocol):
    """What operators have stopped. Grants and txns are revoked by records of their own in the ledger."""

    @property
    def revision(self) -> int:
        """Grows with every change."""

    @property
    def fresh(self) -> bool:
        """Whether this replica knows of everything that was revoked until two seconds ago."""

    @property
    def paused(self) -> Entry | None:
        """The entry that stops everything."""

    def tenant(self, name: str) -> Entry | None:
        """The entry that stops a tenant."""

    def check(self, actors: tuple[str, ...], user: str, resource: Resource | None = None) -> Entry | None:
        """The first entry that stops a call of ``resource`` by ``actors`` for ``user``; tenant and pause are not looked at."""

    def silence(self, replica: str) -> float:
        """For how many seconds a replica has certainly said nothing; 0 while this one cannot tell."""


class PolicyEngine(Protocol):
    """Decides by policy; any doubt is a denial."""

    @property
    def revision(self) -> str:
        """Digest of the policy set in force."""

    @property
    def labels(self) -> bool:
        """Whether a policy puts labels on data."""

    def arguments(self, target: Target, value: Any) -> Arguments:
        """What policy may see of ``value``, the arguments of ``target``; nothing where no policy looks at any. Never raises."""

    def decide(self, request: PolicyRequest) -> Verdict:
        """Never raises: an error in deciding is a denial."""


class Detectors(Protocol):
    """Looks for what should not travel. Reports; never decides."""

    def scan(self, value: Any) -> tuple[Finding, ...]:
        """Findings in every string and key of nested JSON."""

    def redact(self, value: Any, classes: Sequence[str]) -> tuple[Any, tuple[str, ...]]:
        """``value`` with what was found replaced by typed placeholders, and the pointers (RFC 6901) of what was replaced."""


class Schemas(Protocol):
    """JSON Schema, compiled and cached by the definition's digest."""

    def check(self, schema: Mapping[str, Any]) -> None:
        """Refuses MALFORMED or TOO_LARGE for a schema that cannot be used."""

    def arguments(self, definition: str, schema: Mapping[str, Any], value: Any) -> None:
        """Refuses ARGUMENTS_INVALID."""

    def result(self, definition: str, schema: Mapping[str, Any], value: Any) -> None:
        """Refuses RESULT_INVALID."""


class Mint(Protocol):
    """Signs and verifies grants with the broker's own keys."""

    issuer: str

    def mint(self, claims: Claims) -> str:
        """The compact JWS of ``claims``."""

    def decided(self, decided: Decided) -> str:
        """The compact JWS of a person's decision."""

    def notice(self, payload: Mapping[str, Any]) -> str:
        """The compact JWS with which a message to somebody outside is signed."""

    def verify(self, token: str, audience: str) -> Grant:
        """Refuses GRANT_INVALID or GRANT_EXPIRED. Verified signatures are remembered, times are checked every time."""


class Digester(Protocol):
    """Keyed digests: equal content gives equal digests within a txn, and nobody without the key can guess content from them."""

    def digest(self, txn: str, data: bytes) -> str:
        """A commitment to ``data``: lower-case hex HMAC-SHA-256 under :meth:`salt`."""

    def salt(self, txn: str, data: bytes) -> bytes:
        """32 bytes that open the commitment to ``data``: HMAC-SHA-256 under a key of its own for each txn."""

    def mark(self, txn: str, data: bytes) -> str:
        """Lower-case hex of that, for what nobody is ever shown."""


class Identities(Protocol):
    """Who a user is, proved by a token of an issuer that the configuration names."""

    async def identify(self, token: str) -> Identity:
        """Refuses UNAUTHENTICATED, TOO_LARGE, or TARGET_UNAVAILABLE where nobody can tell."""

    def may_hold(self, agent: str, identity: Identity) -> None:
        """Refuses UNAUTHENTICATED where ``agent`` is not one that holds tasks of that issuer's users."""

    def longest(self, identity: Identity) -> int:
        """Seconds that a task of this user may live."""

    def operator_roles(self, identity: Identity) -> tuple[OperatorRole, ...]:
        """What the user is as an operator."""


class RateLimit(Protocol):
    """How often one caller may ask, or one target be called."""

    def admit(self, who: str, weight: int = 1) -> float:
        """0 when the call may go on, else the seconds to wait. ``weight`` is how many ordinary calls it counts as."""

    def charge(self, who: str, weight: int) -> None:
        """What was asked before turned out to weigh so much more: whoever asks again waits the longer."""


class Accounts(Protocol):
    """What users, agents, tools and tenants may use up in a window of time, over all txns and replicas."""

    async def reserve(self, whose: Whose, amount: Budget) -> Reservation:
        """Reserve in every account that has a cap, or in none.

        Refuses BUDGET_EXCEEDED by the rule ``caps.<kind>.<window>``, LEDGER_UNAVAILABLE where nobody can say what is left.
        """

    def settle(self, reservation: Reservation, spent: Budget) -> None:
        """End a reservation at what was spent, which may be nothing, or more."""


class Results(Protocol):
    """The ends of hops that their callers asked to be kept, for a while, where nobody can read them."""

    async def put(self, at: tuple[str, str, str], data: bytes) -> bool:
        """Keep ``data`` for the hop ``at`` (tenant, txn, hop). Whether it is kept; never raises."""

    async def get(self, at: tuple[str, str, str]) -> bytes | None:
        """What is kept for a hop; None where nothing is, or no longer, or cannot be read. Never raises."""


class Kept(Results, Protocol):
    """The arguments that people are asked about, until they have decided."""

    async def forget(self, at: tuple[str, str, str]) -> None:
        """Keep nothing for the approval ``at`` (tenant, txn, id) any longer. Never raises."""


class Vault(Protocol):
    """What was sent and answered, encrypted for the user of each task: there only where an operator has switched it on."""

    async def put(self, slot: Slot, data: bytes) -> bool:
        """Keep ``data``. Whether it is kept; never raises."""


class Room(Protocol):
    """How much of large results this process holds and works on at once."""

    largest: int
    """Bytes of JSON that one result may have."""

    processor: Callable[[], float]
    """Seconds of the processor that this thread has used: what a machine does beside is not counted."""

    def take(self, hop: str, callee: str, size: int) -> None:
        """Hold ``size`` bytes more for ``hop``. Refuses RESULT_INVALID where there is no room."""

    def give_back(self, hop: str) -> None:
        """Nothing of ``hop`` is held any more."""

    async def aside(self, work: Callable[[], T]) -> T:
        """Do ``work`` on a large value, so that no other hop waits for it."""


class Observer(Protocol):
    """Spans, logs and metrics, all made from records after the fact."""

    def closed(self, opened: HopOpened, closed: HopClosed, past: Fold) -> None:
        """A hop ended; ``past`` is the txn when it was decided on."""

    def swept(self, node: Node, closed: HopClosed, fold: Fold, resumed: HopResumed | None = None) -> None:
        """A hop was closed that another replica opened, or on behalf of whoever could not any more."""

    def refused(self, record: HopRefused) -> None:
        """A call was refused."""

    def delegated(self, record: TxnOpened) -> None:
        """A txn was opened."""

    def opened(self, kind: str, seconds: float) -> None:
        """A hop to a target of that ``kind`` was opened or resumed, so many seconds after its request."""

    def fault(self, where: str, error: BaseException) -> None:
        """Something failed that should not; for the operator's log only."""


class Failpoints(Protocol):
    """Named places at which a crash test kills the process."""

    def hit(self, name: str) -> None:
        """Does nothing, unless this process was started to die here."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Caps and defaults of a hop. Times are in seconds.

    ``approval_ttl`` is how long a request for an approval waits, ``approval_use`` how long an approval can be used. Where policy
    does not say otherwise, ``four_eyes`` keeps users from approving their own calls. ``approval_url`` is what an id is added to.
    """

    hop_ttl: float = 3600.0
    max_depth: int = 8
    concurrency: int = 2048
    replica_silence: float = 30.0
    approval_ttl: float = 3600.0
    approval_use: float = 900.0
    four_eyes: bool = False
    approval_url: str = ""
    allowed_cycles: frozenset[tuple[str, str]] = frozenset()
    labels: LabelSources = NO_LABELS

    def approval_at(self, tenant: str, name: str) -> str:
        """Where a person finds a request for an approval; of another tenant than the default one the address says which."""
        return f"{self.approval_url}{name}" + ("" if tenant == DEFAULT_TENANT else f"?tenant={tenant}")


class Ports(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the stages may touch."""

    clock: Clock
    ids: Ids
    ledger: Ledger
    refusals: Refusals
    bus: Bus
    registry: Registry
    revocations: Revocations
    policy: PolicyEngine
    detectors: Detectors
    schemas: Schemas
    mint: Mint
    digester: Digester
    rates: RateLimit
    target_rates: RateLimit
    accounts: Accounts
    room: Room
    results: Results
    arguments: Kept
    observer: Observer
    failpoints: Failpoints
    limits: Limits
    identities: Identities
    environment: str = ""
    """What policies see of this installation."""
    vault: Vault | None = None


__all__ = [
    "MAX_FRAMES",
    "Accounts",
    "Bus",
    "CallerCancelled",
    "Channel",
    "Clock",
    "Detectors",
    "Digester",
    "Failpoints",
    "Identities",
    "Ids",
    "Kept",
    "Ledger",
    "Limits",
    "Mint",
    "Observer",
    "Parties",
    "PolicyEngine",
    "Ports",
    "RateLimit",
    "Recipient",
    "Refusals",
    "Registry",
    "Results",
    "Revocations",
    "Room",
    "Schemas",
    "Vault",
    "Withdrawn",
    "at_once",
]
