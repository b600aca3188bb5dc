"""The marks in the index's file: written in the transaction that projects what they are marks of. These run in the writer's thread.

The two streams are read side by side, so that a refusal may come before the task that it is in: whichever is second makes the marks.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from remit_broker.core.marks import Mark, marks

Row = tuple[Any, ...]

INSERT: Final = "INSERT OR IGNORE INTO mark VALUES (?,?,?,?,?)"
OF_KNOWN: Final = "INSERT OR IGNORE INTO mark SELECT tenant, ?, ?, opened_at, txn FROM txn WHERE (tenant, txn) = (?,?)"
"""A mark of a task that may not be there yet: then there is none."""
COST: Final = (
    "INSERT OR IGNORE INTO mark SELECT tenant, 'cost', printf('%02d', length(spent_usd_micros)), opened_at, txn FROM txn "
    "WHERE (tenant, txn) = (?,?) AND spent_usd_micros > 0"
)
"""After the charges. A task that cost more meanwhile is found at its earlier costs too: a listing looks at what it cost in the end."""
_BATCH: Final = 5000


def rows(found: Mapping[tuple[str, str], Iterable[Mark]], opened: Callable[[tuple[str, str]], str]) -> list[Row]:
    """The rows of what was found of each task (tenant, txn), in the order of the table; ``opened`` says when a task was."""
    made = [(key[0], *mark, opened(key), key[1]) for key, marked in found.items() for mark in marked]
    made.sort()
    return made


def of_refusals(refused: Iterable[Mapping[str, Any]]) -> list[Row]:
    """What :data:`OF_KNOWN` takes, for records of refusals; those outside any task have no marks."""
    found = {(*mark, one["tenant"], one["txn"]): None for one in refused if one["txn"] for mark in marks(one)}
    return list(found)


def refused_before(keys: Sequence[tuple[str, str]], db: sqlite3.Connection) -> None:
    """The marks of refusals that were projected before the tasks ``keys`` were opened. Within a transaction."""
    query = "SELECT body FROM refusal WHERE (tenant, txn) = (?,?)"
    for key in keys:
        # INVARIANT: it does not matter which stream is read first (test_a_refusal_may_be_read_before_its_task).
        bodies = [json.loads(body) for (body,) in db.execute(query, key)]
        db.executemany(OF_KNOWN, of_refusals(bodies))


def fill(db: sqlite3.Connection) -> None:
    """All marks, from what is in the tables: for a file of a version that had none. Within a transaction."""
    ledger = (
        "SELECT r.tenant, r.txn, t.opened_at, r.body FROM record r JOIN txn t ON (t.tenant, t.txn) = (r.tenant, r.txn)"
    )
    refused = (
        "SELECT r.tenant, r.txn, t.opened_at, r.body FROM refusal r JOIN txn t ON (t.tenant, t.txn) = (r.tenant, r.txn)"
    )
    for query in (ledger, refused):
        found = db.execute(query)
        while batch := found.fetchmany(_BATCH):
            opened = {(tenant, txn): at for tenant, txn, at, _ in batch}
            made: dict[tuple[str, str], set[Mark]] = {key: set() for key in opened}
            for tenant, txn, _, body in batch:
                made[tenant, txn].update(marks(json.loads(body)))
            db.executemany(INSERT, rows(made, opened.__getitem__))
    db.executemany(COST, db.execute("SELECT tenant, txn FROM txn").fetchall())
