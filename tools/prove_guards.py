"""`python -m tools.prove_guards` (`make guards`): a test that holds a guarantee fails when its guard is taken away.

`tests/guards/` names, for each claim of `docs/guarantees.md`, the guard in the code and the test that holds it. In a
copy of the tree this removes one guard after the other and runs exactly that test. Only a test that *fails* proves
something: one that passes (a survivor), cannot be collected, breaks in a fixture or runs out of time does not.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
GUARDS: Final = "tests/guards"
COPIED: Final = ("schemas", "agents_sdk", "broker", "tests", "docs", "pyproject.toml")
IMPORTED: Final = {"schemas": "remit_schemas", "agents_sdk": "remit", "broker": "remit_broker"}
SECONDS: Final = 150.0
"""How long one run of one test may take."""

_PROFILE: Final = """
from hypothesis import Phase, settings

# One example that fails is enough: none is made smaller.
settings.register_profile("guards", phases=(Phase.explicit, Phase.generate), database=None)
settings.load_profile("guards")
"""

_KEYS: Final = {"claim", "file", "remove", "put", "test", "also"}
_TOO_LATE: Final = re.compile(r"Failed: Timeout|\+\+\+ Timeout \+\+\+")
_BROKEN: Final = re.compile(r"^E +(?:NameError|UnboundLocalError|SyntaxError|IndentationError|ImportError)\b", re.M)
"""The removal broke the code instead of opening a door."""


@dataclass(frozen=True)
class Edit:
    """One exact text that stands once in a file, and what is put in its place."""

    file: str
    remove: str
    put: str

    def applied(self, text: str) -> str:
        """``text`` without the guard. Raises ValueError where it does not stand there exactly once."""
        if (count := text.count(self.remove)) != 1:
            raise ValueError(f"{self.file}: stands there {count} times: {self.remove!r}")
        return text.replace(self.remove, self.put)


@dataclass(frozen=True)
class Guard:
    """A claim, the test that holds it, and the edits that take its guard away (several where it stands more than once)."""

    claim: str
    test: str
    edits: tuple[Edit, ...]

    @property
    def whole(self) -> str:
        """All that it says, to look for a word in."""
        return "\n".join((self.claim, self.test, *(f"{edit.file}\n{edit.remove}" for edit in self.edits)))

    @property
    def name(self) -> str:
        """Short enough for a line of a table."""
        return f"{self.edits[0].file.rpartition('/')[2]}: {' '.join(self.edits[0].remove.split())}"


@dataclass(frozen=True)
class Outcome:
    """What one run of a test came to: ``failed``, ``passed``, or why it proves nothing."""

    what: str
    seconds: float
    output: str

    @property
    def why(self) -> str:
        """The first line of what failed, as pytest shows it."""
        found = re.search(r"^E +(.+)$", self.output, re.M)
        return found[1][:100] if found else "?"


def read_guards(path: Path = ROOT / GUARDS) -> list[Guard]:
    """The entries of every file of that folder, in order. Raises ValueError for what is no entry."""
    guards: list[Guard] = []
    for file in sorted(path.glob("*.toml")):
        whole = tomllib.loads(file.read_text(encoding="utf-8"))
        guards += [_guard(f"{file.name}: entry {number}", raw) for number, raw in enumerate(whole.pop("guard", []), 1)]
    return guards


def _guard(place: str, raw: dict[str, Any]) -> Guard:
    if unknown := raw.keys() - _KEYS:
        raise ValueError(f"{place}: {', '.join(sorted(unknown))} is not one of {', '.join(sorted(_KEYS))}")
    try:
        edits = (_edit(raw), *(_edit({"file": raw["file"], **more}) for more in raw.get("also", [])))
        return Guard(raw["claim"], raw["test"], edits)
    except KeyError as missing:
        raise ValueError(f"{place}: {missing} is missing") from None


def _edit(raw: dict[str, Any]) -> Edit:
    return Edit(raw["file"], raw["remove"], raw.get("put", "pass"))


class Copy:
    """A copy of the tree in which guards are removed and put back. One test at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._clock = int(time.time())
        for name in COPIED:
            source, target = ROOT / name, folder / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))
            else:
                shutil.copy2(source, target)
        # Before the paths that an editable installation adds.
        paths = os.pathsep.join(str(folder / name) for name in (*IMPORTED, "profile"))
        (folder / "profile").mkdir()
        (folder / "profile" / "guards_profile.py").write_text(_PROFILE)
        self._environment = {**os.environ, "PYTHONPATH": paths}

    def check_imports(self) -> None:
        """Raise RuntimeError unless it is the copy that is imported."""
        for name, package in IMPORTED.items():
            command = [sys.executable, "-c", f"import {package}; print({package}.__file__)"]
            found = subprocess.run(
                command, cwd=self.folder, env=self._environment, capture_output=True, text=True, check=True
            ).stdout.strip()
            if not Path(found).resolve().is_relative_to((self.folder / name).resolve()):
                raise RuntimeError(f"{package} is imported from {found}, not from the copy")

    def run(self, *tests: str, seconds: float = SECONDS) -> Outcome:
        """Run the tests as they are."""
        plugins = ("-p", "no:cacheprovider", "-p", "guards_profile")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--color=no", *plugins, *tests]
        began = time.monotonic()
        try:
            return self._run(command, began, seconds)
        finally:
            self._end_leftovers()

    def _run(self, command: list[str], began: float, seconds: float) -> Outcome:
        # In a session of its own, so that what a test started ends with it.
        with subprocess.Popen(
            command, cwd=self.folder, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        ) as process:  # fmt: skip
            try:
                output, _ = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                output, _ = process.communicate()
                return Outcome("ran out of time", time.monotonic() - began, output)
        return Outcome(_judged(process.returncode, output), time.monotonic() - began, output)

    def _end_leftovers(self) -> None:
        """End what a run left behind in this copy, where the system tells: the guard that was away may have ended it."""
        for cwd in Path("/proc").glob("[0-9]*/cwd"):
            with contextlib.suppress(OSError):
                if cwd.readlink().is_relative_to(self.folder):
                    os.kill(int(cwd.parent.name), signal.SIGKILL)

    def run_without(self, guard: Guard) -> Outcome:
        """Run the guard's test while the guard is away."""
        kept = {edit.file: (self.folder / edit.file).read_text(encoding="utf-8") for edit in guard.edits}
        changed = dict(kept)
        try:
            for edit in guard.edits:
                changed[edit.file] = edit.applied(changed[edit.file])
            for name, text in changed.items():
                if name.endswith(".py"):
                    compile(text, name, "exec")
        except (ValueError, SyntaxError) as error:
            return Outcome(f"cannot be removed: {error}", 0.0, "")
        try:
            self._write(changed)
            return self.run(guard.test)
        finally:
            self._write(kept)

    def _write(self, texts: dict[str, str]) -> None:
        for name, text in texts.items():
            path = self.folder / name
            path.write_text(text, encoding="utf-8")
            # Byte code is taken for current by second and size, and an edit may keep both.
            self._clock += 1
            os.utime(path, (self._clock, self._clock))


