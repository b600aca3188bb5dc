"""One scan, from a command or a URL to its report."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final

import httpx
import msgspec

from remit_broker.core.scan.abilities import templates
from remit_broker.core.scan.definitions import Detect, Usable, look_at_tools, many, texts
from remit_broker.core.scan.finding import Finding, Report, quoted, sorted_findings
from remit_broker.core.scan.surface import Talk, judged
from remit_broker.edges.attach.server_log import ServerLog
from remit_broker.edges.attach.source import HttpSource, Source, StdioSource
from remit_broker.edges.scan.http import HttpWire
from remit_broker.edges.scan.inbox import Broken
from remit_broker.edges.scan.stdio import started
from remit_broker.edges.scan.surface import Foreign, Surface
from remit_broker.edges.scan.talk import converse
from remit_schemas.canonical import canonical, digest

SECONDS: Final = 60.0
"""For a whole scan; what was found until then is reported."""
EACH: Final = 50
"""Findings of one rule that are told."""


@dataclass(frozen=True)
class Tools:
    """What texts and schemas are looked at with."""

    detect: Detect
    usable: Usable


async def scan(
    source: Source, tools: Tools, now: Callable[[], str], *, token: str | None = None, ca: str | None = None,
    foreign: Foreign | None = None, seconds: float = SECONDS,
) -> Report:  # fmt: skip
    """Look at the server that ``source`` names. ``token`` goes to a URL as a bearer; ``ca`` is a file of certificates to trust;
    ``foreign`` fetches the metadata of authorization servers elsewhere, which without it is not looked at.

    Raises ``SourceError`` where a command cannot be run; everything else that goes wrong is a finding.
    """
    began, at = asyncio.get_running_loop().time(), now()
    talk, found = Talk(), list[Finding]()
    contained = ""
    try:
        async with asyncio.timeout(seconds):
            if isinstance(source, HttpSource):
                await _at(source, talk, found, (token, ca, foreign))
            else:
                contained = await _here(source, talk)
    except TimeoutError:
        talk.broke("protocol.silent", "high", f"the scan was ended after {seconds:g} s")
    found += judged(talk)
    found += many(_defined(talk, tools), EACH)
    ordered, beyond = sorted_findings(found)
    return Report(
        target=quoted(source), transport="http" if isinstance(source, HttpSource) else "stdio", at=at,
        seconds=round(asyncio.get_running_loop().time() - began, 2), contained=contained,
        server=_server(talk),
        capabilities=tuple(sorted(quoted(name) for name in talk.capabilities))[:50],
        tools=tuple(quoted(tool.get("name")) for tool in talk.tools), resources=len(talk.resources), prompts=len(talk.prompts),
        pin=_pin(talk.tools), findings=ordered, left_out=beyond,
    )  # fmt: skip


async def _here(source: StdioSource, talk: Talk) -> str:
    log = ServerLog(None)
    async with started(source, talk, log) as wire:
        await converse(wire, talk)
    if not talk.reached and (line := log.last_line()):
        talk.broke("protocol.silent", "info", "its last words on standard error", line)
    return source.contained


async def _at(
    source: HttpSource, talk: Talk, found: list[Finding], given: tuple[str | None, str | None, Foreign | None]
) -> None:
    token, ca, foreign = given
    verify = ssl.create_default_context(cafile=ca) if ca else True
    async with AsyncExitStack() as stack:
        # Neither the environment's proxies nor its netrc: what is looked at is this server, by this way.
        client = await stack.enter_async_context(
            httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=15.0, verify=verify)
        )
        surface = Surface(client, source.url, token, foreign)
        try:
            await surface.look()
        except Broken as over:
            talk.broke("protocol.silent", "critical", str(over))
            return
        finally:
            found += surface.found
        if surface.open or token:
            headers: Mapping[str, str] = {"authorization": f"Bearer {token}"} if token else {}
            await converse(HttpWire(client, surface.url, talk, headers), talk)
        else:
            found.append(
                Finding(
                    rule="auth.closed",
                    severity="info",
                    where=quoted(surface.url),
                    message="its tools are behind a token, and were not looked at",
                    ask="scan it with --token-file FILE",
                )
            )


def _server(talk: Talk) -> dict[str, str]:
    told = talk.server | ({"protocol": talk.protocol} if talk.protocol else {})
    return {key: quoted(value) for key, value in told.items()}


def _defined(talk: Talk, tools: Tools) -> list[Finding]:
    found = list(look_at_tools(talk.tools, tools.detect, tools.usable))
    found += templates(talk.resources)
    found += texts("server/instructions", talk.instructions, tools.detect)
    for kind, items in (("resource", talk.resources), ("prompt", talk.prompts)):
        for item in items:
            found += texts(f"{kind} {quoted(item.get('name'))[:100]}", item, tools.detect)
    return found


def _pin(tools: list[dict[str, Any]]) -> str:
    """One digest over all definitions: the same server scanned later says the same, or something changed."""
    try:
        return (
            digest(canonical(msgspec.to_builtins(sorted(tools, key=lambda tool: str(tool.get("name"))))))
            if tools
            else ""
        )
    except ValueError:
        return ""
