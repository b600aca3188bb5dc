"""`python -m tools.checks`, part of `make check`: promises about this repository that no linter knows of.

Each check is a function that yields what is wrong, one line each; nothing yielded, nothing wrong.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
README_LINES = 200
PATTERNS_STAND_IN = ("tools/checks.py", "tests/packaging/test_checks.py")

Check = Callable[[], Iterator[str]]


def readme_is_short() -> Iterator[str]:
    """A README is read to the end, or not at all."""
    lines = len(read("README.md").splitlines())
    if lines > README_LINES:
        yield f"README.md has {lines} lines; at most {README_LINES} are allowed"


def make_commands_exist() -> Iterator[str]:
    """Every `make X` that the README or the docs name is a target."""
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.M))
    for file, command in commands("make"):
        for word in command[1:]:
            if not re.fullmatch(r"[a-z]+", word):
                break
            if word not in targets:
                yield f"{file}: `make {word}` is no target of the Makefile"


def remit_commands_exist() -> Iterator[str]:
    """Every `remit X` that the README names is a command."""
    import typer

    from remit_broker.cli.main import app

    root = typer.main.get_command(app)
    for file, command in commands("remit"):
        unknown = unknown_word(root, command[1:])
        if unknown:
            yield f"{file}: `remit {unknown}` is no command"


def unknown_word(command: Any, words: list[str]) -> str:
    """The words up to the first that names no subcommand; empty when all do. Options and arguments end the walk."""
    said: list[str] = []
    while words and hasattr(command, "commands") and re.fullmatch(r"[a-z][a-z-]*", words[0]):
        said.append(words[0])
        command = command.commands.get(words[0])
        if command is None:
            return " ".join(said)
        words = words[1:]
    return ""


def commands(program: str) -> Iterator[tuple[str, list[str]]]:
    """Where the README starts ``program``: in code blocks and in `inline code`, with its words."""
    text = read("README.md")
    blocks = re.findall(r"^```(?:sh|bash|console|shell)?\n(.*?)^```", text, re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    for line in lines:
        found = re.match(rf"^(?:\$ )?(?:\.venv/bin/)?({program}(?: .*)?)$", line.strip())
        if found:
            yield "README.md", words_of(found[1])


def words_of(line: str) -> list[str]:
    """A command line as words, its comment dropped; as far as it can be read."""
    try:
        return shlex.split(line, comments=True)
    except ValueError:
        return line.split()


def locks_name_no_host() -> Iterator[str]:
    """The lock says which files by their hashes, never where from: everybody has an index of their own."""
    for file in sorted((ROOT / "locks").glob("*.txt")):
        for number, line in enumerate(file.read_text().splitlines(), 1):
            if "://" in line or re.match(r"\s*-(?!-hash=)", line) or " @ " in line:
                yield f"locks/{file.name}:{number}: names a place: {line.strip()}"


def locks_hash_everything() -> Iterator[str]:
    """A poisoned release has another hash. Constraints only bound versions: with hashes pip would refuse a checkout."""
    for file in sorted(set((ROOT / "locks").glob("*.txt")) - {ROOT / "locks" / "constraints.txt"}):
        for entry in re.split(r"\n(?=\S)", file.read_text()):
            if "==" in entry and "--hash=sha256:" not in entry:
                yield f"locks/{file.name}: {entry.splitlines()[0]} has no hash"


def no_machine_in_files() -> Iterator[str]:
    """No place of one person's machine, and no package index, stands in a file that is kept."""
    homes = r"(?<![\w.])/(?:home|Users)/(?!you\b|user\b|me\b)\w+/|(?<![\w.])/(?:root)/|[A-Z]:\\Users\\"
    index = r"--(?:extra-)?index-url[= ]|--trusted-host[= ]|--find-links[= ]|\b(?:PIP|UV)_\w*(?:INDEX|LINKS)\w*"
    here = re.escape(str(ROOT)) + r"(?![\w-])"
    wrong = re.compile(f"{homes}|{index}" + (f"|{here}" if len(ROOT.parts) > 2 else ""))
    for name in kept_files():
        if name in PATTERNS_STAND_IN:
            continue
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if found := wrong.search(line):
                yield f"{name}:{number}: {found[0]}"


def kept_files() -> list[str]:
    """What git keeps or would keep."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return sorted(set(done.stdout.splitlines()))


def licences_are_equal() -> Iterator[str]:
    """Each distribution carries the licence, and a build cannot reach above its own folder for it."""
    if read("LICENSE") != read("agents_sdk/LICENSE"):
        yield "agents_sdk/LICENSE differs from LICENSE"


def tests_named_in_documents_exist() -> Iterator[str]:
    """`docs/guarantees.md` names a test for each claim, and `# INVARIANT:` in the code one that holds it."""
    tests = "\n".join(path.read_text() for path in sorted((ROOT / "tests").rglob("*.py")))
    known = set(re.findall(r"def (test_\w+)", tests)) | {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    for name in kept_files():
        if name == "docs/guarantees.md" or (name.endswith(".py") and not name.startswith(("tests/", "tools/"))):
            text = read(name)
            if name.endswith(".py"):
                text = "\n".join(re.findall(r"# INVARIANT:[^\n]*(?:\n\s*#[^\n]*)*", text))
            for test in sorted(set(re.findall(r"\btest_\w+", text)) - known):
                yield f"{name}: names {test}, which does not exist"


def read(name: str) -> str:
    """A file of the repository; empty when there is none."""
    path = ROOT / name
    return path.read_text(encoding="utf-8") if path.is_file() else ""


CHECKS: tuple[Check, ...] = (
    readme_is_short,
    make_commands_exist,
    remit_commands_exist,
    locks_name_no_host,
    locks_hash_everything,
    no_machine_in_files,
    licences_are_equal,
    tests_named_in_documents_exist,
)


def main() -> int:
    """Run every check and say what is wrong. Returns the exit status."""
    wrong = 0
    for check in CHECKS:
        try:
            found = list(check())
        except Exception as error:  # a check that cannot run has found something
            found = [f"could not be checked: {type(error).__name__}: {error}"]
        wrong += len(found)
        print(f"{'ok ' if not found else 'NO '} {check.__name__.replace('_', ' ')}")
        for line in found:
            print(f"    {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