def _judged(status: int, output: str) -> str:
    """What the exit status and the last lines of pytest say."""
    if status == 0:
        return "passed" if re.search(r"\b\d+ passed", output) else "was skipped"
    if _TOO_LATE.search(output):
        return "ran out of time"
    if status != 1:
        return f"was not run (pytest exit {status})"
    if not re.search(r"^(?:\d+ \w+, )*\d+ failed\b", output, re.M):
        return "broke in a fixture"
    return "broke: the removal left code that cannot run" if _BROKEN.search(output) else "failed"


def prove(guards: Sequence[Guard], jobs: int, verbose: bool) -> int:
    """Run everything and print what was found. Returns the exit status."""
    with tempfile.TemporaryDirectory(prefix="guards-") as folder, ThreadPoolExecutor(jobs) as pool:
        copies: SimpleQueue[Copy] = SimpleQueue()
        for number in range(jobs):
            copies.put(Copy(Path(folder) / str(number)))
        first = copies.get()
        first.check_imports()
        print(f"the copy in {folder} is what is imported", flush=True)
        copies.put(first)
        broken = _unmutated(guards, copies, pool, jobs)
        began = time.monotonic()

        def one(guard: Guard) -> tuple[Guard, Outcome]:
            copy = copies.get()
            try:
                outcome = copy.run_without(guard)
            finally:
                copies.put(copy)
            mark = "ok" if outcome.what == "failed" else "NO"
            said = f"  ({outcome.why})" if mark == "ok" else f"  <- the test {outcome.what}"
            print(f"{mark}  {outcome.seconds:5.1f} s  {guard.name[:88]:<88}  {guard.test}{said}", flush=True)
            if verbose:
                print(outcome.output, flush=True)
            return guard, outcome

        found = list(pool.map(one, guards))
        took = time.monotonic() - began
    proven = [guard for guard, outcome in found if outcome.what == "failed" and guard.test not in broken]
    print(f"{len(found)} guards removed, {len(proven)} tests failed as they should ({took:.0f} s)")
    for guard, outcome in found:
        if outcome.what != "failed":
            print(f"not proven: {guard.claim}\n    {guard.name}\n    {guard.test} {outcome.what}")
    for test in sorted(broken):
        print(f"not proven: {test} does not pass with every guard in place")
    return 0 if len(proven) == len(found) else 1


