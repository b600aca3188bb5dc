"""The records as lines for other programs: JSON, CSV or OCSF. Pure: one entry in, one line out.

An entry is ``{"stream", "user", "record"}``, as a page of ``/api/records`` has it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from typing import Any, Final, Literal

from remit_broker.core import ocsf

Format = Literal["jsonl", "csv", "ocsf"]
Entry = dict[str, Any]

COLUMNS: Final = (
    "at", "tenant", "txn", "hop", "seq", "kind", "user", "caller", "resource", "parent", "depth", "decision", "rules",
    "policy_revision", "code", "rule", "outcome", "effect", "approval", "verdict", "who", "reason", "usd_micros", "tokens",
    "calls", "ms", "labels", "findings", "args_digest", "result_digest", "count", "by", "prev", "hash",
)  # fmt: skip
"""Columns of the CSV. Amounts are those charged, where the record charges something, else those granted or held."""

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a spreadsheet takes for the beginning of a formula (OWASP, CSV injection), the full-width forms too."""


def writer(form: Format, product: str) -> Callable[[Entry], str]:
    """What makes one line, with its end, of one entry."""
    if form == "csv":
        return csv_line
    if form == "ocsf":
        return lambda entry: json.dumps(ocsf.event(entry["record"], entry["user"] or "", product)) + "\n"
    return lambda entry: json.dumps(entry) + "\n"


def head(form: Format) -> str:
    """What stands above the first line of a new file."""
    return _row(COLUMNS) if form == "csv" else ""


def csv_line(entry: Entry) -> str:
    """One row. What is text of others never becomes a formula.

    INVARIANT: no cell begins as a formula does (test_no_cell_of_a_csv_is_a_formula).
    """
    record = entry["record"]
    decision = record.get("decision") or {}
    amount = record.get("spent") or record.get("budget") or {}
    cells = {
        **{name: record.get(name) for name in COLUMNS},
        "user": record.get("user") or entry["user"],
        "caller": record.get("caller") or record.get("agent"),
        "decision": decision.get("effect"),
        "rules": " ".join(decision.get("rules", ())),
        "policy_revision": decision.get("revision"),
        "reason": record.get("reason") or record.get("message") or record.get("why"),
        "labels": " ".join(record.get("labels", ())),
        "findings": " ".join(f"{finding['kind']}@{finding['where'] or '/'}" for finding in record.get("findings", ())),
        **{unit: amount.get(unit) for unit in ("usd_micros", "tokens", "calls")},
    }
    return _row([_cell(cells[name]) for name in COLUMNS])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return str(value)
    text = str(value)
    return f"'{text}" if text.lstrip(" \u00a0").startswith(_FORMULA) else text


class _Line:
    """Where the CSV writer of the library writes its one line to."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text = text


def _row(cells: Any) -> str:
    line = _Line()
    csv.writer(line, lineterminator="\r\n").writerow(cells)
    return line.text
