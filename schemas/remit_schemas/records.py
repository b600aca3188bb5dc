"""The records of a txn: the one truth from which budgets, open grants, audit, traces and evidence are all derived.

A record is sealed by its hash: lower-case hex SHA-256 over the canonical JSON (RFC 8785) of the record without
``hash``; ``prev`` is the hash of the record before it, 64 zeros at ``seq`` 0.
"""

from __future__ import annotations

from typing import Any, Final, Literal, TypeVar

import msgspec

from remit_schemas.budget import Budget
from remit_schemas.canonical import canonical, canonical_document, digest, loads, quick
from remit_schemas.errors import Code, Effect
from remit_schemas.scope import Detail

VERSION: Final = 1
GENESIS: Final = "0" * 64
MAX_RECORD: Final = 16 * 1024
OWNER: Final = "the user"
"""Who closed a task, where its own user did. No agent can be called that."""
MAX_ENTRY: Final = 48 * 1024

Outcome = Literal["ok", "failed", "error", "refused", "cancelled", "unknown"]
"""How a hop ended: ``failed`` is a tool's own error, ``refused`` a result that was not released, ``unknown`` an orphan."""


class Finding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a detector saw, never the text it saw: a type such as ``secret.aws_access_key``, where (RFC 6901), how often."""

    kind: str
    where: str
    count: int = 1


class Decision(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A policy decision: the ids of the policies that made it and the digest of the policy set it was made under.

    ``would_deny``: it was let through although ``rules`` refuse it or demand something first, since they are only observed.
    """

    effect: Literal["allow", "deny", "would_deny"]
    rules: tuple[str, ...]
    revision: str


class Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True, gc=False):
    """What policy was asked beside what the record says: with these the question can be asked again, of other policies too.

    ``tier`` is the caller's, ``hints`` the letters of what the target says of itself (``r`` reads only, ``d`` destructive, ``i``
    idempotent, ``o`` open world). ``depth``, ``labels`` and ``brings`` (what the target would bring) are left out where the record has
    them. ``partial``: something was left
    out because it was too much.
    """

    action: str
    tier: str = "standard"
    target_tier: str = "standard"
    hints: str = ""
    actors: tuple[str, ...] = ()
    tiers: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    tool_groups: tuple[str, ...] = ()
    depth: int = 0
    loops: int = 0
    labels: tuple[str, ...] = ()
    brings: tuple[str, ...] = ()
    left: Budget | None = None
    client: str = ""
    environment: str = ""
    partial: bool = False


