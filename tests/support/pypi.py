"""Packages of PyPI for tests, with what they need: installed once into a cache outside the checkout, beside no environment of ours."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

SECONDS = 240


def installed(packages: Sequence[str], what: str) -> Path:
    """A folder for ``PYTHONPATH``. Skips, with the reason, where the registry is not there."""
    mark = hashlib.sha256("\0".join((sys.version, *packages)).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "remit-tests" / f"pypi-{mark}"
    if cache.exists():
        return cache
    fresh = cache.with_name(f"{cache.name}-{os.getpid()}")
    fresh.parent.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--target", str(fresh), *packages],
            capture_output=True, text=True, timeout=SECONDS,
        )  # fmt: skip
        why = done.stderr.strip()[-300:] if done.returncode else ""
    except subprocess.TimeoutExpired:
        why = f"it took more than {SECONDS} s"
    if why:
        shutil.rmtree(fresh, ignore_errors=True)
        pytest.skip(f"{what}: pip install failed: {why}")
    try:
        fresh.rename(cache)
    except OSError:  # another run was first
        shutil.rmtree(fresh, ignore_errors=True)
    return cache
