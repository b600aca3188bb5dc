"""Another gateway to measure beside Remit in the same run: IBM's ContextForge, installed by whoever measures.

``python3 -m venv peer && peer/bin/pip install mcp-contextforge-gateway``. It runs with its rate limits off, which would end the
measurement, and otherwise as it comes: with authentication, one process, SQLite.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

_STARTS: int = 120


@asynccontextmanager
async def gateway(program: Path, folder: Path, port: int, server: str) -> AsyncIterator[tuple[str, str, str, int]]:
    """Start ``program`` with the MCP server at the URL ``server``: the URL for clients, a token, the tool's name, the process.

    Raises RuntimeError when it does not start, or has no tool of that server.
    """
    folder.mkdir()
    password = f"Aa1-{secrets.token_hex(12)}"
    environment = {
        "PATH": os.environ.get("PATH", ""), "HOME": str(folder), "DATABASE_URL": f"sqlite:///{folder}/gateway.db",
        "JWT_SECRET_KEY": secrets.token_hex(32), "AUTH_ENCRYPTION_SECRET": secrets.token_hex(32),
        "PLATFORM_ADMIN_PASSWORD": password, "PASSWORD_CHANGE_ENFORCEMENT_ENABLED": "false",
        "SSRF_ALLOW_LOCALHOST": "true", "SSRF_ALLOW_PRIVATE_NETWORKS": "true",
        "RATE_LIMITING_ENABLED": "false", "TOOL_RATE_LIMIT": "1000", "LOG_LEVEL": "ERROR",
    }  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            str(program),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
        )
    base = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient(base_url=base, trust_env=False, timeout=60) as http:
            await _until_up(http, process, folder / "log")
            login = {"email": "admin@example.com", "password": password}
            token = (await http.post("/auth/login", json=login)).raise_for_status().json()["access_token"]
            http.headers["Authorization"] = f"Bearer {token}"
            peer = {"name": "bench", "url": server, "transport": "STREAMABLEHTTP"}
            (await http.post("/gateways", json=peer)).raise_for_status()
            told = (await http.get("/tools")).raise_for_status().json()
        names = [tool["name"] for tool in (told if isinstance(told, list) else told["tools"])]
        if "bench-echo" not in names:
            raise RuntimeError(f"the gateway knows only {names}")
        yield f"{base}/mcp/", token, "bench-echo", process.pid
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def _until_up(http: httpx.AsyncClient, process: asyncio.subprocess.Process, log: Path) -> None:
    for _ in range(_STARTS):
        if process.returncode is not None:
            break
        try:
            if (await http.get("/health")).is_success:
                return
        except httpx.HTTPError:
            pass
        await asyncio.sleep(1)
    raise RuntimeError(f"the gateway did not start: {log.read_text(encoding='utf-8', errors='replace')[-500:]}")