class Need(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the policy ``rule`` demands before a call: ``count`` people, each with ``role`` if there is one; ``text`` is for them.

    With ``four_eyes`` none of them is the user for whom the call is made.
    """

    rule: str
    text: str = ""
    count: int = 1
    role: str = ""
    four_eyes: bool = False


class Epochs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The state of the world a hop was decided under: policy set digest, registry revision, revocation revision."""

    policy: str
    registry: int
    revocations: int = 0


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind"):
    """``at`` is RFC 3339 UTC with milliseconds; ``by`` the broker replica that wrote it; ``hash`` seals the rest.

    ``blind`` is 16 random bytes in hex, and ``veil`` the digest of the veiled form of the record before it, where that has one
    (:mod:`remit_schemas.veil`): they let personal fields be left out of evidence. Records of older brokers have neither.
    """

    v: int = VERSION
    tenant: str
    txn: str
    seq: int
    at: str
    hop: str
    prev: str
    by: str
    hash: str = ""
    blind: str = ""
    veil: str = ""


class TxnOpened(_Record, frozen=True, tag="txn.opened"):
    """A user delegated a task. ``hop`` is the opening, ``agent`` holds the root grant, ``auth`` is how the user was known.

    ``roles`` and ``groups`` are the user's at that moment, and stay those of the whole task. Where an issuer proved the user,
    ``issuer`` is its URL, ``client`` the application its token was issued to, and ``token`` the token's id or digest. ``before`` is
    who stood above ``agent`` in the tasks that this one was detached from, from the user's first agent on.
    """

    user: str
    agent: str
    auth: str
    jti: str
    scope: tuple[Detail, ...]
    budget: Budget
    exp: int
    max_depth: int
    labels: tuple[str, ...] = ()
    continues: str | None = None
    roles: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    issuer: str = ""
    client: str = ""
    token: str = ""
    before: tuple[str, ...] = ()


class HopOpened(_Record, frozen=True, tag="hop.opened"):
    """The intent and the hold, durable before the callee hears anything.

    ``budget`` is held from the parent. ``exp`` is Unix seconds, ``deadline`` Unix milliseconds. ``args_digest`` is
    keyed (HMAC-SHA-256) over the canonical JSON of what is sent. ``definition`` is the digest of the target's definition.
    ``link`` is the trace context the caller sent. ``idem`` is the keyed digest of its idempotency key. ``facts`` are what policy
    was asked beside what stands here.

    ``labels`` are those of what is sent, ``lowered`` those that its ``approval`` took from it. ``brings`` are the labels that come
    back with anything the target says: from now on the caller has them. An ``endorser`` may take ``lowers`` from its result.
    """

    parent: str
    caller: str
    resource: str
    depth: int
    jti: str
    scope: tuple[Detail, ...]
    budget: Budget
    exp: int
    deadline: int
    max_depth: int
    args_digest: str
    args_size: int
    definition: str
    decision: Decision
    epochs: Epochs
    findings: tuple[Finding, ...] = ()
    redacted: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    idem: str | None = None
    approval: str | None = None
    link: str | None = None
    facts: Facts | None = None
    brings: tuple[str, ...] = ()
    lowered: tuple[str, ...] = ()
    endorser: str = ""
    lowers: tuple[str, ...] = ()


class HopClosed(_Record, frozen=True, tag="hop.closed"):
    """The outcome and the settlement.

    ``cost`` is what the callee used itself beside its one call; ``spent`` what the parent is charged out of its hold
    (the callee's own and its descendants'), ``overrun`` what was reported beyond the hold. ``ms`` is how long it took.
    ``labels`` are those of what came back, ``lowered`` those that the endorser of its opening took from it. ``detached`` is the
    task that a detached call became. ``released_digest`` is that of what the caller was given, where something was ``redacted``.
    """

    outcome: Outcome
    cost: Budget
    spent: Budget
    overrun: Budget
    effect: Effect
    ms: int
    code: Code | None = None
    rule: str = ""
    reason: str = ""
    unmetered: bool = False
    result_digest: str = ""
    result_size: int = 0
    decision: Decision | None = None
    findings: tuple[Finding, ...] = ()
    redacted: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    lowered: tuple[str, ...] = ()
    detached: str = ""
    released_digest: str = ""


class GrantRenewed(_Record, frozen=True, tag="grant.renewed"):
    """The next grant of an open hop: as the one before it, but for ``jti`` and ``exp`` (Unix seconds)."""

    jti: str
    exp: int


class HopParked(_Record, frozen=True, tag="hop.parked"):
    """The callee asks for an input. Its grants are of no use until ``hop.resumed``; the rest of its hold went back.

    ``cost`` is what the callee used itself since the hop was opened or resumed, beside its one call; ``spent`` and ``overrun``
    what the hop is charged so far in all. ``connection`` is the one that may still wait for the input. ``request_digest`` is
    keyed, as ``args_digest`` is. ``findings``, ``redacted`` and ``decision`` are about the request and its release, and
    ``released_digest`` is that of what the caller was asked, where something was ``redacted``.
    """

    cost: Budget
    spent: Budget
    overrun: Budget
    request_digest: str
    request_size: int
    connection: str = ""
    reason: str = ""
    decision: Decision | None = None
    findings: tuple[Finding, ...] = ()
    redacted: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    released_digest: str = ""


class HopResumed(_Record, frozen=True, tag="hop.resumed"):
    """A parked hop goes on with an input: a new hold, one more call, the next grant. All its grants before are dead.

    ``budget`` is held from the parent beside what the hop was charged before. ``args_digest`` is that of the opening.
    """

    jti: str
    scope: tuple[Detail, ...]
    budget: Budget
    exp: int
    deadline: int
    max_depth: int
    args_digest: str
    input_digest: str
    input_size: int
    decision: Decision
    epochs: Epochs
    findings: tuple[Finding, ...] = ()
    redacted: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    approval: str | None = None
    link: str | None = None
    brings: tuple[str, ...] = ()
    lowered: tuple[str, ...] = ()
    endorser: str = ""
    lowers: tuple[str, ...] = ()


class ApprovalRequested(_Record, frozen=True, tag="approval.requested"):
    """A call that was refused until people approve it. ``hop`` is the caller's own, ``id`` that of the refused call.

    An approval is for this and nothing else: the bytes of ``args_digest`` (keyed, as that of ``hop.opened``; what was redacted is
    not in them) to ``resource`` as ``definition`` describes it, along ``chain`` (from the user's first agent to the caller), under
    the policies of ``decision``, with no other ``labels`` in the chain and no wider ``scope`` for the callee. ``needs`` is what each
    policy that demands it wants, all of them until ``exp`` (Unix seconds). Whoever approves it vouches for what is sent: it loses the
    labels ``endorses``. ``resumes`` is the parked hop that is to go on with the
    input of ``input_digest``.
    """

    id: str
    caller: str
    user: str
    chain: tuple[str, ...]
    action: str
    resource: str
    definition: str
    args_digest: str
    args_size: int
    decision: Decision
    needs: tuple[Need, ...]
    exp: int
    scope: tuple[Detail, ...] = ()
    reason: str = ""
    findings: tuple[Finding, ...] = ()
    redacted: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    resumes: str | None = None
    input_digest: str = ""
    endorses: tuple[str, ...] = ()


class ApprovalDecided(_Record, frozen=True, tag="approval.decided"):
    """What one person said to a request. ``id`` and ``hop`` are the request's, ``request`` is the hash of its record.

    ``who`` is how the API knew them, ``user`` their name as a user, ``auth`` by what. With it the request is ``settled``, or waits
    for more people. An approval is used until ``exp`` (Unix seconds). ``token`` is the decision signed by the broker
    (:mod:`remit_schemas.approval`), so that nobody has to believe this.
    """

    id: str
    verdict: Literal["approve", "deny"]
    who: str
    user: str
    auth: str
    request: str
    exp: int
    token: str
    settled: bool
    roles: tuple[str, ...] = ()
    reason: str = ""


class GrantRevoked(_Record, frozen=True, tag="grant.revoked"):
    """A grant (``jti``; it and all its descendants) was revoked, or the whole txn (``jti`` of the root). ``hop`` is its hop."""

    jti: str
    who: str
    why: str = ""


class TxnClosed(_Record, frozen=True, tag="txn.closed"):
    """Nothing follows. ``spent`` is what the whole tree was charged.

    ``who`` closed it: an agent, the broker, :data:`OWNER`, or a person.
    """

    reason: Literal["closed", "expired", "idle", "revoked"]
    who: str
    spent: Budget
    overrun: Budget


Following = (
    HopOpened
    | GrantRenewed
    | HopParked
    | HopResumed
    | HopClosed
    | ApprovalRequested
    | ApprovalDecided
    | GrantRevoked
    | TxnClosed
)
"""A record that is not the first of its txn."""

Record = TxnOpened | Following


class HopRefused(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="hop.refused", tag_field="kind"
):
    """A call that never became a hop. It has a stream of its own: a caller cannot grow a txn with calls that were refused.

    ``txn``, ``parent`` and ``user`` are those of a *verified* grant, else None. ``count`` aggregates a flood. ``cause``
    is for operators and never leaves the broker's own records: ``hash`` is taken with it empty, as it stands in evidence.
    """

    v: int = VERSION
    tenant: str
    txn: str | None
    hop: str
    parent: str | None
    user: str | None
    at: str
    by: str
    caller: str
    resource: str
    stage: str
    code: Code
    message: str
    rule: str
    ask: str = ""
    cause: str = ""
    jti: str | None = None
    args_digest: str = ""
    decision: Decision | None = None
    findings: tuple[Finding, ...] = ()
    count: int = 1
    link: str | None = None
    facts: Facts | None = None
    hash: str = ""


AnyRecord = TypeVar(
    "AnyRecord", TxnOpened, HopOpened, GrantRenewed, HopParked, HopResumed, HopClosed, ApprovalRequested, ApprovalDecided,
    GrantRevoked, TxnClosed, HopRefused,
)  # fmt: skip


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A message of the ledger's stream: the record, and the grant that names the record's hash in ``rec``."""

    record: dict[str, Any]
    grant: str | None = None


class _Outgoing(msgspec.Struct, frozen=True, omit_defaults=True):
    """An :class:`Entry` whose record is encoded already."""

    record: msgspec.Raw
    grant: str | None = None


_encode = msgspec.json.Encoder().encode
_UNSEALED: Final = b'"hash":"",'
_SEAL: Final = len(f',"hash":"{GENESIS}"')
"""Bytes of a record that its hash does not cover: the hash itself."""


def encode_entry(record: Record, grant: str | None) -> bytes:
    """The message of the ledger's stream for a sealed record. Raises ValueError for a record of more than MAX_RECORD."""
    data = _encode(record)
    if len(data) - _SEAL > MAX_RECORD:
        raise ValueError(f"the record has {len(data) - _SEAL} bytes, at most {MAX_RECORD} are allowed")
    return _encode(_Outgoing(msgspec.Raw(data), grant))


def plain(record: Record | HopRefused) -> dict[str, Any]:
    """The record as JSON values, as it is stored, shown and hashed."""
    value: dict[str, Any] = msgspec.to_builtins(record)
    return value


def hash_of(raw: dict[str, Any]) -> str:
    """The hash that seals ``raw`` (whatever its own ``hash`` says). Raises ValueError for what is not canonical JSON."""
    return digest(canonical_document({key: value for key, value in raw.items() if key != "hash"}))


def sealing(raw: dict[str, Any]) -> tuple[str, bytes]:
    """:func:`hash_of` and the canonical form of the whole record, which is its leaf in the Merkle tree. Raises ValueError."""
    data = quick(raw)
    if data is not None and "hash" in raw and "hop" in raw:
        # Names are in order, so that "hop" follows "hash": what is taken out is a whole member.
        own = b'"hash":%s,' % _encode(raw.get("hash"))
        if data.count(own) == 1:
            return digest(data.replace(own, b"")), data
    return hash_of(raw), canonical_document(raw)


def seal(record: AnyRecord) -> AnyRecord:
    """The record with its ``hash`` set."""
    data = quick(record)
    # A record without its hash, as it is encoded: text of others cannot look so, its quotation marks are escaped.
    if data is not None and data.count(_UNSEALED) == 1:
        return msgspec.structs.replace(record, hash=digest(data.replace(_UNSEALED, b"")))
    raw = plain(record)
    del raw["hash"]
    return msgspec.structs.replace(record, hash=digest(canonical(raw)))


def parse_record(raw: Any) -> Record:
    """A stored record, with its type checked. Raises ``msgspec.ValidationError``."""
    return msgspec.convert({"it": raw}, _Recorded, strict=True).it


class _Recorded(msgspec.Struct, frozen=True):
    """A record as a field: what a struct looks like is worked out once, a union as such at every conversion."""

    it: Record


def parse_entry(data: bytes) -> Entry:
    """A message of the ledger's stream. Raises a MALFORMED refusal or ``msgspec.ValidationError``."""
    return msgspec.convert(loads(data, max_bytes=MAX_ENTRY), Entry, strict=True)
