"""Real data for the real server: the git history of where the demonstration is run, or of this package's own files."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import remit_schemas
from remit_broker.adapters.errors import ConfigError

SERVER_PACKAGE = "mcp-server-git"


def server_command(repository: Path) -> list[str]:
    """How the published MCP server is started. Raises :class:`ConfigError` where it is not installed."""
    beside = Path(sys.executable).parent / SERVER_PACKAGE
    found = str(beside) if beside.exists() else shutil.which(SERVER_PACKAGE)
    if found is None:
        raise ConfigError(f"{SERVER_PACKAGE} is not installed", 'pip install "remit-broker[demo]"')
    return [found, "--repository", str(repository)]


def find_repository(folder: Path) -> tuple[Path, str]:
    """A repository and a word on which: the checkout around the working folder, else one made of this package's files."""
    if shutil.which("git") is None:
        raise ConfigError(
            "git is not installed, and the MCP server of the demonstration reads a git history", "install git"
        )
    here = _git(Path.cwd(), "rev-parse", "--show-toplevel")
    if here and _git(Path(here), "rev-parse", "HEAD"):
        return Path(here), "the git history of this checkout"
    made = folder / "repository"
    package = Path(remit_schemas.__file__).parent
    shutil.copytree(package, made, ignore=shutil.ignore_patterns("__pycache__"))
    who = ("-c", "user.name=demo", "-c", "user.email=demo@localhost")
    for words in (("init", "-q"), ("add", "."), (*who, "commit", "-q", "-m", "the schemas as they were installed")):
        _git(made, *words)
    return made, f"a repository made of the installed files of {package.name}"


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603, S607
    return done.stdout.strip() if done.returncode == 0 else ""
