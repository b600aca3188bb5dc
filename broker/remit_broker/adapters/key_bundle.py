"""The keys of one broker as a single file, for the data folder of another one on the same bus."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Final

from remit_broker.adapters.errors import ConfigError
from remit_broker.adapters.keyfiles import KEYS, KeyFiles
from remit_broker.adapters.private_files import (
    FOLDER_MODE,
    private_folder,
    read_private,
    sync_folder,
    write_private,
)
from remit_schemas.base64url import encode

VERSION: Final = 1
OWN: Final = "local.token"
"""Proves an operator on one machine: drawn anew on the other one."""
_NAME: Final = re.compile(r"[a-z]+-[A-Za-z0-9_-]+\.(jwk|nk)|(digest|results)\.key")


def export(data: Path, file: Path) -> int:
    """Write the keys of the data folder into ``file`` (0600), which must not exist. How many. Raises :class:`ConfigError`."""
    keys = KeyFiles.open(data).folder / KEYS
    found = {path.name: read_private(path).decode() for path in sorted(keys.iterdir()) if _NAME.fullmatch(path.name)}
    if file.exists():
        raise ConfigError(f"{file} exists", "name another file")
    write_private(file.absolute(), json.dumps({"v": VERSION, "keys": found}, indent=1).encode())
    return len(found)


def restore(data: Path, file: Path) -> int:
    """Put the keys in ``file`` into a data folder that has none. How many. Raises :class:`ConfigError`, and then nothing is changed."""
    found = _read(file.absolute())
    private_folder(data, create=True)
    if (data / KEYS).exists():
        raise ConfigError(
            f"{data / KEYS} exists: keys are never replaced", "name another data folder, or move that one away first"
        )
    fresh = Path(tempfile.mkdtemp(prefix=f".{KEYS}-", dir=data))
    try:
        fresh.chmod(FOLDER_MODE)
        for name, text in found.items():
            write_private(fresh / name, text.encode())
        write_private(fresh / OWN, encode(secrets.token_bytes(32)).encode())
        # Read whole before it gets its name: a damaged bundle leaves nothing.
        trial = private_folder(Path(tempfile.mkdtemp(prefix=".trial-", dir=data)), create=False)
        try:
            shutil.copytree(fresh, trial / KEYS)
            KeyFiles.open(trial)
        finally:
            shutil.rmtree(trial, ignore_errors=True)
        fresh.rename(data / KEYS)
        sync_folder(data)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return len(found)


def _read(file: Path) -> dict[str, str]:
    try:
        value = json.loads(read_private(file, 1024 * 1024))
        found = value["keys"] if value["v"] == VERSION else None
    except (ValueError, KeyError, TypeError):
        found = None
    if not isinstance(found, dict) or not all(
        _NAME.fullmatch(name) and isinstance(text, str) for name, text in found.items()
    ):
        raise ConfigError(f"{file} holds no keys of a broker", "make it with: remit keys export FILE")
    return found
