"""A Jaeger process on free ports of the loopback, its traces in memory."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import yaml

SECONDS = 30.0


class Jaeger(NamedTuple):
    """Where it takes spans, and where it is asked for them."""

    otlp: str
    query: str


def free_ports(count: int) -> list[int]:
    """Different ports of the loopback that nobody has now."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _config(otlp: int, query: int, grpc: int) -> str:
    return yaml.safe_dump(
        {
            "service": {
                "extensions": ["jaeger_storage", "jaeger_query"],
                "pipelines": {
                    "traces": {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]},
                },
                "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "warn"}},
            },
            "extensions": {
                "jaeger_storage": {"backends": {"some": {"memory": {"max_traces": 10_000}}}},
                "jaeger_query": {
                    "storage": {"traces": "some"},
                    "http": {"endpoint": f"127.0.0.1:{query}"},
                    "grpc": {"endpoint": f"127.0.0.1:{grpc}"},
                },
            },
            "receivers": {"otlp": {"protocols": {"http": {"endpoint": f"127.0.0.1:{otlp}"}}}},
            "exporters": {"jaeger_storage_exporter": {"trace_storage": "some"}},
        }
    )


@asynccontextmanager
async def running_jaeger(binary: Path, folder: Path) -> AsyncIterator[Jaeger]:
    """Started, ready, and ended at the end."""
    otlp, query, grpc = free_ports(3)
    config = folder / "jaeger.yaml"
    config.write_text(_config(otlp, query, grpc), encoding="utf-8")
    log = (folder / "jaeger.log").open("wb")
    process = await asyncio.create_subprocess_exec(str(binary), "--config", str(config), stdout=log, stderr=log)
    try:
        async with httpx.AsyncClient(trust_env=False) as api, asyncio.timeout(SECONDS):
            while True:
                assert process.returncode is None, (folder / "jaeger.log").read_text()
                try:
                    if (await api.get(f"http://127.0.0.1:{query}/api/v3/services")).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.1)
        yield Jaeger(f"http://127.0.0.1:{otlp}", f"http://127.0.0.1:{query}")
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
        log.close()
