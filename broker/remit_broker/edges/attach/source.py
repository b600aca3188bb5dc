"""Where the attached server is: a command that is started here, or a URL that is called."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from remit_broker.edges.attach.containment import NO_LIMITS, Limits, Room

INHERITED: Final = ("PATH", "HOME", "LANG", "TMPDIR")
"""All that a started server sees of this process's environment; anything else must be declared for it."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class SourceError(ValueError):
    """A command, URL, folder or variable that cannot be used. The text says which and why, on one line."""


class ServerError(Exception):
    """The server did not start, or broke the protocol. The text says how, on one line."""


@dataclass(frozen=True)
class Sharing:
    """Who has a process of the server: all one (``server``), each ``user`` or each task (``txn``) its own.

    At most ``most`` of those run at once; each ends after ``idle`` seconds without a call.
    """

    of: Literal["server", "user", "txn"] = "server"
    most: int = 16
    idle: float = 300.0


ONE_FOR_ALL: Final = Sharing()


@dataclass(frozen=True)
class StdioSource:
    """A server over standard input and output. ``command`` is a list: it is never given to a shell."""

    command: tuple[str, ...]
    cwd: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    room: Room | None = None
    limits: Limits = NO_LIMITS
    sharing: Sharing = ONE_FOR_ALL

    @property
    def contained(self) -> str:
        """How it is contained, for people."""
        return str(self.room) if self.room is not None else "not contained"

    def environment(self) -> dict[str, str]:
        """The whole environment of the server: the allow-list of :data:`INHERITED`, and what was declared."""
        # INVARIANT: nothing else of our environment reaches the server (test_the_server_sees_only_declared_environment).
        return {name: os.environ[name] for name in INHERITED if name in os.environ} | dict(self.env)

    def __str__(self) -> str:
        return " ".join(self.command)


@dataclass(frozen=True)
class HttpSource:
    """A server over streamable HTTP. ``headers`` go with every request, and into no text."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    def __str__(self) -> str:
        return self.url


Source = StdioSource | HttpSource


def source(
    command: Sequence[str] | None = None,
    url: str | None = None,
    *,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    room: Room | None = None,
    limits: Limits = NO_LIMITS,
    sharing: Sharing = ONE_FOR_ALL,
) -> Source:
    """The source that exactly one of ``command`` and ``url`` names. Raises :class:`SourceError`."""
    if bool(command) == bool(url):
        raise SourceError("give either a command or a url")
    if url:
        if cwd is not None or env or room is not None or limits.set() or sharing != ONE_FOR_ALL:
            raise SourceError(
                "cwd, env, containment, limits and process are for a command: nothing is started for a url"
            )
        return HttpSource(_url(url))
    return StdioSource(_command(command or ()), _folder(cwd), _variables(env or {}), room, limits, sharing)


def _command(command: Sequence[str]) -> tuple[str, ...]:
    if (
        isinstance(command, str)
        or not all(isinstance(part, str) and "\0" not in part for part in command)
        or not command[0]
    ):
        raise SourceError('a command is a list of words, such as ["uvx", "mcp-server-git"]')
    return tuple(command)


def _folder(cwd: str | os.PathLike[str] | None) -> Path | None:
    if cwd is None:
        return None
    folder = Path(cwd).expanduser()
    if not folder.is_dir():
        raise SourceError(f"cwd: {folder} is not a folder")
    return folder


def _variables(env: Mapping[str, str]) -> dict[str, str]:
    for name, value in env.items():
        if not _VARIABLE.fullmatch(name) or not isinstance(value, str) or "\0" in value:
            raise SourceError(f"env: {name!r} must be a variable name with a text")
    return dict(env)


def _url(url: str) -> str:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise SourceError(f"url: {url!r} is not a URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not url.isprintable() or " " in url:
        raise SourceError(f"url: {url!r} must begin with http:// or https:// and name a host")
    if parts.username or parts.password or parts.fragment:
        raise SourceError("url: a URL with a user, password or fragment is not accepted")
    return url
