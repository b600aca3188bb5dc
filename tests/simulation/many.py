"""Many runs: on all cores, each in a process of its own that is forked from a scene set up once for its town."""

from __future__ import annotations

import asyncio
import collections
import gc
import itertools
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import nullcontext
from typing import Any, NamedTuple

import msgspec

from tests.simulation.core_scene import CoreRun, CoreScene
from tests.simulation.loop import SimulatedLoop
from tests.simulation.run import Outcome, Run, is_whole, play, town_of
from tests.simulation.scene import Scene, scene
from tests.simulation.seeded import seeded
from tests.simulation.town import TOWNS

BATCH = 25
"""Runs that start from one scene; then another one is set up, in a fresh worker's memory."""


class Total(NamedTuple):
    """What many runs amount to."""

    runs: int
    seconds: float
    counts: collections.Counter[str]
    bad: list[Outcome]


def in_child(work: Callable[[], Any]) -> Any:
    """The plain value of ``work``, done in a child of this process: what it leaves behind ends with it. None: it died."""
    out, into = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        # What is still waiting somewhere is collected, or not, without a word.
        sys.unraisablehook = lambda _: None
        gc.freeze()
        try:
            os.close(out)
            value = msgspec.msgpack.encode(work())
            with os.fdopen(into, "wb") as pipe:
                pipe.write(value)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(into)
    with os.fdopen(out, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    return msgspec.msgpack.decode(data) if data else None


def forked(seed: int, at: Scene) -> Outcome:
    """Play ``seed`` in a scene that stays as it was."""
    told = in_child(lambda: play(seed, at, Run(at, seed)))
    if told is None:
        return Outcome(seed, at.town.name, [(0.0, "run.ended", f"seed {seed}", "its process died")], {}, 0.0, "", ())
    return msgspec.convert(told, Outcome)


def batch(town: int, seeds: list[int], bug: str = "") -> list[Outcome]:
    """The runs of some seeds of one town. With a ``bug``, the product has it meanwhile; the first violation ends the batch."""
    from tests.simulation.bugs import planted

    def work() -> list[Outcome]:
        found: list[Outcome] = []
        with planted(bug) if bug else nullcontext():
            if is_whole(seeds[0]):
                with scene(TOWNS[town]) as at:
                    _until_found(seeds, lambda seed: forked(seed, at), found, bug)
            else:
                _until_found(seeds, lambda seed: core(seed)[0], found, bug)
        return found

    told = in_child(work)
    if told is None:
        raise RuntimeError(f"no scene could be set up in the town {TOWNS[town].name}")
    return msgspec.convert(told, list[Outcome])


def _until_found(seeds: list[int], run: Callable[[int], Outcome], found: list[Outcome], bug: str) -> None:
    for seed in seeds:
        found.append(run(seed))
        if bug and found[-1].violations:
            break


def core(seed: int) -> tuple[Outcome, list[tuple[float, str]]]:
    """One run of the core, set up for it alone, with its trace."""
    loop = SimulatedLoop(0)
    asyncio.set_event_loop(loop)
    town = TOWNS[town_of(seed)]
    with seeded(loop, 0, grant_ttl=town.grant_ttl) as drawn:
        at = CoreScene(loop, town, drawn)
        loop.run_until_complete(at.set_up())
        outcome = play(seed, at, CoreRun(at, seed))
        loop.close()
        trace = at.checks.trace
        at.__dict__.clear()
        gc.collect()
    asyncio.set_event_loop(None)
    return outcome, trace


def replay(seed: int, bug: str = "") -> tuple[Outcome, list[tuple[float, str]]]:
    """One run by itself, with its trace."""
    from tests.simulation.bugs import planted

    def work() -> tuple[Outcome, list[tuple[float, str]]]:
        with planted(bug) if bug else nullcontext():
            if not is_whole(seed):
                return core(seed)
            with scene(TOWNS[town_of(seed)]) as at:
                return play(seed, at, Run(at, seed)), at.checks.trace

    told = in_child(work)
    return msgspec.convert(told, tuple[Outcome, list[tuple[float, str]]])


def batches(seeds: Iterable[int], size: int = BATCH) -> Iterator[tuple[int, list[int]]]:
    """Seeds in groups of one town, nearly in order."""
    waiting: dict[int, list[int]] = {}
    for seed in seeds:
        # Runs of the core have no scene to share: they need no town of their own.
        town = town_of(seed) if is_whole(seed) else -1
        group = waiting.setdefault(town, [])
        group.append(seed)
        if len(group) == size:
            yield town, waiting.pop(town)
    yield from waiting.items()


def run_many(
    seeds: Iterable[int], jobs: int, heard: Callable[[Outcome], bool], *, bug: str = "", size: int = BATCH
) -> Total:
    """Play all of ``seeds`` on ``jobs`` cores; ``heard`` is told of each and says whether to go on."""
    total = Total(0, 0.0, collections.Counter(), [])
    todo = batches(seeds, size)
    with ProcessPoolExecutor(jobs) as pool:
        running: set[Future[list[Outcome]]] = {
            pool.submit(batch, *group, bug) for group in itertools.islice(todo, jobs * 2)
        }
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for outcome in itertools.chain.from_iterable(one.result() for one in done):
                total.counts.update(outcome.totals)
                total = total._replace(runs=total.runs + 1, seconds=total.seconds + outcome.seconds)
                if outcome.violations:
                    total.bad.append(outcome)
                if not heard(outcome):
                    todo = iter(())
                    for waiting in running:
                        waiting.cancel()
            running = {one for one in running if not one.cancelled()}
            running |= {pool.submit(batch, *group, bug) for group in itertools.islice(todo, len(done))}
    return total


def now() -> float:
    """For progress: the real clock."""
    return time.monotonic()
