"""What was accepted of a server, what it says now, and which of it waits for somebody to look at it. Pure.

A definition is any JSON object with which a server describes something that it serves: a tool, a resource, a prompt. Its digest pins
all of it; what changed is told place by place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from remit_broker.core.lookalike import skeleton, twins
from remit_schemas.canonical import canonical, digest
from remit_schemas.records import Finding

MAX_CHANGES: Final = 5_000
"""Places of one definition that are told: what is accepted has to be seen, so this is beyond what one of 64 KiB can have in earnest."""
MORE: Final = "and more, which is not told"
_AROUND: Final = 60
"""Characters that are kept around what differs in two long texts."""

HOLDS: Final = ("injection", "hidden", "scan")
"""Classes of findings for which a definition that nobody has looked at waits: it speaks to a model, or hides something."""

_STEERS: Final = re.compile(
    r"\b(?:instead of|rather than|before|after|first|always|never|must|do not|don't)\b", re.IGNORECASE
)
_NAMES: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{4,}[A-Za-z0-9]")
BETWEEN: Final = ("__", "_", ".", "-")
"""What clients and gateways put between the name of a server and that of its tool."""


class Change(msgspec.Struct, frozen=True):
    """One place (an RFC 6901 pointer) at which two definitions differ. ``old`` or ``new`` is None where there was or is nothing."""

    where: str
    old: str | None
    new: str | None


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """A definition that is not called before somebody accepts it, and what to compare it with.

    ``digest`` is what would be accepted, ``was`` what is accepted; None where nothing is. ``changes`` are told against the
    accepted definition, or against nothing where that is not known.
    """

    op: str
    digest: str
    was: str | None
    reason: str
    changes: tuple[Change, ...] = ()


def digest_of(definition: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON (RFC 8785) of a definition. Raises ValueError where it has none."""
    return digest(canonical(dict(definition)))


def together(waiting: Iterable[Waiting]) -> str:
    """One digest for all that waits: who says it has seen exactly this."""
    return digest(canonical(sorted([one.op, one.digest] for one in waiting)))


def diff_of(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> tuple[Change, ...]:
    """What differs, place by place, in the order of places; at most :data:`MAX_CHANGES`."""
    changes: list[Change] = []
    for where, before, after in _differences("", dict(old or {}), dict(new)):
        if len(changes) == MAX_CHANGES:
            changes.append(Change("", None, MORE))
            break
        changes.append(_told(where, before, after))
    return tuple(changes)


_NOTHING: Final = object()


def _differences(where: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            step = f"{where}/{str(key).replace('~', '~0').replace('/', '~1')}"
            yield from _differences(step, old.get(key, _NOTHING), new.get(key, _NOTHING))
    elif isinstance(old, list) and isinstance(new, list):
        for index in range(max(len(old), len(new))):
            before, after = (side[index] if index < len(side) else _NOTHING for side in (old, new))
            yield from _differences(f"{where}/{index}", before, after)
    elif type(old) is not type(new) or old != new:
        yield where, old, new


def _told(where: str, old: Any, new: Any) -> Change:
    before, after = (
        None if side is _NOTHING else side if isinstance(side, str) else _json(side) for side in (old, new)
    )
    if before is not None and after is not None:
        before, after = _apart(before, after)
    return Change(where, before, after)


def _apart(old: str, new: str) -> tuple[str, str]:
    """Two texts without most of what they begin and end with alike."""
    start = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    rest = min(len(old), len(new)) - start
    end = next((i for i in range(rest) if old[-1 - i] != new[-1 - i]), rest)
    start, end = max(0, start - _AROUND), max(0, end - _AROUND)
    return tuple(  # type: ignore[return-value]
        ("…" if start else "") + side[start : len(side) - end] + ("…" if end else "") for side in (old, new)
    )


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


# --- What waits although nobody has seen it before ------------------------------------------------------------------------------


def said_by_detectors(found: Sequence[Finding]) -> str:
    """Why a definition in which this was found waits; empty where it does not."""
    kinds = sorted({one.kind for one in found if one.kind.partition(".")[0] in HOLDS})
    where = next((one.where for one in found if one.kind in kinds), "")
    return f"{', '.join(kinds[:4])} was found{f' at {where}' if where else ''}" if kinds else ""


def suspicions(texts: Mapping[str, str], others: Mapping[str, Sequence[str]], me: str = "") -> dict[str, str]:
    """Of the tools of one server (name → all it says to a model) those that could be taken for another, or speak of another's.

    ``others`` are the tools of the other servers by server, ``me`` is this one. Names that
    are the same in two servers are none: each is called by its
    server's name too.
    """
    found = {op: f"its name looks like {other!r} of the same server" for op, other in _disguised(texts).items()}
    theirs = {op: server for server, ops in others.items() for op in ops}
    seen = {skeleton(op): op for op in theirs if op.isascii()}
    mapped = {skeleton(f"{server}{sign}{op}"): (server, op) for op, server in theirs.items() for sign in BETWEEN}
    for op, text in texts.items():
        look = skeleton(op)
        if (other := seen.get(look)) not in (None, op):
            found.setdefault(op, f"its name looks like mcp/{theirs[str(other)]}/{other}")
        elif me and (all_ := skeleton(f"{me}__{op}")) in mapped:
            found.setdefault(op, "its name where all servers are one is that of mcp/{}/{}".format(*mapped[all_]))
        elif look in mapped:
            found.setdefault(op, "its name is that of mcp/{}/{} as clients see it".format(*mapped[look]))
        elif spoken := spoken_of(text, theirs, texts):
            found.setdefault(op, f"it says how to use mcp/{theirs[spoken]}/{spoken}, which is another server's")
    return found


def _disguised(names: Iterable[str]) -> dict[str, str]:
    """The look-alikes of one server; of two the one that is not plain ASCII is the disguise, whichever comes first."""
    return twins(sorted(names, key=lambda name: (not name.isascii(), name)))


def spoken_of(text: str, theirs: Mapping[str, str], own: Mapping[str, str]) -> str:
    """The tool of another server that a text gives orders about; empty where it gives none."""
    if not _STEERS.search(text):
        return ""
    words = {word for word in _NAMES.findall(text) if "_" in word or "-" in word or "." in word}
    return min((word for word in words if word in theirs and word not in own), default="")
