"""A NATS server that is not the broker's own: what `remit init --nats-config` prints works, and what is wrong is said."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import nats
import pytest

from remit_broker.adapters import leash
from remit_broker.adapters.errors import ConfigError, ServiceError
from remit_broker.adapters.key_bundle import export, restore
from remit_broker.adapters.keyfiles import KeyFiles
from remit_broker.adapters.nats_checks import probe, version_of
from remit_broker.adapters.nats_nodes import node_config, parse_nodes
from remit_broker.adapters.nats_server import find_binary
from remit_broker.core import callout_probe, nkey
from remit_broker.testing import running_broker
from tests.support.nats import running_bus
from tests.support.raw import arena_on, tool

Edit = Callable[[str], str]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def serving(folder: Path, edit: Edit = lambda text: text, tenants: tuple[str, ...] = ()) -> AsyncIterator[str]:
    """A server with what `remit init --nats-config` prints for ``folder``, changed by ``edit``; its URL."""
    nodes = parse_nodes(f"127.0.0.1:{free_port()}")
    keys = KeyFiles.open(folder / "data", create=True)
    text = edit(node_config(keys, nodes, 1, str(folder / "store"), "always", tenants))
    config = folder / "nats.conf"
    config.write_text(text)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), "--", str(find_binary()), "-c", str(config),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(15):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", nodes[0].port)
                    writer.close()
                    break
                await asyncio.sleep(0.02)
        yield nodes[0].url
    finally:
        process.kill()
        await process.wait()


def drop(pattern: str, put: str = "") -> Edit:
    """An edit that must change something."""

    def edit(text: str) -> str:
        changed = re.sub(pattern, put, text, flags=re.DOTALL)
        assert changed != text
        return changed

    return edit


async def test_tenants_are_on_a_server_that_was_printed_with_them(tmp_path: Path):
    async with serving(tmp_path, tenants=("acme",)) as url:
        wanted: dict[str, Any] = {"bus": {"url": url}, "tenants": {"acme": {}}}
        async with running_broker(tmp_path, wanted) as first, arena_on(first) as arena:
            alice = await arena.agent("alice", tenant="acme")
            files = await arena.agent("files", "mcp", tenant="acme")
            await files.serve(tool("read"))
            root = await first.grant("alice", "mcp/**", tenant="acme")
            call = asyncio.create_task(alice.result("mcp/files/read", root.txn, root.grant))
            await (await files.took(root.txn)).done("here")
            assert (await call).value == "here"


async def test_a_tenant_that_the_server_does_not_have_is_said(tmp_path: Path):
    async with serving(tmp_path) as url:
        with pytest.raises(ConfigError) as no:
            async with running_broker(tmp_path, {"bus": {"url": url}, "tenants": {"acme": {}}}):
                pass
    assert "bus-acme" in no.value.message and "--nats-config" in no.value.ask


async def test_a_broker_runs_on_what_is_printed(tmp_path: Path):
    async with serving(tmp_path) as url, running_broker(tmp_path, {"bus": {"url": url}}) as lab:
        await lab.agent("planner")
        opened = await lab.grant("planner", "mcp/**")
        assert (await lab.records(opened.txn))[0]["kind"] == "txn.opened"


OTHER_ISSUER = nkey.public_of("A", nkey.seed_text("A", b"1" * 32))
OTHER_CURVE = nkey.public_of("X", nkey.seed_text("X", b"1" * 32))


@pytest.mark.parametrize(
    ("edit", "error", "said"),
    [
        (drop(r'"jetstream": "enabled",'), ConfigError, "JetStream is not on for the account CORE"),
        (drop(r"\njetstream: \{.*?\n\}"), ServiceError, "JetStream does not answer: it is off"),
        (drop(r"max_payload: 1048576", "max_payload: 65536"), ConfigError, "messages of 65536 bytes"),
        (drop(r'"BUS"', '"AGENTS"'), ConfigError, "bus user is in the account AGENTS; it must be in BUS"),
        (drop(r"system_account: \"SYS\""), ConfigError, "system account"),
        (drop(r'"issuer": "A[^"]+"', f'"issuer": "{OTHER_ISSUER}"'), ConfigError, "auth_callout.issuer"),
        (drop(r'"xkey": "X[^"]+"', f'"xkey": "{OTHER_CURVE}"'), ConfigError, "auth_callout.xkey"),
        (drop(r',\s*"auth_callout": \{.*?\n  \}'), ConfigError, "does not ask the callout"),
    ],
    ids=["jetstream-account", "jetstream", "payload", "account", "system", "issuer", "xkey", "callout"],
)  # fmt: skip
async def test_a_server_that_is_set_up_otherwise_is_diagnosed(
    tmp_path: Path, edit: Edit, error: type[ConfigError], said: str
):
    async with serving(tmp_path, edit) as url:
        with pytest.raises(ConfigError) as problem:
            async with running_broker(tmp_path, {"bus": {"url": url}}):
                pass
    assert type(problem.value) is error
    assert said in f"{problem.value.message}; {problem.value.ask}" and problem.value.ask


async def test_more_replicas_than_servers_are_refused(tmp_path: Path):
    async with serving(tmp_path) as url:
        with pytest.raises(ConfigError, match=r"bus\.replicas is 3, but JetStream has 1 server"):
            async with running_broker(tmp_path, {"bus": {"url": url, "replicas": 3}}):
                pass


async def test_a_server_made_for_other_keys_is_named_and_one_that_is_away_too(tmp_path: Path):
    mine, other = tmp_path / "mine", tmp_path / "other"
    for folder in (mine, other):
        folder.mkdir()
    async with serving(other) as url:
        with pytest.raises(ConfigError, match=r"refuses the broker's core user.*remit keys import") as refused:
            async with running_broker(mine, {"bus": {"url": url}}):
                pass
    assert not isinstance(refused.value, ServiceError)
    with pytest.raises(ServiceError, match="cannot connect to"):
        async with running_broker(mine, {"bus": {"url": url}}):
            pass


@pytest.mark.parametrize(("text", "old"), [("2.14.3", True), ("2.14.4-RC.1", False), ("2.15.1", False), ("x", True)])
def test_versions_are_compared_as_numbers(text: str, old: bool):
    from remit_broker.adapters.jetstream import OLDEST_SERVER

    assert (version_of(text) < OLDEST_SERVER) is old


async def test_a_second_broker_with_other_keys_does_not_start(tmp_path: Path):
    """The NATS keys alone let it in; grants and digests of the two would differ without anybody noticing."""
    first, second, third = tmp_path / "first", tmp_path / "second", tmp_path / "third"
    for folder in (first, second, third):
        folder.mkdir()
    async with serving(first) as url:
        bus = {"bus": {"url": url}}
        async with running_broker(first, bus):
            export(first / "data", tmp_path / "keys.json")
            restore(second / "data", tmp_path / "keys.json")
            async with running_broker(second, bus):
                pass
            restore(third / "data", tmp_path / "keys.json")
            for path in (third / "data" / "keys").glob("grant-*.jwk"):
                path.unlink()
            own = KeyFiles.open(tmp_path / "own", create=True).folder / "keys"
            for path in (*own.glob("grant-*.jwk"), own / "digest.key"):
                (third / "data" / "keys" / path.name).write_bytes(path.read_bytes())
                (third / "data" / "keys" / path.name).chmod(0o600)
            with pytest.raises(ConfigError, match=r"digest.key is another one; the key .* is missing"):
                async with running_broker(third, bus):
                    pass
            with pytest.raises(
                ConfigError, match=r"issuer is http://127\.0\.0\.1:1, the others have http://127\.0\.0\.1:7480"
            ):
                async with running_broker(second, {**bus, "issuer": "http://127.0.0.1:1"}):
                    pass


async def test_the_probe_may_do_nothing(tmp_path: Path):
    async with running_bus(tmp_path, {"alice": "agent"}) as bus:
        assert await probe(bus.url, bus.keys) is None
        said: list[str] = []

        async def error(problem: Exception) -> None:
            said.append(str(problem))

        nc = await nats.connect(
            bus.url, nkeys_seed_str=callout_probe.seed_of(bus.keys.seed("issuer")), name="x" * 24, error_cb=error,
            allow_reconnect=False,
        )  # fmt: skip
        await nc.publish("req.alice.new.remit.attach.put", b"{}")
        await nc.publish("anything", b"")
        await nc.subscribe("svc.agent.alice.>", queue="alice")
        await nc.subscribe(nc.new_inbox())
        await nc.flush()
        await nc.flush()
        await nc.close()
        assert len([text for text in said if "permissions violation" in text.lower()]) == 4, said


async def test_the_probe_of_other_keys_is_nobody(tmp_path: Path):
    async with running_bus(tmp_path, {"alice": "agent"}) as bus:
        other = KeyFiles.open(tmp_path / "other", create=True)
        assert "authorization" in (await probe(bus.url, other) or "").lower()


def test_keys_are_exported_once_and_never_replaced(tmp_path: Path):
    KeyFiles.open(tmp_path / "a", create=True)
    export(tmp_path / "a", tmp_path / "keys.json")
    assert (tmp_path / "keys.json").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="exists"):
        export(tmp_path / "a", tmp_path / "keys.json")
    restore(tmp_path / "b", tmp_path / "keys.json")
    first, second = KeyFiles.open(tmp_path / "a"), KeyFiles.open(tmp_path / "b")
    assert (first.jwks(), first.digest_key, first.seed("issuer")) == (
        second.jwks(),
        second.digest_key,
        second.seed("issuer"),
    )
    assert first.local_token != second.local_token, "an operator of one machine is none of the other"
    with pytest.raises(ConfigError, match="never replaced"):
        restore(tmp_path / "b", tmp_path / "keys.json")


@pytest.mark.parametrize(
    "damage", ["{}", "x", '{"v": 1, "keys": {"../x": ""}}', '{"v": 1, "keys": {"digest.key": "x"}}']
)
def test_a_damaged_bundle_of_keys_leaves_nothing(tmp_path: Path, damage: str):
    file = tmp_path / "keys.json"
    file.write_text(damage)
    file.chmod(0o600)
    with pytest.raises(ConfigError):
        restore(tmp_path / "b", file)
    assert not (tmp_path / "b").exists() or not list((tmp_path / "b").iterdir())


def test_what_is_printed_for_a_cluster_is_what_each_node_is_given(tmp_path: Path):
    remit = [sys.executable, "-m", "remit_broker.cli.main", "init", str(tmp_path / "r"), "--nats-config"]
    nodes = "127.0.0.1:4222:6222,127.0.0.1:4223:6223,127.0.0.1:4224:6224"
    texts = []
    for node in "123":
        done = subprocess.run([*remit, "--cluster", nodes, "--node", node], capture_output=True, text=True, check=True)
        config = tmp_path / f"n{node}.conf"
        config.write_text(done.stdout)
        checked = subprocess.run([find_binary(), "-t", "-c", config], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
        texts.append(done.stdout)
    assert all("replicas = 3" in text and "nats://127.0.0.1:6224" in text for text in texts)
    assert len(set(texts)) == 3
    bad = subprocess.run([*remit, "--cluster", "a:b"], capture_output=True, text=True, check=False)
    assert bad.returncode == 2 and "is no node" in bad.stderr
