"""``remit audit export`` and ``push``: from the shell, all of it, going on where it stopped."""

from __future__ import annotations

import csv
import json
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from remit_broker.adapters.errors import ConfigError
from remit_broker.cli.audit_export import moment
from tests.integration.test_audit_export import a_siem
from tests.support.cli import Running


@pytest.fixture(scope="module")
def told(broker: Running) -> Iterator[int]:
    """How many records there are."""
    broker.agent("auditor")
    for _ in range(3):
        broker.json("grant", "--user", "=ann()", "--to", "auditor", "--scope", "agent/**")
    yield len(broker.remit("audit", "export").out.splitlines())


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_export_goes_on_where_it_stopped(broker: Running, told: int, tmp_path: Path) -> None:
    file, cursor = tmp_path / "log.jsonl", tmp_path / "cursor"
    words = ("audit", "export", "-o", str(file), "--cursor-file", str(cursor), "--json")
    assert broker.json(*words)["records"] == len(lines(file)) >= told >= 3
    before = lines(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert broker.json(*words)["records"] == 0
    file.write_text(file.read_text() + '{"half of a li')
    broker.json("grant", "--user", "bob", "--to", "auditor", "--scope", "agent/**")
    assert broker.json(*words)["records"] == 1
    assert lines(file)[:-1] == before and lines(file)[-1]["user"] == "bob"


def test_a_table_and_events_say_the_same(broker: Running, told: int, tmp_path: Path) -> None:
    table, events = tmp_path / "log.csv", tmp_path / "log.ocsf"
    assert broker.remit("audit", "export", "--format", "csv", "-o", str(table)).code == 0
    assert broker.remit("audit", "export", "--format", "ocsf", "-o", str(events)).code == 0
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["hash"] for row in rows] == [event["metadata"]["uid"] for event in lines(events)]
    assert "'=ann()" in {row["user"] for row in rows}, "a spreadsheet shows it and runs nothing"
    assert broker.remit("audit", "export", "--since", "2100-01-01T00:00:00Z").out == ""


def test_records_are_pushed_and_the_place_is_kept(broker: Running, told: int, tmp_path: Path) -> None:
    with a_siem() as there:
        words = ("audit", "push", "--to", there.url, "--cursor-file", str(tmp_path / "place"), "--batch", "2", "--json")
        there.answers = [200, 403]
        stopped = broker.remit(*words)
        assert stopped.code == 1 and len(there.took) == 2
        broker.json(*words)
        hashes = [event["metadata"]["uid"] for event in there.took]
        assert len(hashes) == len(set(hashes)) >= told
        assert broker.json(*words)["records"] == 0


def test_who_read_the_records_is_told(broker: Running, told: int) -> None:
    found = broker.json("audit", "accesses")
    assert found["chain"]["broken"] is None and "records" in [one["what"] for one in found["accesses"]]
    assert "read records" in broker.remit("audit", "accesses").out


def test_times_are_said_as_times_or_as_how_long_ago() -> None:
    now = datetime(2026, 11, 3, 14, 2, 11, tzinfo=UTC)
    assert moment("24h", now) == "2026-11-02T14:02:11.000Z" and moment("7d", now) == "2026-10-27T14:02:11.000Z"
    assert moment("2026-11-03T15:00:00+01:00", now) == "2026-11-03T14:00:00.000Z"
    assert moment(None, now) is None
    with pytest.raises(ConfigError):
        moment("yesterday", now)
