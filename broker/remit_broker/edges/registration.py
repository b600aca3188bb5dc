"""What a server says of what it serves, looked at before it is registered: what nobody has accepted may have to wait."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from remit_broker.core.pins import digest_of, said_by_detectors, suspicions
from remit_broker.core.registry import Attachment, Definition
from remit_broker.core.shown import shown, suspicious
from remit_broker.ports import Detectors


class Pinned(Protocol):
    """The registry, as far as a registration needs it."""

    def accepted(self, name: str) -> Mapping[str, str]:
        """The digests that are accepted of a server, by name."""

    def offered(self, but: str) -> dict[str, list[str]]:
        """The tools of every server except one, by server."""

    def shown(self, but: str) -> dict[str, list[str]]:
        """The names of what every server except one shows beside its tools, by server."""

    async def attach(self, attachment: Attachment) -> None:
        """Take note of what a principal serves."""


class Registration:
    """Attaches through the detectors and the rules for names."""

    def __init__(self, registry: Pinned, detectors: Detectors) -> None:
        self._registry, self._detectors = registry, detectors

    async def attach(self, attachment: Attachment) -> None:
        """Take note of what a principal serves; of an MCP server, hold back what has to be looked at by a person first."""
        if attachment.kind == "mcp":
            attachment = msgspec.structs.replace(attachment, held=await self._held(attachment))
        await self._registry.attach(attachment)

    async def _held(self, attachment: Attachment) -> dict[str, str]:
        accepted = self._registry.accepted(attachment.name)
        # Operations that begin with $ are ours, the same for every server.
        theirs = [d for d in attachment.definitions if not d.op.startswith("$")]
        new = [d for d in theirs if accepted.get(d.op) != d.digest]
        shows = [(key, one) for key, one in shown(attachment.offers).items() if accepted.get(key) != digest_of(one)]
        if not new and not shows:
            return {}
        held: dict[str, str] = {}
        for key, one in shows:
            await asyncio.sleep(0)
            if why := said_by_detectors(self._detectors.scan(one)):
                held[key] = why
        others = self._registry.offered(attachment.name)
        if shows:
            own, fresh_keys = [d.op for d in theirs], dict(shows)
            for key, why in suspicious(attachment.offers, own, others, self._registry.shown(attachment.name)).items():
                if key in fresh_keys:
                    held[key] = f"{why}; {held[key]}" if key in held else why
        for definition in new:
            # One by one: a large registration keeps no call waiting.
            await asyncio.sleep(0)
            if why := said_by_detectors(self._detectors.scan(definition.plain())):
                held[definition.op] = why
        known = {d.op: _said(d) for d in theirs}
        fresh = {d.op for d in new}
        taken = suspicions(known, others, attachment.name)
        for op in taken.keys() & fresh:
            held[op] = f"{taken[op]}; {held[op]}" if op in held else taken[op]
        return held


def _said(definition: Definition) -> str:
    """What a model reads of a tool in prose."""
    return "\n".join([definition.title, definition.description, *_descriptions(definition.input_schema)])


def _descriptions(schema: object) -> Sequence[str]:
    found, pending = [], [schema]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            if isinstance(text := item.get("description"), str):
                found.append(text)
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
    return found
