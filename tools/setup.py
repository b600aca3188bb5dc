"""`make setup`: a virtual environment in `.venv` with everything from the lock, and this checkout installed in it.

Quick when there is nothing to do: the stamp in the environment is a digest of all that decides what is in it. Only the
standard library is used, and nothing that an older Python could not parse, so that the message about it can be shown.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".setup"
LOCK = ROOT / "locks" / "dev.txt"
BUILD = ROOT / "locks" / "build.txt"
PROJECTS = (ROOT / "agents_sdk", ROOT)
LEAST = (3, 11)


def main() -> int:
    """Return the exit status: 0 with the environment ready, 1 when it could not be made, 2 for a wrong Python."""
    if sys.version_info < LEAST:
        found = ".".join(map(str, sys.version_info[:3]))
        say(f"Python 3.11 or newer is needed; {sys.executable} is {found}.")
        say("Name another one: make setup PYTHON=/path/to/python3.11")
        return 2
    digest = state()
    if STAMP.is_file() and STAMP.read_text() == digest and works():
        return 0
    try:
        fill(digest)
    except subprocess.CalledProcessError as error:
        say("setup failed: {} ended with {}".format(" ".join(map(str, error.cmd)), error.returncode))
        return 1
    say("ready: .venv/bin/remit")
    return 0


def fill(digest: str) -> None:
    """Create the environment where there is none that works, and install. A failure leaves no stamp."""
    if not works():
        say("creating .venv with Python {}.{}.{}".format(*sys.version_info[:3]))
        create()
    STAMP.unlink(missing_ok=True)
    say("installing from locks/dev.txt (every file checked against its hash)")
    # Some dependencies exist as source only: they are built with what the lock names, not with the newest there is.
    pip("install", "--require-hashes", "--no-deps", "-r", BUILD)
    pip("install", "--require-hashes", "--no-deps", "--no-build-isolation", "-r", LOCK)
    say("installing this checkout")
    editable = [part for project in PROJECTS for part in ("-e", project)]
    pip("install", "--no-deps", "--no-build-isolation", *editable)
    pip("check")
    STAMP.write_text(digest)


def create() -> None:
    """A new virtual environment; the old one, broken or of another Python, goes."""
    if VENV.exists():
        shutil.rmtree(str(VENV))
    try:
        run(sys.executable, "-m", "venv", VENV)
    except subprocess.CalledProcessError:
        shutil.rmtree(str(VENV), ignore_errors=True)
        say("this Python cannot make virtual environments (on Debian and Ubuntu: apt-get install python3-venv)")
        raise


def works() -> bool:
    """Whether the environment exists and is of the Python that runs this."""
    if not PYTHON.exists():
        return False
    probe = f"import sys, pip; print(sys.version_info[:2] == {tuple(sys.version_info[:2])!r})"
    done = subprocess.run([str(PYTHON), "-c", probe], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return done.returncode == 0 and done.stdout.strip() == b"True"


def state() -> str:
    """Digest of all that decides what the environment holds: the lock, both projects, this Python, this place."""
    digest = hashlib.sha256()
    files = [LOCK, BUILD, Path(__file__)] + [project / "pyproject.toml" for project in PROJECTS]
    for part in [file.read_bytes() for file in files] + [sys.version.encode(), str(ROOT).encode()]:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def pip(*arguments: object) -> None:
    """Run the environment's own pip, quietly."""
    run(PYTHON, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments)


def run(*command: object) -> None:
    """Run a command without the surroundings of another environment; raises CalledProcessError."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    subprocess.run([str(part) for part in command], check=True, env=environment)


def say(text: str) -> None:
    """A line for the person who waits, apart from the output of commands."""
    print("setup: " + text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
