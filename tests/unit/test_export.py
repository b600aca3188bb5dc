"""Records as lines for other programs: nothing is lost, OCSF is valid, and a spreadsheet runs nothing."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

from remit_broker.core import ocsf
from remit_broker.core.export import COLUMNS, csv_line, head, writer
from remit_schemas.budget import Budget
from remit_schemas.errors import Code
from remit_schemas.records import Decision, Facts, Finding, plain
from tests.support import story
from tests.support.story import ROOT, Story, hop_id

HOP = hop_id(1)


def tale() -> list[dict[str, Any]]:
    """One record of every kind, and refusals."""
    told = Story(story.opened(roles=("analyst",), labels=("web",)))
    records = [plain(story.opened(roles=("analyst",), labels=("web",)))]

    def add(record: Any) -> None:
        told.add(record)
        records.append(plain(record))

    add(
        story.opening(
            told.fold,
            HOP,
            exp=1_800_000_000,
            facts=Facts(action="call", hints="r"),
            findings=(Finding("pii.email", "/a"),),
        )
    )
    add(story.renewing(told.fold, HOP))
    add(story.parking(told.fold, HOP))
    add(story.resuming(told.fold, HOP))
    add(story.closing(told.fold, HOP, Budget(7, 8, 0), "failed", code=Code.INTERNAL, rule="x", reason="it broke"))
    add(story.asking(told.fold, "e" * 16))
    add(story.deciding(told.fold, "e" * 16))
    add(story.revoking(told.fold, ROOT))
    add(story.ending(told.fold))
    deny = Decision("deny", ("no-mail",), "rev")
    records.append(plain(story.refused("f" * 16, txn=story.TXN, parent=ROOT, user="ann", decision=deny, count=3)))
    records.append(plain(story.refused("d" * 16, code=Code.CONTENT_DENIED)))
    return records


RECORDS: list[dict[str, Any]] = json.loads(json.dumps(tale()))
KINDS = [record["kind"] for record in RECORDS]


@pytest.fixture(scope="module")
def published() -> Any:
    """The published schema of the class, by those who publish it."""
    schema = OcsfJsonSchemaEmbedded(get_ocsf_schema(version=ocsf.VERSION)).get_class_schema("api_activity")
    return jsonschema_rs.validator_for(schema)


@pytest.mark.parametrize("record", RECORDS, ids=KINDS)
def test_every_record_is_a_valid_event_of_the_published_schema(record: dict[str, Any], published: Any) -> None:
    event = ocsf.event(record, "ann", "0.1.0")
    assert [f"{error.instance_path}: {error.message}" for error in published.iter_errors(event)] == []
    assert event["type_uid"] == 600300 + event["activity_id"]
    assert event["metadata"]["version"] == "1.8.0"
    assert event["unmapped"]["remit"] == record, "nothing is lost on the way"


def test_an_event_that_is_none_is_found_by_the_published_schema(published: Any) -> None:
    event = ocsf.event(RECORDS[0], "ann", "0.1.0")
    for key in ("actor", "time", "metadata"):
        assert list(published.iter_errors({name: value for name, value in event.items() if name != key}))
    assert list(published.iter_errors({**event, "remit": 1}))


def test_what_failed_says_so_and_what_was_refused_says_by_which_rule() -> None:
    events = {kind: ocsf.event(record, "ann", "0") for kind, record in zip(KINDS, RECORDS, strict=True)}
    assert [kind for kind, event in events.items() if event["status_id"] == ocsf.FAILURE] == [
        "hop.closed",
        "hop.refused",
    ]
    refused = ocsf.event(RECORDS[-2], "ann", "0")
    assert (refused["count"], refused["status_code"]) == (3, "OUT_OF_SCOPE")
    assert refused["unmapped"]["remit"]["decision"]["rules"] == ["no-mail"]
    assert ocsf.event(RECORDS[-1], "", "0")["severity_id"] == ocsf.HIGH
    assert events["hop.opened"]["activity_id"] == ocsf.READ
    assert events["hop.closed"]["actor"]["user"]["name"] == "ann"


def entry(record: dict[str, Any], user: str | None = "ann") -> dict[str, Any]:
    return {"stream": "ledger", "user": user, "record": record}


@pytest.mark.parametrize("record", RECORDS, ids=KINDS)
def test_a_line_of_json_is_the_entry(record: dict[str, Any]) -> None:
    line = writer("jsonl", "0")(entry(record))
    assert line.endswith("\n") and json.loads(line) == entry(record)


def rows(*lines: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(head("csv") + "".join(lines))))


def test_a_table_has_who_what_how_it_was_decided_and_what_it_cost() -> None:
    table = rows(*(csv_line(entry(record)) for record in RECORDS))
    assert [row["kind"] for row in table] == KINDS
    assert all(row["hash"] == record["hash"] for row, record in zip(table, RECORDS, strict=True))
    closed = table[KINDS.index("hop.closed")]
    assert (closed["user"], closed["outcome"], closed["code"], closed["reason"]) == (
        "ann",
        "failed",
        "INTERNAL",
        "it broke",
    )
    assert table[KINDS.index("hop.opened")]["findings"] == "pii.email@/a"
    refused = table[KINDS.index("hop.refused")]
    assert (refused["decision"], refused["rules"], refused["count"]) == ("deny", "no-mail", "3")


@pytest.mark.parametrize(
    "evil",
    ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1", "|cmd", "%0A=1", "\uff1d1", '"=1', "\u00a0=1"],
)
def test_no_cell_of_a_csv_is_a_formula(evil: str) -> None:
    record = {**RECORDS[KINDS.index("hop.refused")], "caller": evil, "resource": evil, "message": evil, "rule": evil}
    (row,) = rows(csv_line(entry(record, evil)))
    for name in ("caller", "resource", "reason", "rule"):
        cell = row[name]
        assert not cell.lstrip().startswith(("=", "+", "-", "@", "|", "%", "\uff1d")), (name, cell)
        assert evil in cell, "nothing is lost"


@settings(deadline=None)
@given(st.text())
def test_whatever_is_in_a_cell_a_row_stays_a_row(text: str) -> None:
    record = {**RECORDS[KINDS.index("hop.refused")], "caller": text, "message": text}
    (row,) = rows(csv_line(entry(record)))
    assert list(row) == list(COLUMNS) and row["hash"] == record["hash"]
