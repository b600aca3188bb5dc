"""`compose.yaml`: what it promises can be read from it, and what its first step writes is a NATS configuration that works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from remit_broker.adapters.nats_server import find_binary
from remit_broker.config import load

ROOT = Path(__file__).resolve().parents[2]
LONG_RUNNING = ("nats", "broker")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    parsed = yaml.safe_load((ROOT / "compose.yaml").read_text())
    assert isinstance(parsed, dict)
    return parsed


def prepare(folder: Path) -> tuple[Path, Path]:
    state, config = folder / "state", folder / "nats.conf"
    state.mkdir(mode=0o700, exist_ok=True)
    command = [sys.executable, ROOT / "deploy" / "prepare.py", state, config, "nats://nats:4222"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return state, config


def secrets_of(state: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (state / "data" / "keys").iterdir()}


def test_every_long_running_service_has_a_health_check_and_restarts(compose: dict[str, Any]):
    for name in LONG_RUNNING:
        assert compose["services"][name]["healthcheck"]["test"]
        assert compose["services"][name]["restart"] == "unless-stopped"


def test_the_broker_waits_for_a_healthy_server_and_the_server_for_its_configuration(compose: dict[str, Any]):
    assert compose["services"]["broker"]["depends_on"] == {"nats": {"condition": "service_healthy"}}
    assert compose["services"]["nats"]["depends_on"] == {"prepare": {"condition": "service_completed_successfully"}}


def test_images_are_pinned(compose: dict[str, Any]):
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version is not None
    assert {service["image"] for service in compose["services"].values()} == {f"remit-broker:{version[1]}"}
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


def test_the_nats_service_cannot_read_the_brokers_keys(compose: dict[str, Any]):
    assert all(not mount.startswith("state:") for mount in compose["services"]["nats"]["volumes"])


def test_services_run_with_nothing_they_do_not_need(compose: dict[str, Any]):
    for service in compose["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.search(r"^USER remit$", (ROOT / "Dockerfile").read_text(), re.M)


def test_what_is_prepared_is_a_configuration_for_both(tmp_path: Path):
    state, config = prepare(tmp_path)
    assert load(str(state)).config.bus.url == "nats://nats:4222"
    # The server's own check of its configuration; the store's place exists in the image only.
    local = tmp_path / "local.conf"
    local.write_text(config.read_text().replace("/var/lib/nats", str(tmp_path / "store")))
    done = subprocess.run([find_binary(), "-t", "-c", local], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "/var/lib/nats" in config.read_text()


def test_the_servers_configuration_holds_no_secret(tmp_path: Path):
    state, config = prepare(tmp_path)
    text = config.read_bytes()
    assert secrets_of(state)
    assert not [name for name, secret in secrets_of(state).items() if secret.strip() in text]


def test_preparing_again_keeps_keys_and_configuration(tmp_path: Path):
    state, config = prepare(tmp_path)
    (state / "remit.toml").write_text((state / "remit.toml").read_text() + "\n# mine\n")
    before = secrets_of(state), (state / "remit.toml").read_text(), config.read_text()
    prepare(tmp_path)
    assert (secrets_of(state), (state / "remit.toml").read_text(), config.read_text()) == before


def test_docker_compose_accepts_the_file():
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker compose is not installed")
    environment = {**os.environ, "COMPOSE_FILE": str(ROOT / "compose.yaml")}
    done = subprocess.run(
        [docker, "compose", "config", "--quiet"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
