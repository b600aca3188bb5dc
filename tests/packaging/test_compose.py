"""`compose.yaml`: what it promises can be read from it, and what its first step writes is a NATS configuration that works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from remit_broker.adapters.nats_server import find_binary
from remit_broker.config import load
from tests.support.jaeger import free_ports
from tests.support.tracing import cached_jaeger
from tools.jaeger import VERSION

ROOT = Path(__file__).resolve().parents[2]
NATS, CALLOUTS, BROKERS = ("nats-1", "nats-2", "nats-3"), ("callout-1", "callout-2"), ("broker-1", "broker-2")
LONG_RUNNING = (*NATS, *CALLOUTS, *BROKERS, "jaeger")
NODES = ("n1", "n2", "n3")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    parsed = yaml.safe_load((ROOT / "compose.yaml").read_text())
    assert isinstance(parsed, dict)
    return parsed


def prepare(folder: Path) -> tuple[list[Path], Path]:
    """Run the first step; the folders of the two brokers, and that of the NATS configurations."""
    states, nats = [folder / "state-1", folder / "state-2"], folder / "nats"
    for one in (*states, nats):
        one.mkdir(mode=0o700, exist_ok=True)
    command = [sys.executable, ROOT / "deploy" / "prepare.py", nats, *states]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return states, nats


def secrets_of(state: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (state / "data" / "keys").iterdir()}


def test_every_long_running_service_has_a_health_check_and_restarts(compose: dict[str, Any]):
    for name in LONG_RUNNING:
        assert compose["services"][name]["healthcheck"]["test"]
        assert compose["services"][name]["restart"] == "unless-stopped"


def test_the_brokers_wait_for_healthy_servers_and_the_servers_for_their_configuration(compose: dict[str, Any]):
    services = compose["services"]
    healthy = {name: {"condition": "service_healthy"} for name in NATS}
    assert services["broker-1"]["depends_on"] == healthy
    assert services["broker-2"]["depends_on"] == healthy | {"broker-1": {"condition": "service_healthy"}}
    assert all(services[name]["depends_on"] == healthy for name in CALLOUTS)
    assert all(
        services[name]["depends_on"] == {"prepare": {"condition": "service_completed_successfully"}} for name in NATS
    )


def test_only_the_nats_servers_reach_each_others_route_ports(compose: dict[str, Any]):
    assert compose["networks"]["cluster"] == {"internal": True}
    inside = {name for name, service in compose["services"].items() if "cluster" in service.get("networks", ())}
    assert inside == set(NATS)


def test_images_are_pinned(compose: dict[str, Any]):
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version is not None
    images = {name: service["image"] for name, service in compose["services"].items()}
    # Of Jaeger the version is that which the traces are compared against.
    assert images.pop("jaeger") == f"jaegertracing/jaeger:{VERSION}"
    assert set(images.values()) == {f"remit-broker:{version[1]}"}
    base = re.findall(r"^ARG PYTHON_IMAGE=(.+)$", (ROOT / "Dockerfile").read_text(), re.M)
    assert base
    assert all(re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", image) for image in base)


def test_every_volume_is_named_and_declared(compose: dict[str, Any]):
    mounted = {mount.split(":")[0] for service in compose["services"].values() for mount in service["volumes"]}
    assert mounted == set(compose["volumes"])


def test_ports_are_published_on_loopback_only(compose: dict[str, Any]):
    ports = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_no_service_is_given_a_secret(compose: dict[str, Any]):
    """Nothing to forget to change: keys are drawn, and a variable is only ever passed on."""
    for service in compose["services"].values():
        assert all("=" not in variable for variable in service.get("environment", ()))
    assert not re.search(
        r"passw|secret|token|seed", (ROOT / "compose.yaml").read_text().replace("No password", ""), re.I
    )


def test_the_nats_services_cannot_read_the_brokers_keys_and_the_callouts_cannot_write_them(compose: dict[str, Any]):
    services = compose["services"]
    assert all(not mount.startswith("state-") for name in NATS for mount in services[name]["volumes"])
    assert all(mount.endswith(":ro") for name in CALLOUTS for mount in services[name]["volumes"])


def test_services_run_with_nothing_they_do_not_need(compose: dict[str, Any]):
    for service in compose["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.search(r"^USER remit$", (ROOT / "Dockerfile").read_text(), re.M)


def test_what_is_prepared_is_a_configuration_for_all(tmp_path: Path):
    states, nats = prepare(tmp_path)
    for state in states:
        bus, traces = load(str(state)).config.bus, load(str(state)).config.traces
        assert (traces.endpoint, traces.ui) == ("http://jaeger:4318", "http://127.0.0.1:16686")
        assert (bus.url, bus.replicas, bus.callout) == (
            "nats://nats-1:4222,nats://nats-2:4222,nats://nats-3:4222", 3, "process",
        )  # fmt: skip
    for node in NODES:
        # The server's own check of its configuration; the store's place exists in the image only.
        text = (nats / f"{node}.conf").read_text()
        local = tmp_path / f"{node}.conf"
        local.write_text(text.replace("/var/lib/nats", str(tmp_path / "store")))
        done = subprocess.run([find_binary(), "-t", "-c", local], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "/var/lib/nats" in text and f'"{node}.cluster"' in text


def test_jaeger_starts_on_its_configuration_and_keeps_what_it_has_in_its_folder(tmp_path: Path):
    binary = cached_jaeger()
    if binary is None:
        pytest.skip("no Jaeger was built on this machine: make jaeger")
    ports = [str(port) for port in free_ports(4)]
    names = ("JAEGER_HEALTH", "JAEGER_QUERY", "JAEGER_QUERY_GRPC", "JAEGER_OTLP")
    at = {name: f"127.0.0.1:{port}" for name, port in zip(names, ports, strict=True)}
    environment = {**os.environ, **at, "JAEGER_STORE": str(tmp_path / "store")}
    process = subprocess.Popen(
        [binary, "--config", ROOT / "deploy" / "jaeger.yaml"], env=environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 30
        while not _healthy(f"http://{at['JAEGER_HEALTH']}/status"):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        assert _healthy(f"http://{at['JAEGER_QUERY']}/api/v3/services")
        assert list((tmp_path / "store" / "keys").iterdir())
    finally:
        process.terminate()
        process.wait()


def _healthy(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def test_the_brokers_have_the_same_keys_and_operators_of_their_own(tmp_path: Path):
    states, _ = prepare(tmp_path)
    first, second = map(secrets_of, states)
    assert first.pop("local.token") != second.pop("local.token")
    assert first == second and len(first) >= 8


def test_the_servers_configurations_hold_no_secret(tmp_path: Path):
    states, nats = prepare(tmp_path)
    text = b"".join((nats / f"{node}.conf").read_bytes() for node in NODES)
    assert secrets_of(states[0])
    assert not [name for state in states for name, secret in secrets_of(state).items() if secret.strip() in text]


def test_preparing_again_keeps_keys_and_configuration(tmp_path: Path):
    states, nats = prepare(tmp_path)
    for state in states:
        (state / "remit.toml").write_text((state / "remit.toml").read_text() + "\n# mine\n")

    def all_of_it() -> list[Any]:
        return [
            [(secrets_of(state), (state / "remit.toml").read_text()) for state in states],
            [(nats / f"{node}.conf").read_text() for node in NODES],
        ]

    before = all_of_it()
    prepare(tmp_path)
    assert all_of_it() == before


def test_docker_compose_accepts_the_file():
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker compose is not installed")
    environment = {**os.environ, "COMPOSE_FILE": str(ROOT / "compose.yaml")}
    done = subprocess.run(
        [docker, "compose", "config", "--quiet"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
