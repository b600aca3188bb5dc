"""The stdio transport of MCP (2025-11-25, Transports), as a child process that is contained and ended as a whole.

The ``mcp`` library has one of its own; this one differs where a broker must: the environment is an allow-list, standard error
is captured, a line has a largest size, and the whole process group ends with the session, also when the server left politely
and only its own children stayed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import anyio
import mcp_types as types
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client._transport import TransportStreams
from mcp.shared.message import SessionMessage

from remit_broker.edges.attach.child import MAX_LINE, Child, stop
from remit_broker.edges.attach.lenient import readable
from remit_broker.edges.attach.server_log import ServerLog

_CHUNK: Final = 64 * 1024

_Inbound = MemoryObjectSendStream[SessionMessage | Exception]
_Outbound = MemoryObjectReceiveStream[SessionMessage]


@asynccontextmanager
async def stdio(child: Child, log: ServerLog) -> AsyncGenerator[TransportStreams, None]:
    """The message streams of a started server. Leaving ends its whole process group."""
    read_in, read_out = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    write_in, write_out = anyio.create_memory_object_stream[SessionMessage](0)
    tasks = [
        asyncio.create_task(_read(child, read_in)),
        asyncio.create_task(_write(child, write_out)),
        asyncio.create_task(_keep_log(child, log)),
    ]
    try:
        yield read_out, write_in
    finally:
        child.end("it was stopped")
        # Shielded: a cancelled owner must not leave processes behind.
        ending = asyncio.ensure_future(_finish(child, tasks))
        with anyio.CancelScope(shield=True):
            await asyncio.shield(ending)
        for stream in (read_in, read_out, write_in, write_out):
            stream.close()


async def _finish(child: Child, tasks: list[asyncio.Task[None]]) -> None:
    await stop(child)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _read(child: Child, out: _Inbound) -> None:
    """Every line as a message; a line that is none is passed on as the exception it raised, as the library expects."""
    assert child.process.stdout is not None  # noqa: S101 - spawned with pipes
    with out:
        try:
            async for line in child.process.stdout:
                if line.strip():
                    await out.send(_message(line))
            child.end("it closed its output")
        except ValueError:
            child.end(f"it sent a line of more than {MAX_LINE} bytes")
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            child.end("its output broke")


def _message(line: bytes) -> SessionMessage | Exception:
    try:
        return SessionMessage(types.jsonrpc_message_adapter.validate_json(line, by_name=False))
    except (ValueError, RecursionError):
        pass
    try:
        return SessionMessage(types.jsonrpc_message_adapter.validate_json(readable(line), by_name=False))
    except (ValueError, RecursionError):
        # Without the library's log line: that would put what the server said into our own log.
        return ValueError("a line that is no JSON-RPC message")


async def _write(child: Child, queue: _Outbound) -> None:
    assert child.process.stdin is not None  # noqa: S101 - spawned with pipes
    with queue:
        try:
            async for item in queue:
                data = item.message.model_dump_json(by_alias=True, exclude_unset=True)
                child.process.stdin.write(data.encode() + b"\n")
                await child.process.stdin.drain()
        except OSError:
            child.end("it closed its input")


async def _keep_log(child: Child, log: ServerLog) -> None:
    assert child.process.stderr is not None  # noqa: S101 - spawned with pipes
    while data := await child.process.stderr.read(_CHUNK):
        log.write(data)
