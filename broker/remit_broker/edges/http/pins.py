"""``/api/servers/{name}/changes`` and ``…/accept``: definitions that wait, and what exactly is accepted."""

from __future__ import annotations

from typing import Any

import msgspec

from remit_broker.core.pins import together
from remit_broker.operator_ports import Directory
from remit_schemas.errors import Code, refusal


class Acceptance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What was looked at: the digest of each definition by its name. ``forget`` lets go of what the server does not offer now."""

    digests: dict[str, str] = {}
    forget: bool = False


def changes(name: str, directory: Directory) -> dict[str, Any]:
    """What of a server waits, and why, with what changed; ``digest`` stands for all of it. Refuses UNKNOWN_TARGET."""
    if directory.attachment(name) is None:
        raise refusal(
            Code.UNKNOWN_TARGET, f"nothing is attached as {name}", rule="servers.unknown", ask="remit servers list"
        )
    waiting = directory.waiting(name)
    return {
        "server": name,
        "digest": together(waiting) if waiting else None,
        "waiting": waiting,
        "forgettable": directory.forgettable(name),
    }


def looked_at(name: str, wanted: Acceptance, directory: Directory) -> None:
    """Refuses MALFORMED where nothing is accepted, UNKNOWN_TARGET, and CONFLICT for what is not what was shown."""
    # INVARIANT: nobody accepts what they were not shown (test_nothing_is_accepted_without_saying_what).
    if not wanted.digests and not wanted.forget:
        raise refusal(
            Code.MALFORMED, "nothing is said of what is accepted", rule="servers.accept",
            ask='send {"digests": {NAME: DIGEST}} as GET /api/servers/…/changes shows them',
        )  # fmt: skip
    directory.acceptable(name, wanted.digests, forget=wanted.forget)
