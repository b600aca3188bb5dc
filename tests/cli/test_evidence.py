"""``remit evidence``: one chain in one file that verifies with the published keys and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.cli import Result, Running, remit


@pytest.fixture(scope="module")
def exported(broker: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the evidence of a closed chain and the keys as anybody downloads them."""
    folder = tmp_path_factory.mktemp("evidence")
    broker.agent("planner")
    broker.server("tools")
    words = ("--as", "planner", "--json")
    told = broker.remit("call", "mcp/tools/echo", '{"text": "hello"}', *words).json()
    found = broker.json("evidence", "export", told["txn"][:8], "-o", str(folder / "e.json"))
    assert found == {"txn": told["txn"], "file": str(folder / "e.json"), "records": 4, "complete": True}
    jwks = httpx.get(broker.ready["http"] + "/.well-known/jwks.json", trust_env=False).content
    (folder / "jwks.json").write_bytes(jwks)
    yield folder


def verify(folder: Path, *words: str, evidence: str = "e.json", keys: str = "jwks.json") -> Result:
    return remit("evidence", "verify", str(folder / evidence), "--keys", str(folder / keys), *words)


def changed(folder: Path, change: Any) -> Result:
    evidence = json.loads((folder / "e.json").read_text())
    change(evidence)
    (folder / "changed.json").write_text(json.dumps(evidence))
    return verify(folder, "--json", evidence="changed.json")


def test_evidence_verifies_with_the_downloaded_keys_and_no_broker(exported: Path, tmp_path: Path) -> None:
    done = remit(
        "evidence", "verify", str(exported / "e.json"), "--keys", str(exported / "jwks.json"), "--json",
        cwd=tmp_path, env={"XDG_CONFIG_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.code == 0
    verdict = done.json()
    assert list(verdict) == ["verified", "checks"]
    assert verdict["verified"] is True
    assert all(list(check) == ["check", "ok", "where"] for check in verdict["checks"])


def test_a_person_reads_every_check_and_the_verdict(exported: Path) -> None:
    shown = verify(exported).out.splitlines()
    assert shown[-1] == "verified"
    assert all(line.startswith("  ✓ ") for line in shown[:-1])


def test_the_file_has_what_the_contract_names(exported: Path) -> None:
    found = json.loads((exported / "e.json").read_text())
    assert {"v", "txn", "records", "grants", "refusals", "keys"} <= set(found)
    assert found["v"] == 1
    assert [record["kind"] for record in found["records"]] == ["txn.opened", "hop.opened", "hop.closed", "txn.closed"]
    assert len(found["grants"]) == 2


@pytest.mark.parametrize("index", range(4))
def test_a_changed_byte_of_a_record_fails_at_that_record(exported: Path, index: int) -> None:
    def change(evidence: dict[str, Any]) -> None:
        evidence["records"][index]["at"] = evidence["records"][index]["at"].replace("T", "t")

    done = changed(exported, change)
    assert done.code == 1
    first = next(check for check in done.json()["checks"] if not check["ok"])
    assert (first["check"], first["where"].split(":")[0]) == ("records", f"record {index}")


def test_a_verdict_that_is_bad_says_so_in_words(exported: Path) -> None:
    changed(exported, lambda evidence: evidence["grants"].pop())
    done = verify(exported, evidence="changed.json")
    assert done.code == 1
    assert done.out.splitlines()[-1] == "NOT verified"
    assert "✗ grants: the grant of record 1 is missing" in done.out


def test_keys_of_somebody_else_verify_nothing(exported: Path) -> None:
    (exported / "none.json").write_text('{"keys": []}')
    assert verify(exported, keys="none.json").code == 1


@pytest.mark.parametrize(
    ("evidence", "keys", "code"),
    [("missing", "jwks.json", 2), ("e.json", "missing", 2), ("e.json", "e.json", 2), ("jwks.json", "jwks.json", 1)],
)
def test_files_that_are_none_are_named(exported: Path, evidence: str, keys: str, code: int) -> None:
    assert verify(exported, "--json", evidence=evidence, keys=keys).code == code


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"{", b'{"v":1,"v":1}', b"[" * 200_000])
def test_what_is_no_json_is_refused(exported: Path, data: bytes) -> None:
    (exported / "odd.json").write_bytes(data)
    done = verify(exported, "--json", evidence="odd.json")
    assert done.code == 1
    assert len(done.out.splitlines()) == 1


def test_an_open_chain_says_that_more_may_follow(broker: Running, exported: Path) -> None:
    grant = broker.json("grant", "--user", "ann", "--to", "planner", "--scope", "mcp/tools/echo")
    done = broker.remit("evidence", "export", grant["txn"], "-o", str(exported / "open.json"))
    assert "still open" in done.out
    shown = verify(exported, evidence="open.json")
    assert shown.code == 0
    assert "more may have followed" in shown.out


def test_where_it_cannot_be_written_is_named(broker: Running, exported: Path) -> None:
    txn = json.loads((exported / "e.json").read_text())["txn"]
    done = broker.remit("evidence", "export", txn, "-o", "/no/such/folder/e.json", "--json")
    assert done.code == 2
    assert "/no/such/folder/e.json" in done.error["message"]


def test_the_last_record_names_no_user(broker: Running, exported: Path) -> None:
    """A task that its own user closed: all that is personal can be withheld, and one field be opened by itself."""
    whole = json.loads((exported / "e.json").read_text())
    user = whole["records"][0]["user"]
    assert whole["records"][-1]["who"] == "the user"
    done = broker.remit("evidence", "export", whole["txn"], "-o", str(exported / "w.json"), "--withhold", "all")
    assert "personal fields are withheld" in done.out
    assert not re.search(rf"\b{user}\b", (exported / "w.json").read_text())
    verdict = verify(exported, "--json", evidence="w.json")
    assert verdict.code == 0 and any(check["check"] == "personal" for check in verdict.json()["checks"])
    words = ("-o", str(exported / "one.json"), "--withhold", "all", "--disclose", "0.user", "--json")
    broker.json("evidence", "export", whole["txn"], *words[:-1])
    one = json.loads((exported / "one.json").read_text())
    assert [json.loads(told["text"]) for told in one["personal"]] == [user] and verify(
        exported, evidence="one.json"
    ).code == 0
    assert (
        broker.remit("evidence", "export", whole["txn"], "-o", str(exported / "no.json"), "--withhold", "names").code
        == 1
    )
