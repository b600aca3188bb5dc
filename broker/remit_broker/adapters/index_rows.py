"""From messages of the streams to rows of the index. Pure.

A txn whose records do not follow one another is marked as broken at the first that does not, and nothing more of it is
projected; what the stream holds stays there to be looked at. Kinds that this version does not know are kept as records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from remit_broker.adapters import index_marks
from remit_broker.adapters.jetstream import Message
from remit_broker.core.marks import Mark, marks
from remit_broker.core.merkle import leaf_hash
from remit_broker.core.sealing import refusal_leaf
from remit_schemas.budget import UNITS
from remit_schemas.errors import Refusal
from remit_schemas.records import GENESIS, Entry, parse_entry, sealing

Key = tuple[str, str]
Row = tuple[Any, ...]
_json = msgspec.json.Encoder().encode


class Head(NamedTuple):
    """The last record of a txn that was projected."""

    seq: int
    hash: str
    broken: str | None = None
    opened_at: str = ""


class Rows:
    """What a batch of ledger messages adds to each table, and the heads of the txns it touches."""

    def __init__(self, heads: Mapping[Key, Head]) -> None:
        self.heads: dict[Key, Head] = dict(heads)
        self.records: list[Row] = []
        self.txns: list[Row] = []
        self.hops: dict[tuple[Key, str], Row] = {}
        self.waits: dict[tuple[Key, str], Row] = {}
        """Since when a hop is parked (None: it runs again), and its deadline where it has a new one."""
        self.closings: list[Row] = []
        self.charges: dict[tuple[Key, str], list[int]] = {}
        """What was charged to each parent: only a root's is kept."""
        self.late_charges: list[Row] = []
        """Charges of hops that an earlier batch opened, whose parent is in the table."""
        self.counts: dict[Key, list[int]] = {}
        """Hops opened and closed, by txn."""
        self.endings: list[Row] = []
        self.requests: list[Row] = []
        self.votes: list[Row] = []
        self.uses: list[Row] = []
        """Approvals that were asked for, what people said to them, and which hop used one up."""
        self.marks: dict[Key, set[Mark]] = {}
        """What the txns are found by."""
        self.last: dict[Key, Row] = {}
        self.broken: list[Row] = []
        self.leaves: list[bytes] = []
        """The leaf of each message in the Merkle tree, whether its record holds or not: what the stream holds is what is proved."""


def key_of(message: Message) -> Key:
    """(tenant, txn) of a message of the ledger, from its subject."""
    _, tenant, txn = [*message.subject.split(".", 2), "", ""][:3]
    return tenant, txn


def project(messages: Sequence[Message], heads: Mapping[Key, Head]) -> Rows:
    """The rows of ``messages``, whose txns stood at ``heads`` before."""
    rows = Rows(heads)
    # All of a batch is one transaction: what it changes twice in one row is written once.
    for message in messages:
        key = key_of(message)
        head = rows.heads.get(key, Head(-1, GENESIS))
        try:
            entry, sealed, leaf = _read(message)
        except (ValueError, KeyError, TypeError, Refusal) as error:
            entry, sealed, leaf = None, str(error), message.data
        rows.leaves.append(leaf_hash(leaf))
        if head.broken is not None:
            continue
        try:
            record, grant = _follow(entry, sealed, key, head)
            _add(rows, key, record, message.seq)
        except (ValueError, KeyError, TypeError, Refusal) as error:
            why = f"at {message.seq} of the stream: {error}"
            rows.heads[key] = head._replace(broken=why)
            rows.broken.append((*key, why))
            continue
        at, hop = record["at"], record["hop"]
        body = _json(record).decode()
        rows.records.append((message.seq, *key, record["seq"], at, record["kind"], hop, body, grant))
        head = rows.heads[key] = Head(record["seq"], record["hash"], None, head.opened_at or at)
        rows.marks.setdefault(key, set()).update(marks(record))
        rows.last[key] = (at, record["seq"], record["hash"], message.seq)
    return rows


