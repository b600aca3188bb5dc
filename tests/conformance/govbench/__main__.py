"""``make govbench AGENTGOVBENCH=DIR``: the scenarios of a checkout of AgentGovBench, each against a broker of its own.

The benchmark loads and judges; every scenario it has is counted, also one that could not be run: such a one has failed. The
last line is ``{"total":48,"passed":N,"failed":[…]}``. Exit code 2 where the folder is not a checkout with 48 scenarios.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from tests.conformance.govbench.town import Town

TOTAL: Final = 48
SECONDS: Final = 150
"""Longest that a scenario may take."""


def main(words: list[str]) -> int:
    folder = Path(words[0]) if words and words[0] else None
    if folder is None or not (folder / "benchmark" / "scorer.py").is_file() or not (folder / "scenarios").is_dir():
        where = folder if folder else "AGENTGOVBENCH"
        print(f"{where}: no checkout of AgentGovBench (benchmark/ and scenarios/); make govbench AGENTGOVBENCH=DIR")
        return 2
    logging.basicConfig(level=logging.CRITICAL)
    sys.path.insert(0, str(folder.resolve()))
    loader, scorer, types = (importlib.import_module(f"benchmark.{name}") for name in ("loader", "scorer", "types"))
    scenarios = loader.load_all(folder / "scenarios")
    if len({scenario.id for scenario in scenarios}) != TOTAL:
        print(f"{folder}: {len(scenarios)} scenarios; this adapter counts {TOTAL}")
        return 2
    only = words[1:]
    failed = []
    for scenario in scenarios:
        if only and not any(word in scenario.id for word in only):
            continue
        began = time.monotonic()
        why = asyncio.run(_judged(scenario, scorer, types))
        print(
            f"{'FAIL' if why else 'ok  '} {scenario.id}  {time.monotonic() - began:.1f} s",
            *why,
            sep="\n     ",
            flush=True,
        )
        if why:
            failed.append(scenario.id)
    if only:
        print("only some were run: no score")
        return 0
    print(json.dumps({"total": TOTAL, "passed": TOTAL - len(failed), "failed": failed}, separators=(",", ":")))
    return 0


async def _judged(scenario: Any, scorer: Any, types: Any) -> list[str]:
    """Why it failed; empty: it passed."""
    try:
        async with asyncio.timeout(SECONDS):
            outcome = await _played(scenario, types)
    except Exception as error:
        return [f"it could not be run: {error!r}"]
    result = scorer.score_scenario(scenario, outcome, "remit", 0.0)
    if result.passed:
        return []
    missed = [
        f"{one.assertion.kind} {one.assertion.params}: {one.note}" for one in result.assertion_results if not one.passed
    ]
    return missed or ["it asserts nothing"]


async def _played(scenario: Any, types: Any) -> Any:
    with tempfile.TemporaryDirectory(prefix="govbench-") as folder:
        entry = lambda permission: types.TierPolicy(permission=permission)  # noqa: E731 - its only use
        async with Town(Path(folder), scenario.setup, entry) as town:
            outcomes = [types.ToolOutcome(**one) for action in scenario.actions async for one in town.act(action)]
            audit = [types.AuditEntry(**one) for one in await town.audit()]
            return types.RunOutcome(tool_outcomes=outcomes, audit_entries=audit, gateway_reachable=town.reachable)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
