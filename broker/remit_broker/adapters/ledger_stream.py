"""The ledger's stream as it must be: everything that could lose a record is switched off."""

from __future__ import annotations

from typing import Any, Final

from remit_broker.adapters.ledger_memory import STREAM

SUBJECTS: Final = "ledger.>"

MAY_DIFFER: Final = frozenset({"max_bytes", "allow_atomic"})
"""Settings that a stream made by somebody else, or by an older version, may have otherwise."""


def settings(replicas: int, max_bytes: int) -> dict[str, Any]:
    """The configuration of the stream."""
    return {
        "name": STREAM,
        "subjects": [SUBJECTS],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "num_replicas": replicas,
        "max_bytes": max_bytes,
        "max_age": 0,
        "max_msgs": -1,
        "max_msgs_per_subject": -1,
        "max_consumers": -1,
        "max_msg_size": -1,
        "deny_delete": True,
        "deny_purge": True,
        "allow_direct": False,
        "mirror_direct": False,
        "allow_rollup_hdrs": False,
        "allow_msg_ttl": False,
        "no_ack": False,
        "sealed": False,
        "persist_mode": "",
        "allow_atomic": True,
    }
