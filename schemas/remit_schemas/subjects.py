"""The subjects of the bus: who may say what where (the permissions in the callout are made from the same functions)."""

from __future__ import annotations

import functools
import re
from typing import Final, NamedTuple

from remit_schemas.names import is_hop, is_op, is_principal, is_txn, token, untoken

NEW: Final = "new"
"""Stands where a txn would, for a call that has none yet."""

BROKER_QUEUE: Final = "broker"
"""Queue group of the broker's replicas."""


_CONNECTED = re.compile(r"([A-Za-z0-9]{16,64})(\.[A-Za-z0-9_-]+)+")
"""What follows the principal in one of its inboxes: the connection and at least one plain token."""


class Request(NamedTuple):
    """``req.<caller>.<txn>.<kind>.<name>.<op>`` taken apart. ``kind`` is ``agent``, ``mcp`` or ``remit`` (the broker's own)."""

    caller: str
    txn: str
    kind: str
    name: str
    op: str


class Reply(NamedTuple):
    """``res.<callee>.<replica>.<txn>.<hop>`` (or ``ctl.…``) taken apart."""

    principal: str
    replica: str
    txn: str
    hop: str


def request(caller: str, txn: str, kind: str, name: str, op: str) -> str:
    """Where ``caller`` asks for ``kind/name/op`` under ``txn`` (or :data:`NEW`)."""
    return f"req.{caller}.{txn}.{kind}.{token(name)}.{token(op)}"


@functools.lru_cache(maxsize=1024)
def parse_request(subject: str) -> Request | None:
    """Take a request's subject apart; None where it is not one. The caller in it was checked by the NATS server."""
    parts = subject.split(".")
    if len(parts) != 6 or parts[0] != "req" or parts[3] not in ("agent", "mcp", "remit"):
        return None
    _, caller, txn, kind, name, op = parts
    plain_op = untoken(op)
    if not is_principal(caller) or not (txn == NEW or is_txn(txn)) or plain_op is None or not is_op(plain_op):
        return None
    if kind != "remit" and not is_principal(name):
        return None
    return Request(caller, txn, kind, name, plain_op)


def service(kind: str, name: str, op: str) -> str:
    """Where the broker dispatches a hop to its callee."""
    return f"svc.{kind}.{token(name)}.{token(op)}"


def parse_service(subject: str) -> tuple[str, str, str] | None:
    """``svc.<kind>.<name>.<op>`` taken apart, for a callee."""
    parts = subject.split(".")
    if len(parts) != 4 or parts[0] != "svc":
        return None
    op = untoken(parts[3])
    return (parts[1], parts[2], op) if op is not None else None


def reply(callee: str, replica: str, txn: str, hop: str) -> str:
    """Where the callee of a hop publishes its frames."""
    return f"res.{callee}.{replica}.{txn}.{hop}"


def control(caller: str, replica: str, txn: str, hop: str) -> str:
    """Where the caller of a hop publishes cancellation and input."""
    return f"ctl.{caller}.{replica}.{txn}.{hop}"


@functools.lru_cache(maxsize=1024)
def parse_reply(subject: str, head: str = "res") -> Reply | None:
    """Take ``res.…`` (or ``ctl.…``) apart; None where it is not one."""
    parts = subject.split(".")
    if len(parts) != 5 or parts[0] != head or not is_txn(parts[3]) or not is_hop(parts[4]):
        return None
    return Reply(*parts[1:])


def inbox_prefix(principal: str, connection: str) -> str:
    """The private inbox of one connection, without the trailing part."""
    return f"_INBOX_{principal}.{connection}"


def is_own_inbox(subject: str, principal: str) -> bool:
    """Whether a reply subject lies in one of ``principal``'s own private inboxes (and is no wildcard).

    INVARIANT: the broker answers nowhere else, or a caller could make it publish anywhere (test_any_other_reply_subject_is_foreign).
    """
    own = f"_INBOX_{principal}."
    return len(subject) <= 256 and subject.startswith(own) and _CONNECTED.fullmatch(subject, len(own)) is not None
