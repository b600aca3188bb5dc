"""Packages of npm for tests: installed once into a cache outside the checkout, in the versions that a lock here pins."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

SECONDS = 240


def installed(folder: Path, what: str) -> Path:
    """A folder with everything in the lock of ``folder``. Skips, with the reason, where node, npm or the registry is not there."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip(f"there is no node or npm on this machine: {what}")
    files = ("package.json", "package-lock.json")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    mark = hashlib.sha256(b"".join((folder / file).read_bytes() for file in files) + version.encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "remit-tests" / f"{folder.name}-{mark}"
    if (cache / "done").exists():
        return cache
    fresh = cache.with_name(f"{cache.name}-{os.getpid()}")
    fresh.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copy(folder / file, fresh)
    try:
        done = subprocess.run(
            [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=fresh, capture_output=True, text=True, timeout=SECONDS,
        )  # fmt: skip
        why = done.stderr.strip()[-300:] if done.returncode else ""
    except subprocess.TimeoutExpired:
        why = f"it took more than {SECONDS} s"
    if why:
        shutil.rmtree(fresh, ignore_errors=True)
        pytest.skip(f"npm ci failed: {why}")
    (fresh / "done").touch()
    try:
        fresh.rename(cache)
    except OSError:  # another run was first
        shutil.rmtree(fresh, ignore_errors=True)
    return cache
