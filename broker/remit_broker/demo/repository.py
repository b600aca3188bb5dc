"""Real data for the real server: the git history of where the demonstration is run, or of this package's own files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
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


def require_git() -> None:
    """Raises :class:`ConfigError` where git is not installed."""
    if shutil.which("git") is None:
        raise ConfigError(
            f"git is not installed, and {SERVER_PACKAGE}, the MCP server of the demonstration, reads a git history",
            "install git, then run remit demo again",
        )


def find_repository(folder: Path) -> tuple[Path, str]:
    """A repository and a word on which: the checkout around the working folder, else one made of this package's files."""
    here = _git(Path.cwd(), "rev-parse", "--show-toplevel")
    if here and _git(Path(here), "rev-parse", "HEAD"):
        return Path(here), f"the git history of {here}"
    made = folder / "repository"
    package = Path(remit_schemas.__file__).parent
    shutil.copytree(package, made, ignore=shutil.ignore_patterns("__pycache__"))
    # Nothing of the user's own git configuration: neither signing nor hooks nor templates.
    plain = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    plain |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    who = ("-c", "user.name=demo", "-c", "user.email=demo@localhost")
    for words in (("init", "-q"), ("add", "."), (*who, "commit", "-q", "-m", "the schemas as they were installed")):
        _git(made, *words, env=plain)
    if not _git(made, "rev-parse", "HEAD", env=plain):
        raise ConfigError(f"git could not make a repository in {made}", "run it inside a git checkout")
    return made, f"a repository made of the installed files of {package.name}"


def _git(folder: Path, *words: str, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(["git", *words], cwd=folder, env=env, capture_output=True, text=True, check=False)  # noqa: S603, S607
    return done.stdout.strip() if done.returncode == 0 else ""