def _read(message: Message) -> tuple[Entry, str, bytes]:
    """The entry of a message, the hash that its record should have, and the record's canonical form."""
    entry = parse_entry(message.data)
    return entry, *sealing(entry.record)


def _follow(entry: Entry | None, sealed: str, key: Key, head: Head) -> tuple[dict[str, Any], str | None]:
    """The record and its grant; ``sealed`` is its hash, or why there is no entry."""
    if entry is None:
        raise ValueError(sealed)
    record = entry.record
    if (record["tenant"], record["txn"]) != key:
        raise ValueError("the record is of another txn")
    if record["seq"] != head.seq + 1 or record["prev"] != head.hash:
        raise ValueError(f"record {record['seq']} does not follow record {head.seq}")
    if record["hash"] != sealed:
        raise ValueError(f"record {record['seq']} is not sealed by its hash")
    return record, entry.grant


def _add(rows: Rows, key: Key, record: dict[str, Any], stream_seq: int) -> None:
    kind, at, hop = record["kind"], record["at"], record["hop"]
    if kind == "txn.opened":
        limit = [record["budget"][unit] for unit in UNITS]
        rows.txns.append(
            (*key, record["user"], record["agent"], hop, record["continues"], at, at, record["exp"], *limit, 0,
             record["hash"], stream_seq)
        )  # fmt: skip
    elif kind == "hop.opened":
        resource = record["resource"]
        callee = resource.split("/")[1]
        opened = (record["parent"], record["caller"], callee, resource, at, record["deadline"])
        rows.hops[key, hop] = (*key, hop, *opened, None, None, None)
        rows.counts.setdefault(key, [0, 0])[0] += 1
        _use(rows, key, record)
    elif kind == "hop.parked":
        rows.waits[key, hop] = (at, rows.waits.get((key, hop), (None, None))[1], *key, hop)
    elif kind == "hop.resumed":
        rows.waits[key, hop] = (None, record["deadline"], *key, hop)
        _use(rows, key, record)
    elif kind == "approval.requested":
        what = (record["id"], record["seq"], record["user"], record["resource"])
        rows.requests.append((*key, *what, at, record["exp"]))
    elif kind == "approval.decided":
        verdict = record["verdict"] if record["settled"] else None
        rows.votes.append((verdict, record["exp"], record["exp"], *key, record["id"]))
    elif kind == "hop.closed":
        _close(rows, key, record)
        rows.counts.setdefault(key, [0, 0])[1] += 1
    elif kind == "txn.closed":
        rows.endings.append((at, record["reason"], *key))


def _use(rows: Rows, key: Key, record: dict[str, Any]) -> None:
    if record.get("approval") is not None:
        rows.uses.append((record["hop"], *key, record["approval"]))


def _close(rows: Rows, key: Key, record: dict[str, Any]) -> None:
    spent = [record["spent"][unit] for unit in UNITS]
    closing = (record["at"], record["outcome"], record["code"])
    hop = record["hop"]
    opened = rows.hops.get((key, hop))
    if opened is None:
        rows.closings.append((*closing, *key, hop))
        rows.late_charges.append((*spent, *key, *key, hop))
        return
    rows.hops[key, hop] = (*opened[:-3], *closing)
    charged = rows.charges.setdefault((key, opened[3]), [0, 0, 0])
    for index, amount in enumerate(spent):
        charged[index] += amount


def refusal_row(message: Message) -> tuple[Row | None, bytes, list[Row]]:
    """The row of a refused call (None for a message that is not one), its leaf: as it leaves with evidence, without its cause; and its
    marks."""
    try:
        record = parse_entry(message.data).record
        at = (record["hop"], record["user"], record["caller"], record["resource"], record["code"], record["at"])
        body = _json(record).decode()
        row = (message.seq, record["tenant"], record["txn"], *at, record["count"], body)
    except (ValueError, KeyError, TypeError, Refusal):
        return None, refusal_leaf(message.data), []
    return row, refusal_leaf(message.data), index_marks.of_refusals([record])
