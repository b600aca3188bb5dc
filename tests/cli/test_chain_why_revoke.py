"""``remit chains``, ``chain``, ``why`` and ``revoke``: what happened, why, and stopping it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remit_broker.cli.printing import visible
from remit_broker.cli.show import tree
from tests.support import story
from tests.support.cli import Running
from tests.support.story import Story, as_stored, hop_id


@pytest.fixture(scope="module")
def told(broker: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A txn with one hop that went well and one that was refused."""
    broker.agent("planner")
    broker.server("tools")
    grant = broker.json("grant", "--user", "ann", "--to", "planner", "--scope", "mcp/tools/echo")
    path = tmp_path_factory.mktemp("grant") / "grant"
    path.write_text(grant["grant"])
    words = ("--as", "planner", "--grant-file", str(path), "--json")
    good = broker.remit("call", "mcp/tools/echo", '{"text": "hello"}', *words).json()
    bad = broker.remit("call", "mcp/tools/read_thing", '{"name": "x"}', *words).error
    yield {"txn": grant["txn"], "good": good["hop"], "bad": bad["hop"], "path": path}


def test_a_chain_and_a_hop_link_to_their_trace_in_jaeger(broker: Running, told: dict[str, Any]) -> None:
    config = broker.folder / "remit.toml"
    before = config.read_text(encoding="utf-8")
    assert broker.json("chain", told["txn"])["trace"] is None
    try:
        config.write_text(before.replace('# ui = ""', 'ui = "http://127.0.0.1:16686/"'), encoding="utf-8")
        root = broker.json("chain", told["txn"])["records"][0]["hop"]
        trace = f"http://127.0.0.1:16686/trace/{told['txn']}?uiFind="
        assert broker.json("chain", told["txn"])["trace"] == trace + root
        assert trace + root in broker.remit("chain", told["txn"]).out
        assert broker.json("why", told["good"])["trace"] == trace + told["good"]
        assert trace + told["bad"] in broker.remit("why", told["bad"]).out
    finally:
        config.write_text(before, encoding="utf-8")


def test_chains_lists_what_was_delegated(broker: Running, told: dict[str, Any]) -> None:
    (row,) = [row for row in broker.json("chains")["chains"] if row["txn"] == told["txn"]]
    assert (row["user"], row["agent"], row["hops"], row["refused"]) == ("ann", "planner", 1, 1)
    shown = broker.remit("chains").out
    assert told["txn"] in shown
    assert "1 hop " in shown
    assert "1 refused" in shown


@pytest.mark.parametrize(
    ("words", "there"),
    [
        (["--user", "ann"], True), (["--user", "bob"], False), (["--tool", "mcp/tools"], True), (["--agent", "x"], False),
        (["--code", "OUT_OF_SCOPE"], True), (["--since", "2099-01-01T00:00:00Z"], False),
        (["--server", "tools", "--decision", "deny", "--rule", "narrow.scope", "--since", "24h", "--max-cost", "0.5"], True),
        (["--decision", "allow", "--reason", "no such words"], False), (["--label", "pii"], False), (["--min-cost", "5"], False),
    ],
)  # fmt: skip
def test_chains_are_narrowed_by_filters(broker: Running, told: dict[str, Any], words: list[str], there: bool) -> None:
    assert (told["txn"] in [row["txn"] for row in broker.json("chains", *words)["chains"]]) is there


def test_a_chain_shows_its_hops_and_what_was_refused(broker: Running, told: dict[str, Any]) -> None:
    shown = broker.remit("chain", told["txn"][:6]).out
    assert "ann → planner" in shown
    assert f"mcp/tools/echo  {told['good']}" in shown
    assert f"mcp/tools/read_thing  {told['bad']}  OUT_OF_SCOPE (narrow.scope)" in shown
    assert "→ ask your caller" in shown


def test_a_chain_as_json_is_its_records_and_refusals(broker: Running, told: dict[str, Any]) -> None:
    found = broker.json("chain", told["txn"])
    assert [record["kind"] for record in found["records"]] == ["txn.opened", "hop.opened", "hop.closed"]
    assert [record["hop"] for record in found["refusals"]] == [told["bad"]]


def test_a_chain_fits_80_columns_by_wrapping_and_loses_nothing(broker: Running, told: dict[str, Any]) -> None:
    shown = broker.remit("chain", told["txn"], width=80).out
    assert max(map(len, shown.splitlines())) <= 80
    words = " ".join(shown.replace("│", " ").replace("└", " ").replace("├", " ").replace("─", " ").split())
    refusal = broker.json("chain", told["txn"])["refusals"][0]
    assert " ".join(refusal["message"].split()) in words
    assert " ".join(refusal["ask"].split()) in words
    assert "…" not in shown


