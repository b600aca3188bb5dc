"""``python -m tests.simulation``: many runs, one run again, or the planted bugs. Exit 1 where a promise was broken."""

from __future__ import annotations

import argparse
import collections
import os
import sys
import time

from tests.simulation.bugs import BUGS, OF_THE_WHOLE
from tests.simulation.many import Total, replay, run_many
from tests.simulation.run import Outcome, is_whole

SHOWN: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("txns", ("txn.opened",)), ("hops", ("hop.opened",)), ("dispatches", ("dispatches",)), ("results released", ("releases",)),
    ("races lost", ("10071", "10164")), ("acks lost or late", ("lost acks", "late acks", "committed unacknowledged")),
    ("replica crashes", ("replica crashed",)), ("freezes", ("replica frozen",)), ("partitions", ("replica cut off",)),
    ("leader changes", ("leader changed",)), ("server restarts", ("server restarted",)), ("power cuts", ("power cut",)),
    ("connections cut", ("connection cut",)), ("people crashed", ("callee crashed", "caller crashed")),
    ("approvals asked for", ("approval.requested",)), ("decisions on them", ("approval.decided",)),
    ("approvals used", ("approvals used",)),
    ("approvals waited for when something died", ("approvals pending",)), ("policies changed", ("policies changed",)),
    ("ids of another tenant tried", ("crossed ids",)),
    ("something in flight when something died", ("in flight",)),
)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many runs")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at once")
    parser.add_argument("--seed", type=int, help="play one run, with its trace")
    parser.add_argument("--bug", default="", help="with this bug planted", choices=sorted(BUGS), metavar="NAME")
    parser.add_argument("--bugs", action="store_true", help="find every planted bug")
    options = parser.parse_args(argv)
    if options.seed is not None:
        return _one(options.seed, options.bug)
    if options.bugs:
        return _bugs([options.bug] if options.bug else list(BUGS), options.seeds, options.jobs)
    return _many(options)


def _one(seed: int, bug: str) -> int:
    outcome, trace = replay(seed, bug)
    for when, line in trace:
        print(f"{when:10.6f}  {line}")
    print(f"seed {seed} in the town {outcome.town}: {outcome.seconds:.1f} s, digest {outcome.digest}")
    for when, rule, where, why in outcome.violations:
        print(f"VIOLATION at {when:.6f}: {rule}: {where}: {why}")
    return 1 if outcome.violations else 0


def _many(options: argparse.Namespace) -> int:
    began, said = time.monotonic(), [time.monotonic()]

    def heard(outcome: Outcome) -> bool:
        done[0] += 1
        if outcome.violations:
            _explain(outcome, options.bug)
        if time.monotonic() - said[0] > 10:
            said[0] = time.monotonic()
            print(f"{done[0]} of {options.seeds} runs, {time.monotonic() - began:.0f} s", flush=True)
        return True

    done = [0]
    seeds = range(options.first, options.first + options.seeds)
    total = run_many(seeds, options.jobs, heard, bug=options.bug)
    return report(total)


def _explain(outcome: Outcome, bug: str) -> None:
    when, rule, where, why = outcome.violations[0]
    planted = f" --bug {bug}" if bug else ""
    print(f"seed {outcome.seed} breaks {rule} at {when:.6f}: {where}: {why}")
    print(f"  replay: python -m tests.simulation --seed {outcome.seed}{planted}", flush=True)


def report(total: Total) -> int:
    """Print what was seen. 1 where a promise was broken, or where nothing was tried."""
    print(f"{total.runs} runs, {total.seconds / 3600:.1f} simulated hours")
    for name, keys in SHOWN:
        print(f"  {name}: {sum(total.counts[key] for key in keys)}")
    refused = collections.Counter({key[8:]: n for key, n in total.counts.items() if key.startswith("refused ")})
    print("  refusals: " + ", ".join(f"{code} {count}" for code, count in refused.most_common()))
    if total.bad:
        print(f"{len(total.bad)} runs broke a promise: seeds {sorted(outcome.seed for outcome in total.bad)[:20]}")
        return 1
    if not total.counts["in flight"] or not total.counts["10071"]:
        print("nothing was contended, or nothing was in flight when something died: this proves nothing")
        return 1
    return 0


def _bugs(names: list[str], seeds: int, jobs: int) -> int:
    missed = []
    for name in names:
        found = find(name, seeds, jobs)
        if found is None:
            missed.append(name)
            print(f"{name}: NOT FOUND in {seeds} runs", flush=True)
        else:
            print(f"{name}: seed {found.seed}, {found.violations[0][1]}: {found.violations[0][3][:100]}", flush=True)
    print(f"{len(names) - len(missed)} of {len(names)} planted bugs found")
    return 1 if missed else 0


def find(bug: str, seeds: int, jobs: int) -> Outcome | None:
    """The first run that sees ``bug``, of so many; those that cannot see it are counted and not made."""
    tried = [seed for seed in range(seeds) if bug not in OF_THE_WHOLE or is_whole(seed)]
    total = run_many(tried, jobs, lambda outcome: not outcome.violations, bug=bug, size=10)
    return min(total.bad, key=lambda outcome: outcome.seed, default=None)


if __name__ == "__main__":
    sys.exit(main())
