"""``remit doctor``: with everything well, with the broker down, and with one thing wrong at a time."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remit_broker.cli.doctor.broker import replicas
from tests.support.cli import Running, new_folder, remit, running


def states(folder: Path | str, code: int) -> dict[str, list[dict[str, Any]]]:
    done = remit("doctor", "--json", "-c", str(folder), fresh=True)
    assert done.code == code, done.out
    found: dict[str, list[dict[str, Any]]] = {}
    for one in json.loads(done.out)["checks"]:
        found.setdefault(one["check"], []).append(one)
        assert one["state"] == "ok" or one["state"] == "note" or one["ask"], one
    return found


def test_with_everything_well_each_part_is_looked_at(broker: Running) -> None:
    remit("agents", "add", "doctored", "-c", str(broker.folder))
    found = states(broker.folder, 0)
    assert set(found) == {
        "configuration", "policies", "users", "keys", "limits", "servers",
        "nats-server", "ports", "files", "disk", "fsync", "index", "bus",
        "durability", "clock", "streams", "callout", "credentials", "broker", "replicas", "index lag", "orphans",
    }  # fmt: skip
    assert all(one["state"] in ("ok", "note") for parts in found.values() for one in parts), found
    text = remit("doctor", "-c", str(broker.folder), fresh=True)
    assert text.code == 0 and "✓ callout: lets in whom it should" in text.out and "✗" not in text.out


def test_with_the_broker_down_it_says_what_it_could_not_look_at(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "down")
    with running(folder):
        pass
    found = states(folder, 3)
    assert found["files"][0]["state"] == found["index"][0]["state"] == "ok"
    assert found["bus"][0]["state"] == found["broker"][0]["state"] == "unknown"
    assert "remit up" in found["broker"][0]["ask"]


def _loosen(folder: Path) -> None:
    (folder / "data" / "keys" / "digest.key").chmod(0o644)


def _damage_index(folder: Path) -> None:
    file = folder / "data" / "index" / "index.db"
    file.with_name("index.db-wal").unlink(missing_ok=True)
    data = bytearray(file.read_bytes())
    data[4096 * 2 : 4096 * 3] = os.urandom(4096)
    file.write_bytes(data)


def _break_a_task(folder: Path) -> None:
    with sqlite3.connect(folder / "data" / "index" / "index.db") as db:
        db.execute("INSERT INTO broken VALUES ('default', 'x', 'at 7 of the stream: it does not follow')")


def _misspell(folder: Path) -> None:
    (folder / "remit.toml").write_text("[bus]\nsynk = 1\n")


def _unreadable_policy(folder: Path) -> None:
    (folder / "policies" / "default.cedar").write_text("permit(")


def _external_that_is_away(folder: Path) -> None:
    (folder / "remit.toml").write_text('[http]\nport = 0\n[bus]\nurl = "nats://127.0.0.1:1"\n')


@pytest.mark.parametrize(
    ("spoil", "check", "said", "code"),
    [
        (_loosen, "files", "can be read or changed by others", 1),
        (_damage_index, "index", "damaged", 1),
        (_break_a_task, "index", "do not hold together", 1),
        (_misspell, "configuration", "synk", 1),
        (_unreadable_policy, "policies", "default.cedar", 1),
        (_external_that_is_away, "bus", "nats://127.0.0.1:1", 3),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, used: Path, spoil: Callable[[Path], None], check: str, said: str, code: int
) -> None:
    spoil(used)
    found = states(used, code)
    bad = [one for one in found[check] if one["state"] != "ok"]
    assert bad and said in bad[0]["said"], found
    assert bad[0]["ask"]


@pytest.fixture
def used(tmp_path: Path) -> Path:
    """A folder that a broker has run on."""
    folder = new_folder(tmp_path / "used")
    with running(folder):
        pass
    return folder


def replica(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "replica": name,
        "silent": 0.1,
        "host": "h",
        "keys": "k",
        "policy": "p",
        "config": "c",
        "version": "1",
    } | fields


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"keys": "x"}, "they differ in keys: a k, b x"),
        ({"policy": "x"}, "they differ in policy: a p, b x"),
        ({"config": "x"}, "they differ in config: a c, b x"),
        ({"silent": 9.0}, "b on h has been silent for 9 s"),
        ({"policy_trouble": "bad.cedar:2: no"}, "b on h does not take an edit that is not valid: bad.cedar:2: no"),
    ],
)
def test_replicas_that_are_silent_or_of_another_mind_are_named(second: dict[str, Any], said: str) -> None:
    status = {"replicas": [replica("a"), replica("b", **second)], "group": {"expected": 1, "alive": 1}}
    assert said in [one.said for one in replicas(status) if one.state == "wrong"]


def test_a_group_that_is_not_complete_is_named() -> None:
    status = {"replicas": [replica("a")], "group": {"expected": 2, "alive": 1}}
    assert [one.said for one in replicas(status) if one.state == "wrong"] == ["1 of 2 processes of this broker live"]
