"""The page of an evidence file: what it says, and that nothing in a file becomes anything but text."""

from __future__ import annotations

import html.parser
from typing import Any

import pytest

from remit_broker.core.evidence import verify_evidence
from remit_broker.core.report import DOES_NOT, page
from remit_schemas.keys import KeySet
from tests.support.evidence import CHILD, TRUSTED, Case, closed_case
from tests.support.story import ROOT

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&\u202e\x00"


class Markup(html.parser.HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}


def shown(evidence: dict[str, Any], keys: KeySet = TRUSTED) -> str:
    return page(evidence, verify_evidence(evidence, keys), lambda at: f"local {at[:4]}")


def test_the_questions_of_an_auditor_are_answered() -> None:
    case = Case()
    case.approve("0123456789abcdef", ROOT, "mcp/git/git_log")
    case.open("0123456789abcdef", ROOT, "mcp/git/git_log", approval="0123456789abcdef")
    text = shown(case.evidence())
    wanted = [
        "What was done for ann",
        "planner",
        "mcp/git/git_log",
        "default",
        "local:eve",
        "approved (0123456789abcdef)",
        "approved by local:eve",
        "local:eve approves mcp/git/git_log",
    ]
    wanted += ["local 2026", "mcp/git/git_log: used", "still open", "0.001 USD", "✓ Verified", "no completeness proof"]
    for said in wanted:
        assert said in text, said
    assert "the texts of policy set" in text.lower()


def test_a_closed_chain_is_said_to_be_whole_and_the_limits_are_told() -> None:
    text = shown(closed_case().evidence())
    assert "nothing of the chain is missing" in text
    for limit in DOES_NOT:
        assert limit.split(",")[0].replace("'", "&#x27;") in text


def test_the_rules_are_shown_as_they_were() -> None:
    evidence = {
        **closed_case().evidence(),
        "policies": {"rev": {"local.cedar": "permit(principal, action, resource); // <b>"}},
    }
    assert "permit(principal, action, resource); // &lt;b&gt;" in shown(evidence)


def test_what_does_not_verify_says_so_first() -> None:
    text = shown(closed_case().evidence(), KeySet())
    assert "✗ Not verified" in text and "✓ Verified" not in text


@pytest.mark.parametrize("kind", ["texts", "names"])
def test_nothing_of_a_file_becomes_markup(kind: str) -> None:
    """Every text in the file is hostile; the tags and attributes of the page are those of the page."""
    plain, evidence = closed_case().evidence(), closed_case().evidence()

    def poisoned(value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            return {key: poisoned(below, key) for key, below in value.items()}
        if isinstance(value, list):
            return [poisoned(below, name) for below in value]
        keep = {"kind", "hop", "parent", "txn", "outcome"} if kind == "texts" else {"kind", "outcome"}
        return value + HOSTILE if isinstance(value, str) and name not in keep else value

    for part in ("records", "refusals"):
        evidence[part] = poisoned(evidence[part])
    evidence["policies"] = plain["policies"] = {"rev" + HOSTILE: {HOSTILE: HOSTILE}}
    text = page(evidence, verify_evidence(plain, TRUSTED), str)
    assert "alert(1)" in text
    allowed = Markup(page(plain, verify_evidence(plain, TRUSTED), str))
    found = Markup(text)
    assert set(found.tags) <= set(allowed.tags) | {"details", "summary", "pre"}
    assert not {"script", "img", "a", "iframe", "link"} & set(found.tags)
    assert found.attributes <= allowed.attributes | {"class"}
    assert "\u202e" not in text and "\x00" not in text
    assert CHILD in plain["records"][1]["hop"]


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    text = shown(closed_case().evidence())
    assert "default-src &#x27;none&#x27;" in text
    assert "http:" not in text.replace("http://127.0.0.1:7480", "") and "src=" not in text and "href=" not in text
