"""The repository's own checks see what they are for."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tools import checks


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository in which nothing is wrong."""
    root = tmp_path / "somewhere" / "checkout"
    for folder in ("locks", "tests", "docs", "agents_sdk"):
        (root / folder).mkdir(parents=True)
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    (root / "Makefile").write_text("setup:\ntest: setup\n")
    monkeypatch.setattr(checks, "ROOT", root)
    return root


def test_a_long_readme_is_seen(root: Path):
    (root / "README.md").write_text("line\n" * 200)
    assert not list(checks.readme_is_short())
    (root / "README.md").write_text("line\n" * 201)
    assert list(checks.readme_is_short())


@pytest.mark.parametrize(
    "text", ["```sh\nmake demo  # try it\n```", "Run `make test demo`.", "```console\n$ make demo\n```"]
)
def test_a_make_command_that_does_not_exist_is_seen(root: Path, text: str):
    (root / "README.md").write_text(text + "\n")
    assert list(checks.make_commands_exist()) == ["README.md: `make demo` is no target of the Makefile"]


def test_a_make_command_that_exists_is_fine(root: Path):
    (root / "README.md").write_text(
        "```sh\nmake setup test ARGS='-k scope'\nmake test  # all of them\n```\nAnd `make setup`.\n"
    )
    assert not list(checks.make_commands_exist())


@pytest.mark.parametrize("line", ["remit nonsense", "remit agents paint", ".venv/bin/remit evidence eat F"])
def test_a_remit_command_that_does_not_exist_is_seen(root: Path, line: str):
    (root / "README.md").write_text(f"```\n{line}\n```\n")
    assert list(checks.remit_commands_exist())


@pytest.mark.parametrize(
    "line", ["remit agents add researcher", "remit chain 4f --json", "remit attach git -- mcp-server-git"]
)
def test_a_remit_command_that_exists_is_fine(root: Path, line: str):
    (root / "README.md").write_text(f"```\n{line}\n```\n")
    assert not list(checks.remit_commands_exist())


@pytest.mark.parametrize(
    "line",
    [
        "--index-url https://example.org/simple",
        "-i https://example.org/simple",
        "--find-links wheels",
        "thing @ file:///somewhere/thing.whl",
        "thing==1 --hash=sha256:00 # from https://example.org",
        "-e ./agents_sdk",
    ],
)
def test_a_lock_that_names_a_place_is_seen(root: Path, line: str):
    (root / "locks" / "dev.txt").write_text(f"# head\n{line}\n")
    assert list(checks.locks_name_no_host())


def test_a_pin_without_a_hash_is_seen(root: Path):
    lock = root / "locks" / "dev.txt"
    lock.write_text("# head\none==1 \\\n    --hash=sha256:00\ntwo==2 \\\n    --hash=sha256:00\n")
    assert not list(checks.locks_hash_everything())
    lock.write_text("# head\none==1 \\\n    --hash=sha256:00\ntwo==2\n")
    assert list(checks.locks_hash_everything()) == ["locks/dev.txt: two==2 has no hash"]


def test_a_place_on_somebodys_machine_is_seen(root: Path):
    (root / "docs" / "a.md").write_text(f"see {root}/docs\n")
    (root / "docs" / "b.md").write_text("see /" + "home/ann/remit\n")
    (root / "docs" / "c.md").write_text("pip install --index" + "-url x\n")
    (root / "docs" / "d.md").write_text(
        f"see /var/lib/remit and {'/'.join(('mcp/files', 'root', 'x'))} and ~/.config\n"
    )
    assert [line.split(":")[0] for line in checks.no_machine_in_files()] == ["docs/a.md", "docs/b.md", "docs/c.md"]


def test_what_git_ignores_is_not_looked_at(root: Path):
    (root / ".gitignore").write_text("/data/\n")
    (root / "data").mkdir()
    (root / "data" / "a.txt").write_text(str(root))
    assert not list(checks.no_machine_in_files())


def test_a_claim_without_its_test_is_seen(root: Path):
    (root / "tests" / "test_a.py").write_text("def test_holds(): ...\n")
    (root / "docs" / "guarantees.md").write_text("| claim | `test_holds` |\n| other | `test_" + "missing_one` |\n")
    (root / "a.py").write_text("# INVARIANT: always (test_a),\n# and (test_" + "missing_two).\n")
    assert [line.split()[2].strip(",") for line in checks.tests_named_in_documents_exist()] == [
        "test_" + "missing_two",
        "test_" + "missing_one",
    ]


def test_licences_that_differ_are_seen(root: Path):
    (root / "LICENSE").write_text("a")
    (root / "agents_sdk" / "LICENSE").write_text("b")
    assert list(checks.licences_are_equal())


def test_a_check_that_cannot_run_fails(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def broken():
        raise OSError("no such luck")
        yield

    monkeypatch.setattr(checks, "CHECKS", (broken,))
    assert checks.main() == 1
    assert "no such luck" in capsys.readouterr().out
