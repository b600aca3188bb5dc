"""`make lock`: pin everything that either distribution, its tests or its demo needs.

Writes `locks/dev.txt` (everything: what `make setup` installs), `locks/build.txt` (what builds wheels, its part that is
installed first) and `locks/runtime.txt` (what the broker needs to run, for an image), all with hashes; and
`locks/constraints.txt`, the versions of the last one for `pip install -c`, where hashes would refuse a checkout. No host
stands in any of them. Pins that are there stay as they are unless `--upgrade` or `--upgrade-package NAME` is given.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "locks"
OWN = "remit-"
"""Our own distributions are installed from the checkout, never from a lock."""
BUILDERS = ("editables", "hatchling", "pip", "setuptools", "wheel")
"""Some dependencies exist as source only; they are built with what the lock names, not with the newest there is."""
HEAD = "# Written by `make lock` from both pyproject.toml files. Do not edit.\n"

OPTIONS = (
    "--quiet",
    "--resolver=backtracking",
    "--strip-extras",
    "--allow-unsafe",
    "--generate-hashes",
    "--no-header",
    "--no-annotate",
    "--no-emit-index-url",
    "--no-emit-trusted-host",
    "--no-emit-find-links",
    "--no-emit-options",
)


def main(arguments: list[str]) -> int:
    """Write the four files. ``arguments`` are passed on to pip-compile."""
    runtime, development = requirements()
    present = (LOCKS / "dev.txt").read_text() if (LOCKS / "dev.txt").exists() else ""
    everything = resolve([*runtime, *development, *BUILDERS], present, arguments)
    LOCKS.mkdir(exist_ok=True)
    (LOCKS / "dev.txt").write_text(HEAD + everything)
    # The other two are resolved from the pins of the first, so that all speak of the same versions.
    for name, wanted in (("build.txt", list(BUILDERS)), ("runtime.txt", runtime)):
        (LOCKS / name).write_text(HEAD + resolve(wanted, everything, []))
    pins = re.findall(r"^\S+==\S+", (LOCKS / "runtime.txt").read_text(), re.M)
    (LOCKS / "constraints.txt").write_text(HEAD + "\n".join(pins) + "\n")
    return 0


def requirements() -> tuple[list[str], list[str]]:
    """What the distributions need to run, the demo included, and what working on them needs besides."""
    broker, sdk = project(ROOT), project(ROOT / "agents_sdk")
    runtime = [*sdk["project"]["dependencies"], *broker["project"]["dependencies"]]
    for extra in broker["project"]["optional-dependencies"].values():
        runtime += extra
    development = [*broker["dependency-groups"]["dev"], *broker["build-system"]["requires"]]
    return sorted({name for name in runtime if not name.startswith(OWN)}), sorted(set(development))


def project(folder: Path) -> dict[str, Any]:
    """The parsed ``pyproject.toml`` of a folder."""
    return tomllib.loads((folder / "pyproject.toml").read_text())


def resolve(wanted: list[str], pins: str, options: list[str]) -> str:
    """The lock for ``wanted``. ``pins`` is a lock whose versions are kept where they still fit."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "wanted.in").write_text("\n".join(wanted) + "\n")
        (folder / "out.txt").write_text(pins)
        command = [
            sys.executable,
            "-m",
            "piptools",
            "compile",
            *OPTIONS,
            *options,
            "--output-file",
            "out.txt",
            "wanted.in",
        ]
        # Builds that pip-compile starts for metadata are chatty; what they say matters only when it fails.
        done = subprocess.run(command, cwd=folder, text=True, capture_output=True, check=False)
        if done.returncode:
            raise SystemExit(f"pip-compile failed\n{done.stdout}{done.stderr}")
        lines = (folder / "out.txt").read_text().splitlines()
    # pip-compile explains its unsafe packages in comments; nobody needs them twice.
    return "\n".join(line for line in lines if line and not line.startswith("#")) + "\n"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
