"""The log from the shell: checkpoints that somebody keeps, an audit against them, keys that are rotated, an index made again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import httpx
import pytest

from tests.support.cli import Running, new_folder, remit, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def chain(broker: Running) -> str:
    told = broker.remit("call", "mcp/tools/echo", '{"text": "hello"}', "--as", "planner", "--json").json()
    assert "txn" in told, told
    return str(told["txn"])


def jwks(broker: Running, to: Path) -> Path:
    to.write_bytes(httpx.get(broker.ready["http"] + "/.well-known/jwks.json", trust_env=False).content)
    return to


def test_a_log_over_a_rotation_a_rebuild_and_a_restart(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "broker")
    kept, old, e1 = tmp_path / "kept.json", tmp_path / "old-jwks.json", tmp_path / "e1.json"
    with running(folder) as broker:
        broker.agent("planner")
        broker.server("tools")
        broker.remit("evidence", "export", chain(broker), "-o", str(e1))
        jwks(broker, old)
        token = (folder / "data" / "keys" / "local.token").read_text()
        asked = httpx.get(
            broker.ready["http"] + "/api/checkpoint", headers={"Authorization": f"Bearer {token}"}, trust_env=False
        )
        kept.write_bytes(asked.content)
        assert asked.json()["checkpoint"].split("\n")[0].endswith("/remit/ledger")
        well = remit("audit", "verify", "--since-checkpoint", str(kept), "--json", "-c", str(folder))
        assert well.code == 0, well.out
        checks = {one["check"]: one["ok"] for one in well.json()["checks"]}
        assert checks["tree"] and checks["checkpoints"] and checks["since"]
        no = remit("index", "rebuild", "-c", str(folder))
        assert no.code == 2 and "stop it first" in no.err
    rotated = remit("keys", "rotate", "--json", "-c", str(folder)).json()
    assert [key["use"] for key in rotated if key["signs"]] == ["grant", "checkpoint"]
    assert len([key for key in rotated if key["retired"]]) == 2
    again = remit("index", "rebuild", "--json", "-c", str(folder))
    assert again.code == 0 and again.json()["differs"] == [] and again.json()["records"] == 4
    with running(folder) as broker:
        broker.server_runs("tools")
        e2, new = tmp_path / "e2.json", jwks(broker, tmp_path / "new-jwks.json")
        broker.remit("evidence", "export", chain(broker), "-o", str(e2))
        assert remit("evidence", "verify", str(e1), "--keys", str(new)).code == 0
        assert remit("evidence", "verify", str(e2), "--keys", str(new)).code == 0
        assert remit("evidence", "verify", str(e2), "--keys", str(old)).code == 1
        words = ("audit", "verify", "--since-checkpoint", str(kept), "-c", str(folder))
        assert remit(*words).code == 0
        assert remit(*words, "--keys", str(new)).code == 0


def test_the_evidence_as_a_page_and_the_verifier_as_a_file(broker: Running, tmp_path: Path) -> None:
    broker.agent("planner")
    broker.server("tools")
    file, keys, page = tmp_path / "e.json", jwks(broker, tmp_path / "jwks.json"), tmp_path / "e.html"
    broker.remit("evidence", "export", chain(broker), "-o", str(file))
    done = remit("evidence", "report", str(file), "--html", str(page), "--keys", str(keys), "--json")
    assert done.code == 0 and done.json() == {"file": str(page), "verified": True}
    text = page.read_text()
    assert "✓ Verified" in text and "mcp/tools/echo" in text and "Policy set" in text and "permit" in text
    unsure = remit("evidence", "report", str(file), "--html", str(page))
    assert unsure.code == 1 and "✗ Not verified" in page.read_text()
    assert remit("evidence", "verifier", "-o", str(tmp_path / "v.py")).code == 0
    import subprocess
    import sys

    command = [sys.executable, "-I", "-S", str(tmp_path / "v.py"), str(file), "--keys", str(keys), "--json"]
    alone = subprocess.run(command, capture_output=True, text=True, check=False)
    assert alone.returncode == 0, alone.stdout
    assert json.loads(alone.stdout)["verified"] is True
    shutil.rmtree(tmp_path)
