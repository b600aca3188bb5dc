"""One append as values: what is to be stored, how it is published, and the answer."""

from __future__ import annotations

from typing import NamedTuple

from remit_broker.adapters.jetstream import Ack
from remit_broker.adapters.ledger_memory import Key, Known
from remit_broker.core.fold import Corrupt, Fold, extend
from remit_schemas.errors import Code, refusal
from remit_schemas.records import MAX_ENTRY, Record, encode_entry


class Stored(NamedTuple):
    """An answer to a publish, with what was known when the record was published."""

    ack: Ack
    before: int
    generation: int


class Ready(NamedTuple):
    """A sealed record that may stand where it is to be appended: what it makes of the fold, and its message."""

    record: Record
    after: Fold
    payload: bytes
    grant: str | None = None


class Shot(NamedTuple):
    """One append, as it is published, however often."""

    key: Key
    known: Known | None
    subject: str
    headers: dict[str, str]
    ready: Ready


def ready(fold: Fold | None, record: Record, grant: str | None) -> Ready:
    """``record`` as it is to be appended after ``fold``. Refuses INTERNAL for one that cannot stand there, TOO_LARGE."""
    try:
        after = extend(fold, record)
        payload = encode_entry(record, grant)
    except (Corrupt, ValueError) as unfit:
        raise refusal(
            Code.INTERNAL, "the broker made a record that cannot stand here", rule="ledger.unfit", cause=str(unfit)
        ) from None
    if len(payload) > MAX_ENTRY:
        raise refusal(
            Code.TOO_LARGE, f"a record and its grant have {len(payload)} bytes, at most {MAX_ENTRY} are stored",
            rule="ledger.entry", ask="ask for fewer scopes or shorter constraints",
        )  # fmt: skip
    return Ready(record, after, payload, grant)
