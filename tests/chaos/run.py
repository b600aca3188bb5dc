"""``make chaos``: rounds of trouble on real processes until the time is over, each on a fresh folder, each judged.

A round takes about a minute and a half, by turns on one embedded NATS server and on a cluster of three. Ends with 1 where a promise
was broken or a round proved nothing; the folder of such a round is kept and named, with the seed.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.chaos.faults import trouble
from tests.chaos.town import running_town
from tests.chaos.verdict import Report, judge, save
from tests.support.ledger_checker import Violation


class Clock:
    """How long each part of a round took, in seconds."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        """What has passed since the last lap was ``name``."""
        now = time.monotonic()
        self.laps[name], self._last = now - self._last, now


async def one_round(
    folder: Path, seed: str, *, clustered: bool, seconds: float, brokers: int = 3, pause: float = 1.2
) -> Report:
    """Trouble for a while, then calm, then the verdict."""
    clock, begun = Clock(), False
    try:
        async with running_town(folder, seed, clustered=clustered, brokers=brokers) as town:
            begun = True
            clock.lap("start")
            await trouble(town, seconds, pause)
            clock.lap("trouble")
            try:
                await town.calm()
                clock.lap("recovery")
                await town.quiet()
                clock.lap("last calls")
                report = await judge(town)
                clock.lap("verdict")
            except AssertionError as broken:
                report = Report(dict(town.counts), [Violation("recovery", "brokers", str(broken))], "")
    except (AssertionError, TimeoutError) as late:
        if begun:
            raise
        report = Report({}, [], f"it did not begin: {str(late) or 'no calls in time'}")
    clock.lap("end")
    report = report._replace(laps=clock.laps)
    save(report, folder / "report.json")
    return report


async def rounds(minutes: float, seed: str, seconds: float, only: str, *, keep: bool) -> bool:
    """Rounds until ``minutes`` are over. Whether all was well."""
    until, total, well, number = time.monotonic() + minutes * 60, Counter[str](), True, 0
    while time.monotonic() < until:
        number += 1
        clustered = only == "cluster" or (only != "single" and number % 2 == 0)
        its_seed = f"{seed}.{number}"
        folder = Path(tempfile.mkdtemp(prefix="remit-chaos-"))
        began = time.monotonic()
        report = await one_round(folder, its_seed, clustered=clustered, seconds=seconds)
        where = "three servers" if clustered else "one server"
        print(f"round {number} on {where}, seed {its_seed}, {time.monotonic() - began:.0f} s", flush=True)
        print("\n".join(report.lines()), flush=True)
        total.update(report.counts)
        total["violations"] += len(report.violations)
        if report.ok and not keep:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            well = well and report.ok
            print(f"  kept in {folder}", flush=True)
    print(f"in all, {number} rounds, seed {seed}")
    print("\n".join(f"  {name:<48}{count:>9,}" for name, count in total.items()), flush=True)
    return well


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Trouble on real processes, and whether the promises were kept.")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", default=secrets.token_hex(4))
    parser.add_argument("--seconds", type=float, default=60, help="of trouble in each round")
    parser.add_argument("--only", choices=("both", "single", "cluster"), default="both")
    parser.add_argument(
        "--keep", action="store_true", help="the folder of every round, not of those with a violation alone"
    )
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    return 0 if asyncio.run(rounds(given.minutes, given.seed, given.seconds, given.only, keep=given.keep)) else 1


if __name__ == "__main__":
    sys.exit(main())
