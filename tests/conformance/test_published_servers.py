"""Servers as they are published, used through Remit by clients of two languages and two generations of the protocol."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from remit_broker.edges.attach.source import source
from tests.support.mcp_client import Front, front_of
from tests.support.npm import installed
from tests.support.pypi import installed as installed_from_pypi

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]
PUBLISHED = Path(__file__).parents[1] / "support" / "published"
PYPI = ("mcp-server-time==2026.10.19", "mcp-server-fetch==2026.10.24")
GENERATIONS = ("2025-11-25", "2026-07-28")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A web page of this machine."""
    folder = tmp_path_factory.mktemp("web")
    (folder / "index.html").write_text("<html><body><p>a page of this machine</p></body></html>", encoding="utf-8")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/index.html"
    server.shutdown()


@pytest.fixture(scope="module")
def modules() -> Path:
    return installed(PUBLISHED, "the published servers and the TypeScript client are packages of npm")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file, which is a repository with a commit."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "note.txt").write_text("what the file says", encoding="utf-8")
    own = {
        **os.environ,
        **{f"GIT_{who}_{what}": "x@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }
    for words in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "the only commit")):
        subprocess.run(["git", *words], cwd=folder, env=own, check=True)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(tmp_path_factory: pytest.TempPathFactory, modules: Path, work: Path) -> AsyncIterator[Front]:
    found = installed_from_pypi(PYPI, "two of the published servers are packages of PyPI")
    node, bins = str(shutil.which("node")), modules / "node_modules" / "@modelcontextprotocol"
    python = {"PYTHONPATH": str(found)}
    servers: dict[str, tuple[list[str], dict[str, str]]] = {
        "everything": ([node, str(bins / "server-everything/dist/index.js")], {}),
        "filesystem": ([node, str(bins / "server-filesystem/dist/index.js"), str(work)], {}),
        "memory": (
            [node, str(bins / "server-memory/dist/index.js")],
            {"MEMORY_FILE_PATH": str(work.parent / "memory.json")},
        ),
        "git": ([str(Path(sys.executable).with_name("mcp-server-git")), "--repository", str(work)], {}),
        "time": ([sys.executable, "-m", "mcp_server_time"], python),
        "fetch": ([sys.executable, "-m", "mcp_server_fetch", "--ignore-robots-txt", "--allow-private-ips"], python),
    }
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(front_of(tmp_path_factory.mktemp("front"), servers=()))
        for name, (command, env) in servers.items():
            await running.attach(name, source(command, env=env), stack)
        yield running


def calls(work: Path, page: str) -> list[tuple[dict[str, Any], str]]:
    """A call of each server, and what is in its answer."""
    return [
        ({"name": "everything__echo", "arguments": {"message": "hello"}}, "hello"),
        ({"name": "filesystem__read_text_file", "arguments": {"path": str(work / "note.txt")}}, "what the file says"),
        ({"name": "memory__read_graph", "arguments": {}}, "entities"),
        ({"name": "git__git_log", "arguments": {"repo_path": str(work)}}, "the only commit"),
        ({"name": "time__get_current_time", "arguments": {"timezone": "UTC"}}, "UTC"),
        ({"name": "fetch__fetch", "arguments": {"url": page}}, "a page of this machine"),
    ]


@pytest.mark.parametrize("generation", GENERATIONS)
async def test_published_servers_are_used_by_a_client_in_python(
    front: Front, work: Path, page: str, generation: str
) -> None:
    mode = "legacy" if generation == "2025-11-25" else generation
    async with front.client("/mcp", mode=mode) as client:
        assert client.protocol_version == generation
        names = {tool.name for tool in (await client.list_tools()).tools}
        for call, said in calls(work, page):
            assert call["name"] in names
            answer = await client.call_tool(call["name"], call["arguments"])
            assert said in str(answer.content) and not answer.is_error, (call, answer)


@pytest.mark.parametrize("generation", GENERATIONS)
async def test_published_servers_are_used_by_a_client_in_typescript(
    front: Front, modules: Path, work: Path, page: str, generation: str
) -> None:
    # Beside its modules, since Node looks for those from where a script is.
    script = modules / f"drive-{os.getpid()}.mjs"
    shutil.copy(PUBLISHED / "drive.mjs", script)
    wanted = calls(work, page)
    try:
        process = await asyncio.create_subprocess_exec(
            "node", str(script), generation, f"{front.url}/mcp", front.token,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate(json.dumps([call for call, _ in wanted]).encode())
    finally:
        with contextlib.suppress(OSError):
            script.unlink()
    assert process.returncode == 0, err.decode()
    seen = json.loads(out)
    for (call, said), answer in zip(wanted, seen["answers"], strict=True):
        assert call["name"] in seen["tools"]
        assert said in str(answer["content"]) and not answer.get("isError"), (call, answer)


async def test_a_published_server_works_in_the_background_for_a_client_in_typescript(
    front: Front, modules: Path
) -> None:
    script = modules / f"drive-task-{os.getpid()}.mjs"
    shutil.copy(PUBLISHED / "drive-task.mjs", script)
    words = ("simulate-research-query", json.dumps({"topic": "python", "ambiguous": True}))
    try:
        process = await asyncio.create_subprocess_exec(
            "node", str(script), f"{front.url}/mcp/everything", front.token, *words,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
    finally:
        with contextlib.suppress(OSError):
            script.unlink()
    assert process.returncode == 0, err.decode()
    seen = json.loads(out)
    assert seen["states"][0] == "taskCreated" and seen["states"][-1] == "result", seen
    assert "clarify" in seen["asked"] and "python (technical)" in seen["text"]
