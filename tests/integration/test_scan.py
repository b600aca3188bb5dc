"""``remit servers scan``: what is found in servers that have a gap, and what no server can do to the scan or to whoever reads it."""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Result, remit

SCANNED = str(Path(__file__).parents[1] / "support" / "mcp_servers" / "scanned.py")


@functools.cache
def scan(mode: str, *words: str) -> Result:
    return remit("servers", "scan", *words, "--", sys.executable, SCANNED, mode)


def found(mode: str, *words: str) -> dict[str, dict[str, Any]]:
    """The findings by rule."""
    return {one["rule"]: one for one in reversed(scan(mode, "--json", *words).json()["findings"])}


def test_a_server_without_a_gap_passes() -> None:
    done = scan("clean", "--json", "--fail-on", "low")
    report = done.json()
    assert (done.code, report["worst"], report["findings"]) == (0, None, [])
    assert (report["tools"], report["server"]["name"], len(report["pin"])) == (["weather"], "scanned-clean", 64)


def test_what_counts_as_a_failure_is_for_the_caller_to_say() -> None:
    assert scan("fetches", "--fail-on", "critical").code == 0
    assert scan("fetches").code == 1


@pytest.mark.parametrize(
    ("mode", "rule", "severity"),
    [
        ("poisoned", "text.injection.concealment", "high"),
        ("poisoned", "text.injection.override", "high"),
        ("hidden-name", "names.hidden", "critical"),
        ("hidden-name", "text.hidden.bidi", "high"),
        ("names", "names.look_alike", "high"),
        ("names", "names.shadows", "high"),
        ("names", "names.unusable", "medium"),
        ("names", "names.form", "medium"),
        ("bomb", "schema.bomb", "high"),
        ("bomb", "schema.invalid", "medium"),
        ("bomb", "protocol.schema", "medium"),
        ("wide", "schema.free", "high"),
        ("wide", "schema.secret", "medium"),
        ("wide", "schema.open", "low"),
        ("wide", "schema.unbounded", "low"),
        ("wide", "danger.unannotated", "info"),
        ("lies", "danger.hint", "high"),
        ("lies", "danger.exec", "high"),
        ("fetches", "ssrf.argument", "high"),
        ("wrong-ids", "protocol.id", "high"),
        ("twice", "protocol.id", "high"),
        ("cursor-loop", "protocol.pages", "high"),
        ("endless-pages", "protocol.pages", "high"),
        ("many", "protocol.pages", "high"),
        ("flood", "protocol.flood", "high"),
        ("noise", "protocol.noise", "medium"),
        ("huge", "protocol.size", "high"),
        ("asks", "protocol.unasked", "high"),
        ("changes", "protocol.changes", "high"),
        ("dies", "protocol.silent", "critical"),
        ("loose", "protocol.shape", "medium"),
        ("loose", "protocol.version", "medium"),
        ("loose", "protocol.unknown_method", "low"),
        ("no-ping", "protocol.ping", "low"),
        ("templates", "ssrf.template", "high"),
    ],
)
def test_a_gap_is_found(mode: str, rule: str, severity: str) -> None:
    all_ = found(mode)
    assert rule in all_, sorted(all_)
    assert all_[rule]["severity"] == severity
    assert all_[rule]["ask"] or rule == "protocol.silent"


def test_a_server_that_says_nothing_is_a_finding_and_ends_in_time() -> None:
    assert found("silent", "--seconds", "2")["protocol.silent"]["severity"] == "high"


def test_a_hint_that_its_name_belies() -> None:
    lying = [one["where"] for one in scan("lies", "--json").json()["findings"] if one["rule"] == "danger.hint"]
    assert lying == ["tool delete_everything/annotations", "tool shell_exec/annotations"]


@pytest.mark.parametrize("mode", ["terminal", "noise", "dies", "html", "names"])
def test_nothing_of_a_server_acts_on_the_reader(mode: str) -> None:
    for words in ((), ("--json",)):
        done = scan(mode, *words)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e]", done.out + done.err)


def test_nothing_of_a_server_is_markup_in_the_report(tmp_path: Path) -> None:
    assert scan("html", "--html", str(tmp_path / "report.html")).code in (0, 1)
    page = (tmp_path / "report.html").read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert set(re.findall(r"<(\w+)", page)) <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "dl", "dt", "dd", "code", "table", "thead", "tbody", "tr",
        "th", "td", "br", "p",
    }  # fmt: skip
    assert "default-src 'none'" in page


@pytest.mark.parametrize(
    "words",
    [[], ["ftp://x"], ["http://a b"], ["http://user:pass@host/"], ["--env", "X", "--", "x"], ["--ca", "x", "--", "x"],
     ["--", "/no/such/program"], ["--fail-on", "never", "--", "x"]],
)  # fmt: skip
def test_what_cannot_be_scanned_is_wrong_usage(words: list[str]) -> None:
    assert remit("servers", "scan", *words).code == 2


def test_a_published_server_is_scanned_as_its_users_start_it() -> None:
    report = remit("servers", "scan", "--json", "--", str(Path(sys.executable).with_name("mcp-server-git"))).json()
    assert report["server"]["name"] == "mcp-git"
    assert "git_log" in report["tools"]
    assert {one["rule"] for one in report["findings"]} >= {"danger.destroys", "schema.free"}
    assert not [one for one in report["findings"] if one["rule"].startswith(("text.injection", "protocol."))]


def test_a_template_whose_host_is_the_servers_own_is_no_gap() -> None:
    said = scan("templates", "--json").json()
    assert sorted(one["evidence"] for one in said["findings"] if one["rule"] == "ssrf.template") == [
        "https://{host}/x",
        "{+url}",
    ]
