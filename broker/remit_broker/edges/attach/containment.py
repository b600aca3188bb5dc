"""Running a server in a room of its own: bubblewrap where the machine has it, so that it sees and changes what was declared for it.

What there is in the room: the system's programs and libraries, the program itself with what it was installed with, and the declared
paths, all of it read only but for those that may be written; a home and a /tmp of its own; processes of its own; no network
unless it was declared. Nothing of the user's files, of the broker's keys or of other servers is there at all.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

HOME: Final = "/home/server"
"""Where a contained server's own home is, for itself."""
_SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/opt")
_ETC: Final = (
    "alternatives", "ca-certificates", "ca-certificates.conf", "group", "hosts", "ld.so.cache", "ld.so.conf", "ld.so.conf.d",
    "localtime", "mime.types", "nsswitch.conf", "passwd", "pki", "protocols", "resolv.conf", "services", "ssl", "timezone",
)  # fmt: skip
"""Of /etc what programs need to run, and nothing that is a secret."""
_PROBE: Final = 10.0
_SCRIPTS: Final = frozenset({".py", ".js", ".mjs", ".cjs", ".ts", ".sh"})
LIMITS: Final = Path(__file__).with_name("limits.py")


class ContainmentError(Exception):
    """A server that is to be contained cannot be. The text says why, on one line."""


@dataclass(frozen=True)
class Room:
    """What a contained server may see and change beside the system. Paths are absolute."""

    read: tuple[Path, ...] = ()
    write: tuple[Path, ...] = ()
    network: bool = False

    def __str__(self) -> str:
        network = "network" if self.network else "no network"
        writes = f", writes {', '.join(map(str, self.write))}" if self.write else ""
        return f"bubblewrap, {network}{writes}"


@dataclass(frozen=True)
class Limits:
    """Resource limits (setrlimit(2)): bytes of address space, processes, open files, seconds of processor time, bytes of one file."""

    memory: int | None = None
    processes: int | None = None
    files: int | None = None
    cpu: int | None = None
    file_size: int | None = None

    def words(self) -> list[str]:
        """As the launcher takes them."""
        return [f"{name}={value}" for name, value in self.set().items()]

    def set(self) -> dict[str, int]:
        """Those that are set."""
        return {name: value for name, value in vars(self).items() if value is not None}


NO_LIMITS: Final = Limits()


@dataclass(frozen=True)
class Launch:
    """The whole command and environment of a server."""

    words: list[str]
    env: dict[str, str] = field(repr=False)


def launch(
    command: Sequence[str], env: Mapping[str, str], cwd: Path | None, room: Room | None, limits: Limits, home: Path | None
) -> Launch:  # fmt: skip
    """What is started for ``command``. ``home`` becomes the home of a contained server; without one it is lost at its end.

    Raises :class:`ContainmentError` where a contained server cannot be contained.
    """
    words, env = list(command), dict(env)
    if room is not None:
        # INVARIANT: what is to be contained is not run otherwise (test_what_is_to_be_contained_is_not_run_without).
        if why := unavailable():
            raise ContainmentError(f"it is to be contained, and that cannot be done here: {why}")
        if home is not None:
            home.mkdir(mode=0o700, exist_ok=True)
        words = [*_room(words, env, cwd, room, home), "--", _program(words[0], env), *words[1:]]
        env |= {"HOME": HOME, "TMPDIR": "/tmp"}  # noqa: S108 - of its own
    if limits.set():
        words = [sys.executable, "-I", "-S", str(LIMITS), *limits.words(), "--", *words]
    return Launch(words, env)


@functools.cache
def unavailable() -> str:
    """Why nothing can be contained on this machine; empty where it can. Found out by doing it, once."""
    tool = shutil.which("bwrap")
    if tool is None:
        return "bubblewrap (bwrap) is not installed"
    words = [tool, *_isolated(Room()), *_system(), "--", "/bin/sh", "-c", "exit 0"]
    try:
        done = subprocess.run(words, capture_output=True, timeout=_PROBE, env={})  # noqa: S603 - our own words
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"bwrap does not run: {type(error).__name__}"
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        return f"bwrap does not work: {said[-1][:200] if said else f'exit code {done.returncode}'}"
    return ""


