"""``remit budgets``: what people and programs see of the caps."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from remit_broker.testing import running_broker
from tests.support.cli import Running, new_folder, remit, running
from tests.support.raw import arena_on, tool


def test_without_caps_it_says_where_they_are_set(broker: Running) -> None:
    assert "[caps] of remit.toml" in broker.remit("budgets").out
    assert broker.json("budgets") == {"budgets": []}


def test_a_cap_that_is_named_is_shown_before_anybody_used_it(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "broker")
    file = folder / "remit.toml"
    text = file.read_text(encoding="utf-8").replace("[caps]", '[caps]\nuser."ann".day = "usd=5,calls=20"\n', 1)
    text = text.replace("[prices]", '[prices]\n"*" = "usd=0.001,calls=1"\n', 1)
    file.write_text(text, encoding="utf-8")
    assert remit("check", "-c", str(folder)).code == 0
    with running(folder) as broker:
        (row,) = broker.json("budgets")["budgets"]
        assert (row["kind"], row["name"], row["window"]) == ("user", "ann", "day")
        assert row["cap"] == row["left"] == {"usd_micros": 5_000_000, "calls": 20}
        assert row["spent"] == row["held"] == row["leased"] == {"usd_micros": 0, "calls": 0}
        assert row["ends"].endswith("T00:00:00.000Z")
        assert broker.json("budgets", "--kind", "user", "--name", "a*")["budgets"] == [row]
        for words in (["--kind", "tool"], ["--name", "bob"]):
            assert broker.json("budgets", *words)["budgets"] == []
        assert "none of these" in broker.remit("budgets", "--kind", "tool").out
        wrong = broker.remit("budgets", "--kind", "users", "--json")
        assert (wrong.code, wrong.error["code"]) == (1, "MALFORMED") and "agent" in wrong.error["ask"]
        shown = " ".join(broker.remit("budgets").out.split())
        assert "user ann day until" in shown and "cap $5+20 calls" in shown and "left $5+20 calls" in shown


def test_check_refuses_a_cap_that_could_never_bind(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "broker")
    file = folder / "remit.toml"
    text = file.read_text(encoding="utf-8").replace("[caps]", '[caps]\nuser."ann".week = "usd=5"\n', 1)
    file.write_text(text, encoding="utf-8")
    done = remit("check", "--json", "-c", str(folder))
    assert done.code == 2
    assert f'{file}: caps.user."ann".week: there is no such window' in json.dumps(done.json()).replace('\\"', '"')


def test_check_refuses_a_cap_that_nothing_is_counted_in(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "broker")
    file = folder / "remit.toml"
    text = file.read_text(encoding="utf-8").replace("[caps]", '[caps]\nuser."ann".day = "usd=5"\n', 1)
    file.write_text(text, encoding="utf-8")
    done = remit("check", "--json", "-c", str(folder))
    (part,) = [part for part in done.json()["checks"] if not part["ok"]]
    assert done.code == 2 and part["check"] == "limits" and 'caps.user."ann".day' in part["said"]
    assert "prices" in part["ask"]


def test_check_warns_of_a_limit_that_nothing_registered_fits(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "broker")
    file = folder / "remit.toml"
    text = file.read_text(encoding="utf-8").replace("[caps]", '[caps]\nagent."planer".day = "calls=5"\n', 1)
    text = text.replace("[rates]", '[rates]\ncaller."plan*" = "5/s"\n', 1)
    file.write_text(text, encoding="utf-8")
    with running(folder) as broker:
        broker.agent("planner")
        (part,) = [part for part in broker.json("check")["checks"] if part["check"] == "limits"]
        assert part["ok"] and 'fits: caps.agent."planer"' in part["said"] and "rates" not in part["said"]


async def test_what_is_spent_is_shown_by_the_api_as_it_is_counted(tmp_path: Path) -> None:
    caps = {"user": {"default": {"day": "calls=20"}}}
    async with running_broker(tmp_path, {"caps": caps}) as lab, arena_on(lab) as arena:
        alice, files = await arena.agent("alice"), await arena.agent("files", "mcp")
        await files.serve(tool("read"))
        root = await lab.grant("alice", "mcp/**")
        calling = asyncio.ensure_future(alice.result("mcp/files/read", root.txn, root.grant))
        taken = await files.took(root.txn)
        (row,) = await lab.broker.accounts.report("default")
        assert (row["spent"], row["held"]) == ({"calls": 0}, {"calls": 1})
        await taken.done()
        await calling
        (row,) = await lab.broker.accounts.report("default")
        assert (row["spent"], row["held"]) == ({"calls": 1}, {"calls": 0})
        assert sum(row[name]["calls"] for name in ("spent", "held", "leased", "left")) == 20
