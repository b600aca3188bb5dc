"""``remit bench`` from the shell: what it refuses, and a small run of tool calls."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.cli import remit


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--peer", "gateway"), "add --mcp"),
        (("--mcp", "--profile", "broker.prof"), "leave one out"),
        (("--mcp", "--peer", "/nowhere/mcpgateway"), "is no program"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_starts(
    tmp_path: Path, words: tuple[str, ...], told: str
) -> None:
    done = remit("bench", *words, "-o", str(tmp_path / "bench.json"))
    assert done.code == 2 and told in done.err
    assert not (tmp_path / "bench.json").exists()


@pytest.mark.timeout(180)
def test_tool_calls_are_measured_beside_the_same_server_directly(tmp_path: Path) -> None:
    place = tmp_path / "bench.json"
    done = remit("bench", "--mcp", "--rounds", "1", "--scale", "0.05", "-o", str(place), seconds=150)
    assert done.code == 0, done.err
    found = json.loads(place.read_text())
    for way in ("direct_http", "remit_http", "direct_stdio", "remit_stdio"):
        assert found[way]["p50_us_1"] > 0 and found[way]["ops_16"] > 0
    assert "x direct" in done.out and found["setup"]["remit"]["stages"][0] == "admit"
