"""``remit demo``: what it shows happened, its evidence verifies, and it runs where a new user runs it."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Result, remit, running


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any], Result]]:
    """A demonstration outside of any checkout, without a network, whose folder is kept."""
    here = tmp_path_factory.mktemp("demo")
    nowhere = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
    done = remit("demo", "--json", "--keep", str(here / "kept"), cwd=here, env=nowhere)
    assert done.code == 0, done.err
    yield here / "kept", done.json(), done


def test_it_is_the_json_of_the_contract(kept: tuple[Path, dict[str, Any], Result]) -> None:
    shown = kept[1]
    assert list(shown) == ["txn", "hops", "attempts", "evidence", "result"]
    assert re.fullmatch("[0-9a-f]{32}", shown["txn"])
    for hop in shown["hops"]:
        assert list(hop) == ["hop", "parent", "caller", "target", "decision", "code", "reason"]
        assert hop["decision"] in ("allow", "deny")
        assert hop["reason"]
    assert all(list(attempt) == ["what", "stopped_by"] for attempt in shown["attempts"])
    assert shown["evidence"]["verified"] is True
    assert shown["evidence"]["records"] >= 8
    assert shown["result"]


def test_an_allowed_chain_of_three_hops_ends_in_the_real_server(
    kept: tuple[Path, dict[str, Any], Result],
) -> None:
    hops = {hop["hop"]: hop for hop in kept[1]["hops"] if hop["decision"] == "allow"}
    (leaf,) = [hop for hop in hops.values() if hop["target"] == "mcp/git/git_log"]
    chain = [leaf]
    while chain[-1]["parent"] in hops:
        chain.append(hops[chain[-1]["parent"]])
    assert [hop["target"] for hop in chain] == ["mcp/git/git_log", "agent/researcher/history", "agent/planner/plan"]
    assert "the schemas as they were installed" in json.dumps(kept[1]["result"]), "the commit that it really read"


def test_hops_are_refused_for_reasons_of_different_kinds(kept: tuple[Path, dict[str, Any], Result]) -> None:
    codes = {hop["code"] for hop in kept[1]["hops"] if hop["decision"] == "deny"}
    assert {"OUT_OF_SCOPE", "BUDGET_EXCEEDED", "CYCLE"} <= codes
    assert codes & {"POLICY_DENIED", "CONTENT_DENIED", "APPROVAL_REQUIRED"}


def test_what_anybody_may_have_written_keeps_a_chain_from_sending_mail(
    kept: tuple[Path, dict[str, Any], Result],
) -> None:
    (mail,) = [hop for hop in kept[1]["hops"] if hop["target"] == "agent/planner/mail"]
    assert (mail["decision"], mail["code"]) == ("deny", "POLICY_DENIED")
    assert "no-mail-after-foreign-text" in mail["reason"] or "such chains send no mail" in mail["reason"]


def test_an_agent_that_goes_to_the_bus_is_stopped_by_the_server_each_time(
    kept: tuple[Path, dict[str, Any], Result],
) -> None:
    for attempt in kept[1]["attempts"]:
        subject = attempt["what"].split()[-1]
        assert "permissions violation" in attempt["stopped_by"]
        assert subject.lower() in attempt["stopped_by"].lower()


def test_it_says_which_server_and_which_data_it_uses(kept: tuple[Path, dict[str, Any], Result]) -> None:
    assert "mcp-server-git" in kept[2].err
    assert "a repository made of the installed files of remit_schemas" in kept[2].err


def test_the_kept_folder_goes_on_with_the_same_ledger_and_keys(
    kept: tuple[Path, dict[str, Any], Result], tmp_path: Path
) -> None:
    folder, shown, _ = kept
    with running(folder) as broker:
        found = broker.json("chain", shown["txn"])
        assert found["records"][-1]["kind"] == "txn.closed"
        assert {record["hop"] for record in found["refusals"]} == {
            hop["hop"] for hop in shown["hops"] if hop["decision"] == "deny"
        }
        tree = broker.remit("chain", shown["txn"][:8]).out
        assert "agent/planner/plan" in tree and "redacted 1" in tree and "grace" not in tree
        author = next(one for one in found["records"] if one["kind"] == "hop.closed" and one["redacted"])
        assert [one["kind"] for one in author["findings"]] == ["pii.email"]
        broker.json("evidence", "export", shown["txn"], "-o", str(tmp_path / "e.json"))
        import httpx

        jwks = httpx.get(broker.ready["http"] + "/.well-known/jwks.json", trust_env=False)
        (tmp_path / "jwks.json").write_bytes(jwks.content)
        assert remit("evidence", "verify", str(tmp_path / "e.json"), "--keys", str(tmp_path / "jwks.json")).code == 0
    assert remit("demo", "--keep", str(folder)).code == 2, "a folder that is used is not used again"


def test_a_person_sees_the_tree_the_attempts_and_the_verdict_in_80_columns(tmp_path: Path) -> None:
    done = remit("demo", cwd=tmp_path, width=80)
    assert done.code == 0
    assert "└── " in done.out
    assert done.out.count("permissions violation") == 6
    assert done.out.splitlines()[-1] == "verified"
    tree = done.out.split("\nspent ")[0]
    assert max(map(len, tree.splitlines())) <= 80
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_without_git_it_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    done = remit("demo", "--json", "--keep", str(tmp_path / "kept"), env={"PATH": str(tmp_path)})
    assert done.code == 2
    assert "git is not installed" in done.error["message"]
    assert not (tmp_path / "kept").exists()


def test_without_the_server_it_says_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import pathlib, shutil\nreal, which = pathlib.Path.exists, shutil.which\n"
        "pathlib.Path.exists = lambda self, *a, **k: self.name != 'mcp-server-git' and real(self, *a, **k)\n"
        "shutil.which = lambda name, *a, **k: None if name == 'mcp-server-git' else which(name, *a, **k)\n"
    )
    done = remit(
        "demo", "--json", cwd=tmp_path, env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.pathsep.join(sys.path)}"}
    )
    assert done.code == 2
    assert 'pip install "remit-broker[demo]"' in done.error["ask"]
