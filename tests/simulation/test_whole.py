"""The whole broker under simulation: bounded here, longer by ``make simulate`` and ``make simulate-long``."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.simulation.__main__ import find
from tests.simulation.bugs import BUGS
from tests.simulation.many import in_child, replay, run_many
from tests.simulation.scene import Scene, scene
from tests.simulation.town import TOWNS

JOBS = max(1, min(4, os.cpu_count() or 1))
SOON = (
    "a-lost-race-counts-as-won", "after-a-lost-race-only-the-append-is-repeated", "what-is-left-is-the-whole-limit",
    "a-hold-is-never-released", "a-hop-is-closed-without-its-children", "a-refusal-is-counted-twice",
    "a-result-is-released-before-its-close-is-known", "a-hop-is-dispatched-twice", "labels-come-with-the-close-alone",
    "an-approval-is-used-twice", "all-tenants-are-one-in-the-subjects-of-the-ledger", "all-tenants-share-one-account",
)  # fmt: skip
"""Planted bugs that are found within a few runs; ``make simulate-bugs`` finds all of them."""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_run_breaks_a_promise():
    total = run_many(range(40), JOBS, lambda _: True)
    assert not [(one.seed, one.violations[0]) for one in total.bad]
    # A run in which nothing was contended, or nothing was in flight when something died, proves nothing.
    assert total.runs == 40 and total.counts["in flight"] > 5 and total.counts["10071"] > 40
    assert total.counts["labelled frames"] > 20, "frames of which somebody must have had the labels"
    assert total.counts["approvals used"] > 10 and total.counts["crossed ids"] > 10
    assert total.counts["releases"] > 60 and total.counts["replica crashed"] > 0 and total.counts["leader changed"] > 0


def test_the_same_seed_gives_the_same_run():
    first, again, other = replay(7)[0], replay(7)[0], replay(8)[0]
    assert first == again and first.digest != other.digest


@pytest.mark.timeout(120)
def test_two_interpreters_give_the_same_run():
    """Neither the order of sets nor that of anything else that a process draws for itself changes a run."""

    def last_line(hash_seed: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "tests.simulation", "--seed", "11"], env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.strip().splitlines()[-1]

    assert "digest" in last_line("1") and last_line("1") == last_line("2") == last_line("31337")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("bug", SOON)
def test_a_planted_bug_is_found(bug: str):
    found = find(bug, 100, JOBS)
    assert found is not None and found.violations


def test_there_are_many_planted_bugs_and_each_says_what_is_wrong():
    assert len(BUGS) >= 20 and set(SOON) <= set(BUGS)


def in_scene(work: Any, town: int = 0) -> Any:
    """What ``work`` finds in a scene of its own."""

    def played() -> Any:
        with scene(TOWNS[town]) as at:
            return at.loop.run_until_complete(work(at))

    return in_child(played)


def test_a_heartbeat_whose_answer_is_lost_silences_nobody():
    async def work(at: Scene) -> list[str]:
        silent: list[str] = []
        at.js.faults.lost_acks = 1.0
        await asyncio.sleep(1.0)
        at.js.faults.lost_acks = 0.0
        for _ in range(40):
            await asyncio.sleep(0.1)
            silent += [one.name for one in at.replicas if one.broker is None or not one.broker.revocations.fresh]
        return silent

    assert in_scene(work) == []
