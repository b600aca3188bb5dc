"""What was accepted of each server of a tenant, as it is mirrored from the registry's bucket.

Keys: ``pins.<server>`` has the digest of each accepted definition by its name, ``was.<server>.<hash of the name>`` an accepted
definition that the server does not say any more, so that what it says instead can be compared with it; ``seen.<server>.<hash>``
the same of what it shows beside its tools.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from remit_broker.core.pins import Waiting, diff_of, digest_of
from remit_broker.core.registry import MAX_DEFINITIONS, Attachment, Definition
from remit_broker.core.shown import digests, shown
from remit_schemas.errors import Code, Refusal, refusal

MAX_PINS: Final = 2 * MAX_DEFINITIONS
"""Definitions remembered for one server: one that attaches with new names for ever does not fill the bucket."""
MAX_BYTES: Final = 600_000
"""Of names and digests: all of them stand in one value of the bucket, which is one message."""
_DIGEST: Final = 70
CROWDED: Final = "so many different ones were shown that no more are remembered"
CHANGED: Final = "it changed since it was accepted"


class _Kept(msgspec.Struct, frozen=True):
    """Something accepted that a server shows beside its tools, and does not say any more."""

    key: str
    said: dict[str, Any]


class PinBook:
    """The mirror, and what follows from it."""

    def __init__(self) -> None:
        self._pins: dict[str, dict[str, str]] = {}
        self._was: dict[str, dict[str, Definition | _Kept]] = {}

    def hear(self, kind: str, name: str, value: bytes | None) -> str:
        """One change of the bucket, under ``pins.…``, ``was.…`` or ``seen.…``; the server it is about."""
        if kind == "pins":
            self._pins[name] = {} if value is None else msgspec.json.decode(value, type=dict[str, str])
            return name
        server, _, at = name.partition(".")
        self._was.setdefault(server, {}).pop(f"{kind}.{at}", None)
        if value is not None:
            kept: type[Definition | _Kept] = Definition if kind == "was" else _Kept
            self._was[server][f"{kind}.{at}"] = msgspec.json.decode(value, type=kept)
        return server

    def of(self, server: str) -> Mapping[str, str]:
        """The digests that are accepted, by name."""
        return self._pins.get(server, {})

    def keys(self, server: str) -> list[str]:
        """The keys of everything that is remembered of a server."""
        return [f"pins.{server}", *(_key(server, at) for at in self._was.get(server, {}))]

    def first_seen(self, attachment: Attachment) -> tuple[dict[str, str], dict[str, str]]:
        """What ``attachment`` says that nobody has seen before and that need not wait, with its digest; and what it shows beside its
        tools that has to wait because there is no room to remember it, with that as the reason. Refuses TOO_LARGE for its tools.
        """
        known = self.of(attachment.name)
        new = {d.op: d.digest for d in attachment.definitions if d.op not in known and d.op not in attachment.held}
        if len(known) + len(new) > MAX_PINS:
            raise refusal(
                Code.TOO_LARGE, f"{attachment.name} has had more than {MAX_PINS} different tools", rule="attach.pins",
                ask=f"an operator can forget the old ones: remit servers accept {attachment.name} --forget",
            )  # fmt: skip
        room = MAX_BYTES - sum(len(key.encode()) + _DIGEST for key in (*known, *new))
        count, crowded = len(known) + len(new), dict[str, str]()
        for key, digest in digests(attachment.offers).items():
            if key in known or key in attachment.held:
                continue
            count, room = count + 1, room - len(key.encode()) - _DIGEST
            if count > MAX_PINS or room < 0:
                crowded[key] = CROWDED
            else:
                new[key] = digest
        return new, crowded

    def going(self, before: Attachment | None, after: Attachment) -> dict[str, Definition | _Kept]:
        """The accepted definitions of ``before`` that ``after`` does not say any more, by the key they are kept under.

        INVARIANT: what was accepted is there to be compared with, also after it went and came back changed
        (test_a_change_is_shown_against_what_was_accepted).
        """
        if before is None:
            return {}
        pins = self.of(after.name)
        said = {d.op: d.digest for d in after.definitions} | digests(after.offers)
        gone: dict[str, Definition | _Kept] = {
            f"was.{after.name}.{_at(d.op)}": d
            for d in before.definitions
            if pins.get(d.op) == d.digest != said.get(d.op)
        }
        for key, one in shown(before.offers).items():
            if pins.get(key) == digest_of(one) != said.get(key):
                gone[f"seen.{after.name}.{_at(key)}"] = _Kept(key, one)
        return gone

    def shut(self, attachment: Attachment) -> dict[str, str]:
        """Of what a server shows beside its tools that which waits: the reasons by name."""
        found = {}
        for key, digest in digests(attachment.offers).items():
            if reason := self._reason(attachment, key, digest):
                found[key] = reason
        return found

    def reason(self, attachment: Attachment, definition: Definition) -> str:
        """Why a definition is not to be called; empty where it is accepted."""
        return self._reason(attachment, definition.op, definition.digest)

    def _reason(self, attachment: Attachment, key: str, digest: str) -> str:
        pin = self.of(attachment.name).get(key)
        # INVARIANT: what nobody has accepted is not called
        # (test_a_changed_definition_is_quarantined_until_accepted, test_a_tool_that_speaks_to_the_model_waits_from_the_first).
        if pin == digest:
            return ""
        held = attachment.held.get(key, "")
        if pin is None:
            return held
        return f"{CHANGED}, and {held}" if held else CHANGED

    def waiting(self, attachment: Attachment | None) -> list[Waiting]:
        """Everything that waits, with what it is compared with."""
        if attachment is None:
            return []
        said = {d.op: d.plain() for d in attachment.definitions} | shown(attachment.offers)
        found = []
        for key, new in said.items():
            digest = digest_of(new)
            if not (reason := self._reason(attachment, key, digest)):
                continue
            pin = self.of(attachment.name).get(key)
            old = self._known(attachment.name, key)
            known = old if old is not None and digest_of(old) == pin else None
            found.append(Waiting(op=key, digest=digest, was=pin, reason=reason, changes=diff_of(known, new)))
        return found

    def _known(self, server: str, key: str) -> dict[str, Any] | None:
        """What was accepted under a name, where it is kept."""
        kept, at = self._was.get(server, {}), _at(key)
        old = kept.get(f"seen.{at}" if "/" in key else f"was.{at}")
        return old.plain() if isinstance(old, Definition) else old.said if old is not None else None

    def accepted(
        self, attachment: Attachment, wanted: Mapping[str, str], *, forget: bool
    ) -> tuple[dict[str, str], list[str]]:
        """The pins after somebody accepted what was ``wanted`` (name → what was shown), and the keys that are not needed any more.

        ``forget`` also lets go of what the server does not offer now. Refuses CONFLICT where it offers something else by now than
        was shown, and then nothing is accepted.

        INVARIANT: exactly what was shown is accepted (test_what_changed_again_after_it_was_shown_is_not_accepted).
        """
        said = {d.op: d.digest for d in attachment.definitions} | digests(attachment.offers)
        for op, was_shown in wanted.items():
            if said.get(op) != was_shown:
                raise _moved(attachment.name, op, op in said)
        kept = {op: pin for op, pin in self.of(attachment.name).items() if op in said or not forget}
        pins = {**kept, **wanted}
        if sum(len(key.encode()) + _DIGEST for key in pins) > MAX_BYTES:
            raise refusal(
                Code.TOO_LARGE, f"{attachment.name} has had more than can be remembered", rule="attach.pins",
                ask=f"forget the old ones: remit servers accept {attachment.name} --forget",
            )  # fmt: skip
        needless = [
            _key(attachment.name, at)
            for at, old in self._was.get(attachment.name, {}).items()
            if (pins.get(old.key) != digest_of(old.said) if isinstance(old, _Kept) else pins.get(old.op) != old.digest)
        ]
        return pins, needless


def _key(server: str, at: str) -> str:
    kind, _, mark = at.partition(".")
    return f"{kind}.{server}.{mark}"


def _at(op: str) -> str:
    """A name as the last part of a key, which takes few characters and not many of them."""
    return hashlib.sha256(op.encode()).hexdigest()[:32]


def _moved(server: str, op: str, there: bool) -> Refusal:
    now = "has changed again since it was shown" if there else "is not offered any more"
    return refusal(
        Code.CONFLICT, f"{op} of {server} {now}; nothing was accepted", rule="servers.accept",
        ask=f"look at it again: remit servers accept {server}",
    )  # fmt: skip
