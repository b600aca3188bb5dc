"""``remit vault``, and contents in evidence, as people type it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.cli import Running, new_folder, remit, running


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A broker with a vault, and one call of ann's."""
    folder = new_folder(tmp_path_factory.mktemp("broker"))
    text = (folder / "remit.toml").read_text(encoding="utf-8")
    (folder / "remit.toml").write_text(text.replace("# on = false", "on = true"), encoding="utf-8")
    with running(folder) as found:
        found.agent("planner")
        found.server("tools")
        yield found


@pytest.fixture(scope="module")
def called(broker: Running) -> dict[str, Any]:
    told: dict[str, Any] = broker.json("call", "mcp/tools/echo", '{"text": "hello"}', "--as", "planner")
    return told


def test_a_content_is_shown_and_disclosed_and_then_erased(
    broker: Running, called: dict[str, Any], tmp_path: Path
) -> None:
    shown = broker.remit("vault", "show", called["hop"]).out
    assert "hello" in shown and "args" in shown and "result" in shown
    found = broker.json("vault", "show", f"{called['txn']}.{called['hop']}")
    user = found["user"]
    assert found["contents"][0]["value"] == {"text": "hello"}
    file, keys = tmp_path / "e.json", tmp_path / "jwks.json"
    keys.write_bytes(httpx.get(broker.ready["http"] + "/.well-known/jwks.json", trust_env=False).content)
    export = ("evidence", "export", called["txn"], "-o", str(file), "--with-payloads", "--hop", called["hop"])
    assert broker.remit(*export).code == 0
    assert len(json.loads(file.read_text())["payloads"]) == 2
    verified = remit("evidence", "verify", str(file), "--keys", str(keys))
    assert verified.code == 0 and "2 disclosed, as the records commit to them; 0 withheld" in verified.out
    page = tmp_path / "e.html"
    assert remit("evidence", "report", str(file), "--html", str(page), "--keys", str(keys)).code == 0
    assert "hello" in page.read_text()

    assert "held" in broker.remit("vault", "hold", "--user", user, "--reason", "case 17").out
    refused = broker.remit("vault", "erase", "--user", user, "--reason", "asked for it", "--json")
    assert (refused.code, refused.error["rule"]) == (1, "vault.held")
    assert "case 17" in broker.remit("vault", "list").out
    assert broker.json("vault", "release", "--user", user, "--reason", "closed")["state"] == "released"
    assert "erased what was kept" in broker.remit("vault", "erase", "--user", user, "--reason", "asked for it").out
    assert "nothing is kept of it" in broker.remit("vault", "show", called["hop"]).out
    assert [one["user"] for one in broker.json("vault", "list")["erased"]] == [user]
    assert broker.remit(*export).code == 0
    assert json.loads(file.read_text())["payloads"] == []
    assert remit("evidence", "verify", str(file), "--keys", str(keys)).code == 0
    assert "contents of" in broker.remit("audit", "accesses").out


def test_hops_of_payloads_without_payloads_are_no_wish(broker: Running, called: dict[str, Any], tmp_path: Path) -> None:
    done = broker.remit("evidence", "export", called["txn"], "-o", str(tmp_path / "e.json"), "--hop", called["hop"])
    assert done.code == 2 and not (tmp_path / "e.json").exists()
