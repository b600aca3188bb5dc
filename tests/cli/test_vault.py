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


def call(broker: Running) -> dict[str, Any]:
    told: dict[str, Any] = broker.json("call", "mcp/tools/echo", '{"text": "hello"}', "--as", "planner")
    return told


def keys_of(broker: Running, folder: Path) -> str:
    file = folder / "jwks.json"
    file.write_bytes(httpx.get(broker.ready["http"] + "/.well-known/jwks.json", trust_env=False).content)
    return str(file)


def test_a_content_is_shown_and_disclosed(broker: Running, tmp_path: Path) -> None:
    called, keys, file, page = call(broker), keys_of(broker, tmp_path), tmp_path / "e.json", tmp_path / "e.html"
    shown = broker.remit("vault", "show", called["hop"][:10]).out
    assert "hello" in shown and "args" in shown and "result" in shown
    export = ("evidence", "export", called["txn"], "-o", str(file), "--with-payloads", "--hop", called["hop"][:10])
    assert broker.remit(*export).code == 0
    assert len(json.loads(file.read_text())["payloads"]) == 2
    verified = remit("evidence", "verify", str(file), "--keys", keys)
    assert verified.code == 0 and "2 disclosed, as the records commit to them; 0 withheld" in verified.out
    assert remit("evidence", "report", str(file), "--html", str(page), "--keys", keys).code == 0
    assert "hello" in page.read_text()
    no = broker.remit("evidence", "export", called["txn"], "-o", str(tmp_path / "no.json"), "--hop", called["hop"])
    assert no.code == 2 and not (tmp_path / "no.json").exists(), "hops of payloads, without payloads"


def test_what_is_held_is_not_erased(broker: Running) -> None:
    assert "held" in broker.remit("vault", "hold", "--user", "hal", "--reason", "case 17").out
    refused = broker.remit("vault", "erase", "--user", "hal", "--reason", "asked for it", "--json")
    assert (refused.code, refused.error["rule"]) == (1, "vault.held")
    assert "case 17" in broker.remit("vault", "list").out
    assert broker.json("vault", "release", "--user", "hal", "--reason", "closed")["state"] == "released"
    assert "nothing was kept of hal" in broker.remit("vault", "erase", "--user", "hal", "--reason", "asked for it").out


def test_what_is_erased_is_gone_and_the_proof_is_not(broker: Running, tmp_path: Path) -> None:
    called, keys, file = call(broker), keys_of(broker, tmp_path), tmp_path / "e.json"
    found = broker.json("vault", "show", f"{called['txn']}.{called['hop']}")
    assert found["contents"][0]["value"] == {"text": "hello"}
    erase = ("vault", "erase", "--user", found["user"], "--reason", "asked for it")
    assert "erased what was kept" in broker.remit(*erase).out
    assert "nothing is kept of it" in broker.remit("vault", "show", called["hop"]).out
    assert broker.remit("evidence", "export", called["txn"], "-o", str(file), "--with-payloads").code == 0
    assert json.loads(file.read_text())["payloads"] == []
    assert remit("evidence", "verify", str(file), "--keys", keys).code == 0
