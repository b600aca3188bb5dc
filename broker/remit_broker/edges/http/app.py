"""The ASGI application and the server that runs it inside the broker's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from remit_broker.edges.http.guard import LOOPBACK, LocalOnly, error_response
from remit_schemas.errors import Code, refusal

Probe = Callable[[], Mapping[str, str]]
"""What is wrong, by part; empty when everything is well."""


def application(
    routes: list[Route],
    jwks: Callable[[], dict[str, Any]],
    ready: Probe,
    replicas: Callable[[], Mapping[str, int]],
    hosts: Iterable[str] = (),
    marks: Mapping[str, Any] = MappingProxyType({}),
) -> Starlette:
    """All of the HTTP edge. ``/healthz`` says that the process lives, ``/readyz`` that it would take a hop."""

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(_: Request) -> Response:
        wrong = dict(ready())
        told = {"ready": not wrong, "problems": wrong, "replicas": dict(replicas()), **marks}
        return JSONResponse(told, 503 if wrong else 200)

    async def keys(_: Request) -> Response:
        return JSONResponse(jwks(), headers={"Cache-Control": "public, max-age=300"})

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/.well-known/jwks.json", keys),
            *routes,
        ],
        middleware=[Middleware(LocalOnly, allowed=LOOPBACK | {host.lower() for host in hosts})],
        exception_handlers={HTTPException: _not_there},
    )


async def _not_there(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    no = refusal(Code.UNKNOWN_TARGET, "there is nothing at this address", rule="http.route", ask="see the docs")
    response = error_response(no.body)
    response.status_code = status
    return response


class _Quiet(uvicorn.Server):
    """uvicorn without signal handlers (the broker has its own) that says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


class HttpServer:
    """One listening socket, bound before anything else starts so that a taken port is known at once."""

    @classmethod
    def adopt(cls, descriptor: int) -> HttpServer:
        """On a socket that listens already, which a parent process holds."""
        server = cls.__new__(cls)
        server._take(socket.socket(fileno=descriptor))
        return server

    def __init__(self, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # asyncio turns off Nagle's algorithm only where the protocol is named; left on, every answer takes 40 ms.
        self._socket = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
        except OSError:
            self._socket.close()
            raise
        self._take(self._socket)

    def _take(self, bound: socket.socket) -> None:
        self._socket = bound
        host, port = bound.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if bound.family == socket.AF_INET6 else f"http://{host}:{port}"
        self._server: _Quiet | None = None
        self._task: asyncio.Task[None] | None = None

    def listen(self) -> int:
        """Listen, without anybody who answers yet; the descriptor, for the process that will."""
        self._socket.listen(128)
        return self._socket.fileno()

    async def start(self, app: Starlette) -> None:
        """Serve."""
        self._server = _Quiet(
            uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", server_header=False)
        )
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        waiting = asyncio.ensure_future(self._server.listening.wait())
        await asyncio.wait({waiting, self._task}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()

    async def stop(self) -> None:
        """Stop serving and close the socket."""
        if self._server is not None and self._task is not None:
            self._server.should_exit = True
            await _ended(self._task, 3.0)
        self._socket.close()


async def _ended(task: Awaitable[None], seconds: float) -> None:
    with contextlib.suppress(asyncio.TimeoutError, asyncio.CancelledError):
        async with asyncio.timeout(seconds):
            await task
