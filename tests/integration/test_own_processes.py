"""A process of a started server for each user or task: what one leaves in it, and its credential, is nobody else's."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from remit_broker.adapters.errors import ConfigError
from remit_broker.config import settings
from remit_broker.core.backends import is_variable
from remit_broker.edges.attach.servers_file import ServersFileError, read_servers, write_servers
from remit_broker.edges.attach.source import Sharing, StdioSource, source
from tests.support.attach_fixture import SERVERS, Attached, alive, eventually
from tests.support.mcp_client import Front, front_of

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

SECRET = "sk-own-Zw4-not-for-anybody"


def private(of: Any, **more: Any) -> Any:
    return source([sys.executable, str(SERVERS / "private.py")], sharing=Sharing(of, **more))


class House:
    """A front with servers that give each their own process."""

    def __init__(self, front: Front) -> None:
        self.front, self.logs = front, front.lab.folder
        self.workers: dict[str, Attached] = {}

    async def secret(self, user: str, value: str) -> None:
        told = {"server": "own", "user": user, "value": value}
        answer = await self.front.http.post(
            f"{self.front.url}/api/secrets", json=told, headers={"Authorization": f"Bearer {self.front.token}"}
        )
        assert answer.status_code == 200, answer.text

    async def grant(self, user: str) -> str:
        return (await self.front.lab.grant("caller", "mcp/**", user=user)).grant

    async def call(self, server: str, tool: str, user: str, grant: str = "", **args: Any) -> Any:
        async with self.front.client(f"/mcp/{server}", token=grant or await self.grant(user)) as client:
            return await client.call_tool(tool, args)

    async def mine(self, server: str, user: str, grant: str = "") -> dict[str, Any]:
        answer = await self.call(server, "mine", user, grant)
        assert not answer.is_error, answer.content
        return dict(answer.structured_content)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    tables = {
        "own": {"kind": "secret", "variable": "SERVICE_TOKEN"}, "headed": {"kind": "secret"},
        "shared": {"kind": "secret", "variable": "SERVICE_TOKEN"},
    }  # fmt: skip
    async with AsyncExitStack() as stack:
        front = await stack.enter_async_context(
            front_of(tmp_path_factory.mktemp("house"), {"backends": tables}, servers=())
        )
        house = House(front)
        for name, what in (
            ("own", private("user")), ("plain", private("user")), ("tasks", private("txn")), ("few", private("user", most=1)),
            ("brief", private("user", idle=0.5)), ("headed", private("user")), ("shared", private("server")),
        ):  # fmt: skip
            house.workers[name] = await front.attach(name, what, stack, house.logs / f"{name}.log")
        await front.lab.agent("caller")
        yield house


async def test_each_user_has_a_process_of_their_own(house: House) -> None:
    await house.call("plain", "remember", "ann", text="of ann")
    ann, ben = await house.mine("plain", "ann"), await house.mine("plain", "ben")
    assert (ann["heard"], ben["heard"]) == (["of ann"], [])
    assert ann["pid"] != ben["pid"] == (await house.mine("plain", "ben"))["pid"]
    report = house.workers["plain"].worker.report
    # Whoever lists the tools is nobody in particular: that process is none of theirs.
    assert report.pid not in (ann["pid"], ben["pid"]) and set(report.others) == {ann["pid"], ben["pid"]}


async def test_each_task_has_a_process_of_its_own_where_that_is_wanted(house: House) -> None:
    one, other = await house.grant("ann"), await house.grant("ann")
    first = await house.mine("tasks", "ann", one)
    assert (
        (await house.mine("tasks", "ann", one))["pid"]
        == first["pid"]
        != (await house.mine("tasks", "ann", other))["pid"]
    )


async def test_a_process_of_a_user_has_the_secret_of_that_user(house: House) -> None:
    await house.secret("ann", SECRET)
    await house.secret("ben", "another-secret-of-ben")
    ann, ben = await house.mine("own", "ann"), await house.mine("own", "ben")
    assert ann["token"] == hashlib.sha256(SECRET.encode()).hexdigest() != ben["token"] != ""
    # Another secret is another process: an environment cannot be changed from outside.
    await house.secret("ben", "a-newer-secret-of-ben")
    newer = await house.mine("own", "ben")
    assert newer["token"] == hashlib.sha256(b"a-newer-secret-of-ben").hexdigest() and newer["pid"] != ben["pid"]
    refused = await house.call("own", "mine", "nobody")
    assert refused.is_error and "remit secrets set own --user nobody" in refused.content[0].text


async def test_a_credential_that_a_process_prints_stands_in_no_log(house: House) -> None:
    await house.secret("eve", SECRET)
    await house.mine("own", "eve")
    told = await house.call("own", "tells", "eve")
    assert told.content[0].text == "it is [credential withheld]"
    kept = house.logs / "own.log"
    await eventually(lambda: "[credential withheld]" in kept.read_text())
    assert SECRET not in kept.read_text()


async def test_the_processes_of_a_server_are_bounded(house: House) -> None:
    ann = await house.mine("few", "ann")
    ben = await house.mine("few", "ben")
    assert not alive(ann["pid"]) and alive(ben["pid"])
    work = asyncio.create_task(house.call("few", "slow", "ben", seconds=60))
    pool = house.workers["few"].worker._users
    await eventually(lambda: any(session.in_flight for session in pool.sessions()))
    refused = await house.call("few", "mine", "ann")
    body = refused.meta["dev.remit/error"]
    assert (body["code"], body["rule"], body["effect"]) == ("TARGET_UNAVAILABLE", "attach.processes", "none")
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)


async def test_a_process_that_nobody_uses_ends(house: House) -> None:
    found = await house.mine("brief", "ann")
    await eventually(lambda: not alive(found["pid"]), 60)
    await eventually(lambda: house.workers["brief"].worker.report.others == (), 60)
    assert (await house.mine("brief", "ann"))["pid"] != found["pid"]


async def test_a_process_that_dies_takes_nobody_along(house: House) -> None:
    ann, ben = await house.mine("plain", "ann"), await house.mine("plain", "ben")
    died = await house.call("plain", "die", "ann")
    assert died.is_error
    assert (await house.mine("plain", "ben"))["pid"] == ben["pid"]
    assert (await house.mine("plain", "ann"))["pid"] != ann["pid"]


@pytest.mark.parametrize(("server", "rule"), [("headed", "credentials.http"), ("shared", "credentials.process")])
async def test_a_credential_that_cannot_be_shown_so_is_shown_to_nobody(house: House, server: str, rule: str) -> None:
    answer = await house.front.http.post(
        f"{house.front.url}/api/secrets", json={"server": server, "user": "ann", "value": SECRET},
        headers={"Authorization": f"Bearer {house.front.token}"},
    )  # fmt: skip
    assert answer.status_code == 200
    refused = await house.call(server, "mine", "ann")
    assert refused.meta["dev.remit/error"]["rule"] == rule


@pytest.mark.parametrize(
    "name", ["PATH", "LD_PRELOAD", "PYTHONPATH", "NODE_OPTIONS", "BASH_ENV", "lower", "A B", "GIT_SSH"]
)
async def test_a_variable_that_changes_how_programs_run_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError):
        settings(tmp_path / "remit.toml", {"backends": {"x": {"kind": "secret", "variable": name}}})
    assert not is_variable(name) and is_variable("GITHUB_TOKEN")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('process = "agent"', "server, user or txn"),
        ("processes = 3", 'say process = "user"'),
        ('process = "user"\nprocesses = 0', "from 1 to 1000"),
        ('process = "user"\nidle = "long"', "number of seconds"),
    ],
)
async def test_what_is_no_way_to_share_a_server_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "servers.toml"
    path.write_text(f'[servers.x]\ncommand = ["true"]\n{text}\n')
    path.chmod(0o600)
    with pytest.raises(ServersFileError, match=said):
        read_servers(path)


async def test_how_a_server_is_shared_is_kept_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "servers.toml"
    path.write_text('[servers.x]\ncommand = ["true"]\nprocess = "user"\nprocesses = 4\nidle = 60\n')
    path.chmod(0o600)
    entries = read_servers(path)
    write_servers(path, entries)
    again = read_servers(path)["x"].source
    assert (
        isinstance(again, StdioSource) and again.sharing == Sharing("user", 4, 60.0) and read_servers(path) == entries
    )