def _unmutated(guards: Sequence[Guard], copies: SimpleQueue[Copy], pool: ThreadPoolExecutor, jobs: int) -> set[str]:
    """The tests that do not pass while every guard is in place: their failing proves nothing."""
    tests = sorted({guard.test for guard in guards})
    # A file stays whole, so that its fixtures are made once.
    files = sorted({test.partition("::")[0] for test in tests})
    shares = [[test for test in tests if test.partition("::")[0] in files[job::jobs]] for job in range(jobs)]

    def passing(share: list[str]) -> set[str]:
        copy = copies.get()
        try:
            return _failing(copy, share)
        finally:
            copies.put(copy)

    broken = set().union(*pool.map(passing, shares))
    print(f"{len(tests) - len(broken)} of {len(tests)} tests pass with every guard in place", flush=True)
    return broken


def _failing(copy: Copy, tests: list[str]) -> set[str]:
    """Those of ``tests`` that do not pass: all are run at once, and only where that fails in smaller parts."""
    if not tests or copy.run(*tests, seconds=SECONDS + 20 * len(tests)).what == "passed":
        return set()
    if len(tests) == 1:
        return set(tests)
    middle = len(tests) // 2
    return _failing(copy, tests[:middle]) | _failing(copy, tests[middle:])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status: 0 if every guard was proven, 1 if not, 2 for a wrong file."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.prove_guards", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--only", action="append", metavar="TEXT", help="entries that have TEXT in claim, file, guard or test"
    )
    parser.add_argument("--list", action="store_true", help="say what there is, run nothing")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="tests at once, each in a copy of its own")
    parser.add_argument("--verbose", action="store_true", help="show what pytest said")
    options = parser.parse_args(arguments)
    try:
        every = read_guards()
    except (ValueError, OSError) as error:
        print(f"{GUARDS}: {error}", file=sys.stderr)
        return 2
    guards = [guard for guard in every if any(text in guard.whole for text in options.only or [""])]
    if options.list:
        for guard in guards:
            print(f"{guard.claim}\n    {guard.name}\n    {guard.test}")
        print(f"{len(guards)} guards, {len({guard.test for guard in guards})} tests")
        return 0
    return prove(guards, max(options.jobs, 1), options.verbose)


if __name__ == "__main__":
    sys.exit(main())
