"""What an MCP server shows beside its tools (resources, templates, prompts, instructions), each under the name that pins it. Pure.

A name is ``resource/<uri>``, ``template/<uri template>``, ``prompt/<name>`` or ``instructions/``. No tool has a name with a slash,
so pins of both stand side by side.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from remit_broker.core.lookalike import skeleton, twins
from remit_broker.core.pins import BETWEEN, digest_of, spoken_of

KINDS: Final = {
    "resources": ("resource", "uri"),
    "templates": ("template", "uriTemplate"),
    "prompts": ("prompt", "name"),
}
"""Of each list of an offer what one of it is called, and by which member."""
INSTRUCTIONS: Final = "instructions/"
_LONGEST: Final = 200
_TIME: Final = re.compile(r"[0-9TZ:.+-]{4,40}")


def key_of(kind: str, name: str) -> str:
    """The name under which one thing is pinned; of a long one the beginning, and a digest of all of it."""
    if len(name) <= _LONGEST:
        return f"{kind}/{name}"
    return f"{kind}/{name[: _LONGEST // 2]}…{hashlib.sha256(name.encode()).hexdigest()[:32]}"


def shown(offers: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """All of it by name, as it is pinned.

    INVARIANT: of two things with one name neither is pinned without the other
    (test_a_resource_that_stands_there_twice_is_looked_at_twice).
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for what, (kind, member) in KINDS.items():
        for one in offers.get(what, []):
            found.setdefault(key_of(kind, str(one.get(member))), []).append(_lasting(one))
    if said := offers.get("instructions"):
        found[INSTRUCTIONS] = [{"instructions": said}]
    return {key: some[0] if len(some) == 1 else {"several": some} for key, some in found.items()}


def digests(offers: Mapping[str, Any]) -> dict[str, str]:
    """The digest of each by its name."""
    return {key: digest_of(one) for key, one in shown(offers).items()}


def _lasting(one: Mapping[str, Any]) -> dict[str, Any]:
    """Without what changes by itself: a number of bytes and a time, where they are that and nothing else."""
    kept = dict(one)
    if type(kept.get("size")) is int:
        del kept["size"]
    notes = kept.get("annotations")
    if isinstance(notes, dict) and isinstance(at := notes.get("lastModified"), str) and _TIME.fullmatch(at):
        kept["annotations"] = {name: value for name, value in notes.items() if name != "lastModified"}
    return kept


class Shut(msgspec.Struct, frozen=True):
    """What of a server waits: the reasons by name; and how its templates begin, each with the reason for which it waits, or none."""

    reasons: Mapping[str, str] = {}
    templates: tuple[tuple[str, str], ...] = ()

    def why(self, op: str, args: Mapping[str, Any]) -> str:
        """Why what ``op`` (``$resource``, ``$prompt`` …) is asked for with ``args`` waits; empty where it does not.

        A resource that is not listed belongs to the template that begins as it does for longest; of two alike, to the one that waits.
        """
        if not self.reasons:
            return ""
        if op == "$prompt":
            return self.reasons.get(key_of("prompt", str(args.get("name"))), "")
        if op == "$complete":
            ref = args.get("ref")
            named = ref if isinstance(ref, dict) else {}
            prompt = named.get("type") == "ref/prompt"
            key = key_of("prompt", str(named.get("name"))) if prompt else key_of("template", str(named.get("uri")))
            return self.reasons.get(key, "")
        uri = str(args.get("uri"))
        if (reason := self.reasons.get(key_of("resource", uri))) is not None:
            return reason
        fits = [(len(head), bool(reason), reason) for head, reason in self.templates if uri.startswith(head)]
        return max(fits)[2] if fits else ""


def shut(offers: Mapping[str, Any], reasons: Mapping[str, str]) -> Shut:
    """What of ``offers`` waits, by the ``reasons`` for each name."""
    waiting = {key: reason for key in shown(offers) if (reason := reasons.get(key))}
    if not waiting:
        return Shut()
    templates = [str(one.get("uriTemplate")) for one in offers.get("templates", [])]
    return Shut(waiting, tuple((one.partition("{")[0], waiting.get(key_of("template", one), "")) for one in templates))


def open_of(offers: Mapping[str, Any], reasons: Mapping[str, str]) -> dict[str, Any]:
    """``offers`` without what waits.

    INVARIANT: what nobody has accepted is shown to no client (test_a_prompt_that_changed_is_neither_shown_nor_got).
    """
    left = dict(offers)
    for what, (kind, member) in KINDS.items():
        if what in left:
            left[what] = [one for one in left[what] if not reasons.get(key_of(kind, str(one.get(member))))]
    if reasons.get(INSTRUCTIONS):
        del left["instructions"]
    return left


def suspicious(
    offers: Mapping[str, Any],
    own: Iterable[str],
    tools: Mapping[str, Sequence[str]],
    others: Mapping[str, Iterable[str]],
) -> dict[str, str]:
    """Of what a server shows that which could be taken for another's, or gives orders about a tool of another.

    ``own`` are the server's tools, ``tools`` those of the other servers, and ``others`` the names of what those show, by server.
    """
    said = shown(offers)
    theirs = {op: server for server, ops in tools.items() for op in ops}
    mine, found = dict.fromkeys(own, ""), _disguised(said, others)
    for key, one in said.items():
        if spoken := spoken_of("\n".join(_texts(one)), theirs, mine):
            found.setdefault(key, f"it says how to use mcp/{theirs[spoken]}/{spoken}, which is another server's")
    return found


def _disguised(said: Iterable[str], others: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Names with letters outside ASCII that look like others, and prompts that are another server's as clients see them."""
    keys = sorted(said, key=lambda key: (not key.isascii(), key))
    seen = {skeleton(key): (server, key) for server, some in others.items() for key in some if key.isascii()}
    mapped = {
        skeleton(f"prompt/{server}{sign}{key.removeprefix('prompt/')}"): (server, key)
        for server, some in others.items() for key in some if key.startswith("prompt/") for sign in BETWEEN
    }  # fmt: skip
    found = {
        key: f"it looks like {other} of the same server" for key, other in twins(keys).items() if not key.isascii()
    }
    for key in keys:
        look = skeleton(key)
        if not key.isascii() and look in seen:
            found.setdefault(key, "it looks like {1} of {0}".format(*seen[look]))
        elif key.startswith("prompt/") and look in mapped:
            found.setdefault(key, "its name is that of {1} of {0} as clients see it".format(*mapped[look]))
    return found


def _texts(value: Any) -> list[str]:
    found: list[str] = []
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, dict):
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
    return found