def _room(words: Sequence[str], env: Mapping[str, str], cwd: Path | None, room: Room, home: Path | None) -> list[str]:
    tool = shutil.which("bwrap") or "bwrap"
    found = [tool, *_isolated(room), *_system()]
    program = shutil.which(words[0], path=env.get("PATH")) or words[0]
    for path in dict.fromkeys(installed_with(Path(program))):
        found += ["--ro-bind", str(path), str(path)]
    found += ["--bind", str(home), HOME] if home is not None else ["--tmpfs", HOME]
    for path in room.read:
        found += ["--ro-bind", str(path), str(path)]
    if cwd is not None and not any(cwd.is_relative_to(path) for path in (*room.read, *room.write)):
        found += ["--ro-bind", str(cwd), str(cwd)]
    for path in room.write:
        found += ["--bind", str(path), str(path)]
    return [*found, "--remount-ro", "/", "--chdir", str(cwd) if cwd is not None else HOME]


def _isolated(room: Room) -> list[str]:
    # INVARIANT: it dies with whoever started it, whatever is killed (test_a_contained_server_ends_with_whoever_started_it).
    return [
        "--unshare-all", *(["--share-net"] if room.network else []), "--die-with-parent", "--new-session",
        "--cap-drop", "ALL", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/run",  # noqa: S108 - of its own
    ]  # fmt: skip


def _system() -> list[str]:
    found: list[str] = []
    for name in _SYSTEM:
        if Path(name).is_symlink():
            found += ["--symlink", os.readlink(name), name]
        elif Path(name).is_dir():
            found += ["--ro-bind", name, name]
    for name in _ETC:
        found += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    return found


def _program(word: str, env: Mapping[str, str]) -> str:
    """The program by its path: inside, the folder that it was found from may not be there."""
    found = shutil.which(word, path=env.get("PATH"))
    return str(Path(found).absolute()) if found else word


def installed_with(program: Path) -> Iterator[Path]:
    """The folders outside the system that a program was installed with: its environment, what its links lead to, its interpreter."""
    seen: set[Path] = set()
    pending = [program.absolute()]
    while pending and len(seen) < 16:
        path = pending.pop()
        if path in seen:
            continue
        seen.add(path)
        if not any(path.is_relative_to(one) for one in _SYSTEM):
            yield prefix_of(path)
        if path.is_symlink():
            pending.append(path.parent / os.readlink(path))
        elif (interpreter := _shebang(path)) is not None:
            pending.append(interpreter)
    for path in seen:
        # The folder may itself be behind a link, such as that of a tool that switches versions.
        real = path.resolve()
        if real not in seen and not any(real.is_relative_to(one) for one in _SYSTEM):
            yield prefix_of(real)


def prefix_of(program: Path) -> Path:
    """What a program is installed in: of ``…/venv/bin/x`` it is ``…/venv``; never a home or the root, of which only the file counts."""
    folder = program.parent
    above = folder.parent
    if (above / "pyvenv.cfg").is_file():
        return above
    broad = {Path("/"), Path.home(), Path.home() / ".local", Path("/home"), Path("/root"), Path("/tmp")}  # noqa: S108
    if folder.name == "bin" and above not in broad and len(above.parts) > 2:
        return above
    return program


def _shebang(path: Path) -> Path | None:
    try:
        with path.open("rb") as file:
            first = file.readline(512)
    except OSError:
        return None
    if not first.startswith(b"#!"):
        return None
    words = first[2:].decode(errors="replace").split()
    if not words:
        return None
    if Path(words[0]).name == "env" and len(words) > 1:
        found = shutil.which(words[-1])
        return Path(found) if found else None
    return Path(words[0])


def named_in(command: Sequence[str], cwd: Path | None) -> list[Path]:
    """The paths that a command names: what it is told to work on has to be there. Of a script it is the folder it is in."""
    found: list[Path] = []
    for word in command[1:]:
        text = word.partition("=")[2] if word.startswith("--") and "=" in word else word
        if text in ("", ".", "/") or text.startswith("-"):
            continue
        path = (cwd or Path.cwd()) / Path(text).expanduser()
        try:
            if path.is_file() and path.suffix in _SCRIPTS:
                path = path.parent
            elif not path.exists():
                continue
        except (OSError, ValueError):
            continue
        known = [*map(Path, _SYSTEM), *found]
        if not any(path.is_relative_to(one) for one in known):
            found.append(path.absolute())
    return found