@pytest.mark.parametrize("cut", [4, 10, 16])
def test_why_explains_a_refusal_by_a_unique_beginning(broker: Running, told: dict[str, Any], cut: int) -> None:
    shown = broker.remit("why", told["bad"][:cut]).out
    assert "refused planner → mcp/tools/read_thing" in shown
    assert "rule: narrow.scope" in shown
    assert "→ ask your caller" in shown


def test_why_explains_a_hop_by_txn_and_hop(broker: Running, told: dict[str, Any]) -> None:
    shown = broker.remit("why", f"{told['txn']}.{told['good']}").out
    assert "opened planner → mcp/tools/echo" in shown
    assert "policy: allow by" in shown
    assert "closed ok" in shown
    assert "on behalf of" in shown and "approved by" not in shown


def test_why_as_json_is_the_records_of_the_hop(broker: Running, told: dict[str, Any]) -> None:
    found = broker.json("why", told["good"])
    assert [record["kind"] for record in found["records"]] == ["hop.opened", "hop.closed"]
    assert {record["hop"] for record in found["records"]} == {told["good"]}


@pytest.mark.parametrize("command", ["chain", "why"])
@pytest.mark.parametrize(
    ("what", "code"), [("zz", 2), ("abc", 2), ("[red]", 2), ("../..", 2), ("f" * 32, 1), ("0000000", 1)]
)
def test_an_id_that_is_none_or_nobodys_is_said_to_be(broker: Running, command: str, what: str, code: int) -> None:
    done = broker.remit(command, what, "--json")
    assert done.code == code
    assert done.error["ask"]


def test_a_revoked_grant_stops_the_next_call(broker: Running, told: dict[str, Any], tmp_path: Path) -> None:
    grant = broker.json("grant", "--user", "ann", "--to", "planner", "--scope", "mcp/tools/echo")
    path = tmp_path / "grant"
    path.write_text(grant["grant"])
    done = broker.json("revoke", "--txn", grant["txn"], "--why", "lost\x1b[31m laptop")
    assert done["txn"] == grant["txn"]
    call = broker.remit(
        "call", "mcp/tools/echo", '{"text":"x"}', "--as", "planner", "--grant-file", str(path), "--json"
    )
    assert (call.code, call.error["code"]) == (1, "GRANT_REVOKED")
    assert "\x1b" not in broker.remit("chain", grant["txn"]).out


def test_a_grant_is_revoked_by_its_jti_and_only_once(broker: Running) -> None:
    grant = broker.json("grant", "--user", "ann", "--to", "planner", "--scope", "mcp/tools/echo")
    jti = broker.json("chain", grant["txn"])["records"][0]["jti"]
    assert broker.json("revoke", "--grant", jti)["revoked"] == jti


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], 2),
        (["--txn", "ab", "--grant", "x"], 2),
        (["--grant", "x"], 1),
        (["--txn", "f" * 32], 1),
        (["--txn", "zz"], 2),
    ],
)
def test_revoking_what_is_not_there_says_so(broker: Running, words: list[str], code: int) -> None:
    done = broker.remit("revoke", *words, "--json")
    assert done.code == code
    assert done.error["ask"]


HOSTILE = "[red]x[/red]\x1b[2J\x9b1m\x07\u202e\u200b\r\n\u2028y[link=http://evil]z"
SHOWN = "[red]x[/red]\\x1b[2J\\x9b1m\\x07\\u202e\\u200b\\r\\n\\u2028y[link=http://evil]z"


def test_control_characters_are_shown_not_obeyed() -> None:
    assert visible(HOSTILE) == SHOWN
    assert visible("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"
    assert all(char.isprintable() for char in visible("".join(map(chr, range(0x3000)))))
    assert visible("Zoë 日本 ✓") == "Zoë 日本 ✓"


def test_a_tree_of_hostile_records_is_plain_text() -> None:
    """Whatever of a record a caller, a tool or an operator wrote."""
    from io import StringIO

    from rich.console import Console

    tale = Story(story.opened(user=HOSTILE))
    tale.open(hop_id(1), resource="mcp/files/[bold]read")
    tale.close(hop_id(1), outcome="error", code="INTERNAL", reason=HOSTILE)
    tale.add(story.revoking(tale.fold, story.ROOT, who=HOSTILE, why=HOSTILE))
    refusal = as_stored(story.refused(resource=HOSTILE, message=HOSTILE, ask=HOSTILE, rule=HOSTILE))  # type: ignore[arg-type]
    console = Console(file=StringIO(), width=2000, force_terminal=True, color_system=None, markup=False)
    console.print(tree(tale.records, [refusal]))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count(SHOWN) >= 7
    assert all(char.isprintable() or char == "\n" for char in text)
    assert json.dumps(tale.records)
