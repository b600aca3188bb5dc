"""Files and folders that only their owner may read: written whole or not at all, refused when others could read them."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from remit_broker.adapters.errors import ConfigError

FOLDER_MODE = 0o700
FILE_MODE = 0o600


def private_folder(path: Path, *, create: bool) -> Path:
    """``path`` as a folder of mode 0700 that belongs to this user. Raises :class:`ConfigError` naming the path and the remedy."""
    if create:
        path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    try:
        found = path.stat()
    except FileNotFoundError:
        raise ConfigError(f"the folder {path} does not exist", "create it with `remit init`") from None
    except OSError as error:
        raise ConfigError(f"the folder {path} cannot be read: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"{path} is not a folder", "name a folder of its own for the broker's data")
    _refuse_shared(path, found, FOLDER_MODE)
    return path


def _refuse_shared(path: Path, found: os.stat_result, mode: int) -> None:
    if found.st_uid != os.geteuid():
        raise ConfigError(
            f"{path} belongs to another user (uid {found.st_uid})", "run as that user, or use a folder of your own"
        )
    # INVARIANT: a key that anybody else could have read is not used (test_a_key_file_others_can_read_is_refused).
    if found.st_mode & 0o077:
        raise ConfigError(
            f"{path} can be read or changed by others (mode {stat.S_IMODE(found.st_mode):04o})",
            f"run `chmod {mode:o} {path}`, and rotate its keys if others use this machine",
        )


def read_private(path: Path, max_bytes: int = 64 * 1024) -> bytes:
    """The content of a regular file of mode 0600 that belongs to this user; links are not followed. Raises :class:`ConfigError`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ConfigError(
            f"the file {path} is missing", "restore it from a backup; making a new one would orphan what it protects"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"the file {path} cannot be opened: {error.strerror}", "it must be a plain file, not a link"
        ) from None
    with os.fdopen(descriptor, "rb") as file:
        # On the open file: what was checked is what is read.
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{path} is not a plain file")
        _refuse_shared(path, found, FILE_MODE)
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ConfigError(f"{path} has more than {max_bytes} bytes", "it is not a file of this broker")
    return data


def write_private(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``, mode 0600, durable before it returns; a reader sees the old content or the new, never a part."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
