"""``servers.toml``, beside ``remit.toml``: the only place from which the broker takes commands to run.

It is a private file (mode 0600). Nothing that comes over the bus or HTTP is ever written into it by the broker's edges.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from remit_broker.edges.attach.containment import Limits, Room
from remit_broker.edges.attach.source import ONE_FOR_ALL, HttpSource, Sharing, Source, SourceError, StdioSource, source
from remit_schemas.names import is_principal

_KEYS: Final = frozenset(
    {"command", "url", "env", "cwd", "contain", "read", "write", "network", "limits", "process", "processes", "idle"}
)
_MAX: Final = 1024 * 1024
_HEAD: Final = "# MCP servers that the broker runs. Commands are run as they stand here, without a shell.\n"


class ServersFileError(ValueError):
    """The file cannot be used. The text names file and key and says what is allowed, on one line."""


@dataclass(frozen=True)
class ServerEntry:
    """One server that the broker runs."""

    name: str
    source: Source


def read_servers(path: Path | str) -> dict[str, ServerEntry]:
    """Every ``[servers.NAME]`` of the file; nothing where there is no file. Raises :class:`ServersFileError`."""
    where = Path(path)
    text = _private(where)
    if text is None:
        return {}
    try:
        whole = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ServersFileError(f"{where}: {error}") from None
    table = whole.pop("servers", {})
    if whole or not isinstance(table, dict):
        raise ServersFileError(f"{where}: only [servers.NAME] tables are allowed, not {next(iter(whole), 'servers')!r}")
    return {name: ServerEntry(name, _source(where, name, raw)) for name, raw in table.items()}


def write_servers(path: Path | str, entries: Mapping[str, ServerEntry]) -> None:
    """Replace the file, whole or not at all, mode 0600."""
    where = Path(path)
    text = _HEAD + "".join(_table(entry) for _, entry in sorted(entries.items()))
    beside = where.with_name(f".{where.name}.{secrets.token_hex(8)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(where)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _table(entry: ServerEntry) -> str:
    found = entry.source
    lines = [f"[servers.{entry.name}]"]
    if isinstance(found, HttpSource):
        lines.append(f"url = {_quoted(found.url)}")
    else:
        lines.append(f"command = [{', '.join(map(_quoted, found.command))}]")
        if found.cwd is not None:
            lines.append(f"cwd = {_quoted(str(found.cwd))}")
        if found.env:
            pairs = ", ".join(f"{_quoted(name)} = {_quoted(value)}" for name, value in found.env.items())
            lines.append(f"env = {{ {pairs} }}")
        lines += _kept(found)
    return "\n" + "\n".join(lines) + "\n"


def _kept(found: StdioSource) -> list[str]:
    """How it is contained and limited."""
    lines: list[str] = []
    if (room := found.room) is not None:
        lines.append("contain = true")
        for key, paths in (("read", room.read), ("write", room.write)):
            if paths:
                lines.append(f"{key} = [{', '.join(_quoted(str(path)) for path in paths)}]")
        if room.network:
            lines.append("network = true")
    if (sharing := found.sharing) != ONE_FOR_ALL:
        lines += [f"process = {_quoted(sharing.of)}", f"processes = {sharing.most}", f"idle = {sharing.idle:g}"]
    if limits := found.limits.set():
        lines.append(f"limits = {{ {', '.join(f'{name} = {value}' for name, value in limits.items())} }}")
    return lines


def _quoted(text: str) -> str:
    """A TOML basic string (TOML 1.0, String): JSON's escapes are valid in it, but DEL must be escaped as well."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def _source(where: Path, name: str, raw: Any) -> Source:
    at = f"{where}: servers.{name}"
    if not is_principal(name):
        raise ServersFileError(f"{at}: a name is [a-z0-9][a-z0-9_-]*, at most 63 characters, and not a reserved word")
    if not isinstance(raw, dict) or (unknown := sorted(raw.keys() - _KEYS)):
        raise ServersFileError(
            f"{at}.{unknown[0] if isinstance(raw, dict) else ''}: allowed are {', '.join(sorted(_KEYS))}"
        )
    command, url, env = raw.get("command"), raw.get("url"), raw.get("env", {})
    if not isinstance(command, list | None) or not isinstance(url, str | None) or not isinstance(env, dict):
        raise ServersFileError(f"{at}: command is a list of words, url a text, env a table")
    try:
        found = source(
            command, url, cwd=raw.get("cwd"), env=env, room=_room(raw), limits=_limits(raw.get("limits", {})),
            sharing=sharing_of(raw),
        )  # fmt: skip
    except (SourceError, TypeError) as error:
        raise ServersFileError(f"{at}: {error}") from None
    if isinstance(found, StdioSource) and found.cwd is not None and not found.cwd.is_absolute():
        raise ServersFileError(f"{at}.cwd: must be absolute")
    return found


def _room(raw: dict[str, Any]) -> Room | None:
    contain, network = raw.get("contain", False), raw.get("network", False)
    if not isinstance(contain, bool) or not isinstance(network, bool):
        raise SourceError("contain and network are true or false")
    if not contain:
        if extra := sorted(raw.keys() & {"read", "write", "network"}):
            raise SourceError(f"{extra[0]} is for a contained server: say contain = true")
        return None
    return Room(_paths("read", raw), _paths("write", raw), network)


def _paths(key: str, raw: dict[str, Any]) -> tuple[Path, ...]:
    paths = raw.get(key, [])
    if not isinstance(paths, list) or not all(isinstance(path, str) and Path(path).is_absolute() for path in paths):
        raise SourceError(f"{key} is a list of absolute paths")
    return tuple(map(Path, paths))


def _limits(raw: Any) -> Limits:
    known = {one.name for one in fields(Limits)}
    if not isinstance(raw, dict) or not raw.keys() <= known or not all(type(v) is int and v > 0 for v in raw.values()):
        raise SourceError(f"limits is a table of whole numbers: {', '.join(sorted(known))}")
    return Limits(**raw)


def sharing_of(raw: dict[str, Any]) -> Sharing:
    """Who has a process of a server. Raises :class:`SourceError`."""
    of, most, idle = raw.get("process", "server"), raw.get("processes", 16), raw.get("idle", 300)
    if of not in ("server", "user", "txn"):
        raise SourceError("process is server, user or txn")
    if of == "server" and (extra := sorted(raw.keys() & {"processes", "idle"})):
        raise SourceError(f'{extra[0]} is for processes of users or tasks: say process = "user" or "txn"')
    if type(most) is not int or not 1 <= most <= 1000:
        raise SourceError("processes is a whole number from 1 to 1000")
    if type(idle) not in (int, float) or not 1 <= idle <= 86_400:
        raise SourceError("idle is a number of seconds from 1 to 86400")
    return Sharing(of, most, float(idle))


def _private(path: Path) -> str | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ServersFileError(f"{path}: {error.strerror}: it must be a plain file, not a link") from None
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(file.fileno())
        # INVARIANT: whoever else can write this file could run commands as the broker
        # (test_a_servers_file_others_can_change_is_refused).
        if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o077 or found.st_uid != os.geteuid():
            raise ServersFileError(
                f"{path}: must be a plain file of this user that nobody else can read or change: run chmod 600 {path}"
            )
        data = file.read(_MAX + 1)
    try:
        if len(data) > _MAX:
            raise ServersFileError(f"{path}: more than {_MAX} bytes")
        return data.decode()
    except UnicodeDecodeError:
        raise ServersFileError(f"{path}: not UTF-8") from None
