"""What was accepted of each server of a tenant, as it is mirrored from the registry's bucket.

Keys: ``pins.<server>`` has the digest of each accepted definition by its name, ``was.<server>.<hash of the name>`` an accepted
definition that the server does not say any more, so that what it says instead can be compared with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

import msgspec

from remit_broker.core.pins import Waiting, diff_of
from remit_broker.core.registry import MAX_DEFINITIONS, Attachment, Definition
from remit_schemas.errors import Code, Refusal, refusal

MAX_PINS: Final = 2 * MAX_DEFINITIONS
"""Definitions remembered for one server: one that attaches with new names for ever does not fill the bucket."""
CHANGED: Final = "it changed since it was accepted"


class PinBook:
    """The mirror, and what follows from it."""

    def __init__(self) -> None:
        self._pins: dict[str, dict[str, str]] = {}
        self._was: dict[str, dict[str, Definition]] = {}

    def hear(self, kind: str, name: str, value: bytes | None) -> str:
        """One change of the bucket, under ``pins.…`` or ``was.…``; the server it is about."""
        if kind == "pins":
            self._pins[name] = {} if value is None else msgspec.json.decode(value, type=dict[str, str])
            return name
        server, _, at = name.partition(".")
        self._was.setdefault(server, {}).pop(at, None)
        if value is not None:
            self._was[server][at] = msgspec.json.decode(value, type=Definition)
        return server

    def of(self, server: str) -> Mapping[str, str]:
        """The digests that are accepted, by name."""
        return self._pins.get(server, {})

    def keys(self, server: str) -> list[str]:
        """The keys of everything that is remembered of a server."""
        return [f"pins.{server}", *(f"was.{server}.{at}" for at in self._was.get(server, {}))]

    def first_seen(self, attachment: Attachment) -> dict[str, str]:
        """What ``attachment`` says that nobody has seen before and that need not wait. Refuses TOO_LARGE."""
        known = self.of(attachment.name)
        new = {d.op: d.digest for d in attachment.definitions if d.op not in known and d.op not in attachment.held}
        if len(known) + len(new) > MAX_PINS:
            raise refusal(
                Code.TOO_LARGE, f"{attachment.name} has had more than {MAX_PINS} different tools", rule="attach.pins",
                ask=f"an operator can forget the old ones: remit servers accept {attachment.name} --forget",
            )  # fmt: skip
        return new

    def going(self, before: Attachment | None, after: Attachment) -> dict[str, Definition]:
        """The accepted definitions of ``before`` that ``after`` does not say any more, by the key they are kept under.

        INVARIANT: what was accepted is there to be compared with, also after it went and came back changed
        (test_a_change_is_shown_against_what_was_accepted).
        """
        pins = self.of(after.name)
        said = {d.op: d.digest for d in after.definitions}
        return {
            f"was.{after.name}.{_at(d.op)}": d
            for d in (before.definitions if before else ())
            if pins.get(d.op) == d.digest != said.get(d.op)
        }

    def reason(self, attachment: Attachment, definition: Definition) -> str:
        """Why a definition is not to be called; empty where it is accepted."""
        pin = self.of(attachment.name).get(definition.op)
        # INVARIANT: what nobody has accepted is not called
        # (test_a_changed_definition_is_quarantined_until_accepted, test_a_tool_that_speaks_to_the_model_waits_from_the_first).
        if pin == definition.digest:
            return ""
        held = attachment.held.get(definition.op, "")
        if pin is None:
            return held
        return f"{CHANGED}, and {held}" if held else CHANGED

    def waiting(self, attachment: Attachment | None) -> list[Waiting]:
        """Everything that waits, with what it is compared with."""
        found = []
        for new in attachment.definitions if attachment else ():
            if attachment is None or not (reason := self.reason(attachment, new)):
                continue
            pin = self.of(attachment.name).get(new.op)
            old = self._was.get(attachment.name, {}).get(_at(new.op))
            known = old.plain() if old is not None and old.digest == pin else None
            found.append(
                Waiting(op=new.op, digest=new.digest, was=pin, reason=reason, changes=diff_of(known, new.plain()))
            )
        return found

    def accepted(
        self, attachment: Attachment, digests: Mapping[str, str], *, forget: bool
    ) -> tuple[dict[str, str], list[str]]:
        """The pins after somebody accepted ``digests`` (name → what was shown), and the keys that are not needed any more.

        ``forget`` also lets go of what the server does not offer now. Refuses CONFLICT where it offers something else by now than
        was shown, and then nothing is accepted.

        INVARIANT: exactly what was shown is accepted (test_what_changed_again_after_it_was_shown_is_not_accepted).
        """
        said = {d.op: d.digest for d in attachment.definitions}
        for op, shown in digests.items():
            if said.get(op) != shown:
                raise _moved(attachment.name, op, op in said)
        kept = {op: pin for op, pin in self.of(attachment.name).items() if op in said or not forget}
        pins = {**kept, **digests}
        needless = [
            f"was.{attachment.name}.{at}"
            for at, old in self._was.get(attachment.name, {}).items()
            if pins.get(old.op) != old.digest
        ]
        return pins, needless


def _at(op: str) -> str:
    """A name as the last part of a key, which takes few characters and not many of them."""
    return hashlib.sha256(op.encode()).hexdigest()[:32]


def _moved(server: str, op: str, there: bool) -> Refusal:
    now = "has changed again since it was shown" if there else "is not offered any more"
    return refusal(
        Code.CONFLICT, f"{op} of {server} {now}; nothing was accepted", rule="servers.accept",
        ask=f"look at it again: remit servers accept {server}",
    )  # fmt: skip
