"""``tests/guards`` fits the code and the page of guarantees; that each test fails without its guard is for `make guards`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.test_docs import exists
from tools.prove_guards import Edit, Guard, Outcome, _judged, read_guards

ROOT = Path(__file__).parents[2]
GUARDS = read_guards()
ROW = re.compile(r"^\| (?!claim \|)(.+?) \| (`tests/.+`) \|$", re.MULTILINE)


def claimed() -> set[tuple[str, str]]:
    """Every claim of the page with each of its tests."""
    text = (ROOT / "docs/guarantees.md").read_text(encoding="utf-8")
    return {(claim, test) for claim, tests in ROW.findall(text) for test in re.findall(r"`([^`]+)`", tests)}


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_a_guard_stands_once_where_it_is_said_to_stand(guard: Guard) -> None:
    texts: dict[str, str] = {}
    for edit in guard.edits:
        texts[edit.file] = edit.applied(texts.get(edit.file) or (ROOT / edit.file).read_text(encoding="utf-8"))
    for name, text in texts.items():
        compile(text, name, "exec")


def test_every_test_that_is_named_exists() -> None:
    assert [guard.test for guard in GUARDS if not exists(guard.test)] == []


def test_every_claim_has_a_guard_for_each_of_its_tests_and_every_guard_is_claimed() -> None:
    proven = {(guard.claim, guard.test) for guard in GUARDS}
    assert claimed() - proven == set(), "these claims of docs/guarantees.md have no entry in tests/guards"
    assert proven - claimed() == set(), "these entries of tests/guards stand nowhere in docs/guarantees.md"


def test_no_entry_is_there_twice() -> None:
    assert len({(guard.test, guard.edits) for guard in GUARDS}) == len(GUARDS)


def test_a_guard_that_stands_twice_or_nowhere_is_not_removed() -> None:
    for text in ("", "a a"):
        with pytest.raises(ValueError, match="stands there"):
            Edit("f.py", "a", "b").applied(text)


@pytest.mark.parametrize(
    ("status", "output", "what"),
    [
        (1, "E  AssertionError\n1 failed in 0.1s", "failed"),
        (1, "2 passed\n1 failed, 2 passed in 0.1s", "failed"),
        (0, "1 passed in 0.1s", "passed"),
        (0, "1 skipped in 0.1s", "was skipped"),
        (1, "1 error in 0.1s", "broke in a fixture"),
        (2, "1 error during collection", "was not run (pytest exit 2)"),
        (1, "E  Failed: Timeout (>60.0s) from pytest-timeout.\n1 failed in 60.1s", "ran out of time"),
        (1, "E   NameError: name 'x' is not defined\n1 failed in 0.1s", "broke: the removal left code that cannot run"),
    ],
)
def test_only_a_test_that_fails_proves_something(status: int, output: str, what: str) -> None:
    assert Outcome(_judged(status, output), 0.0, output).what == what
