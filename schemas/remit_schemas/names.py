"""Names, resources and ids: what may be called what, and the one NATS token each legal name has."""

from __future__ import annotations

import re
import unicodedata
from typing import Final, Literal, NamedTuple

from remit_schemas.errors import Code, refusal

Kind = Literal["agent", "mcp"]
KINDS: Final[tuple[Kind, ...]] = ("agent", "mcp")

MAX_OP: Final = 256
"""Longest operation (skill or tool) name in characters."""

_PRINCIPAL = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_CONNECTION = re.compile(r"[A-Za-z0-9]{16,64}")
_TXN = re.compile(r"[0-9a-f]{32}")
_HOP = re.compile(r"[0-9a-f]{16}")
_JTI = re.compile(r"([0-9a-f]{32})\.([0-9a-f]{16})\.([1-9][0-9]{0,8})")
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_PLAIN_TOKEN = re.compile(r"\$?[A-Za-z0-9_-]+")
_ESCAPE = re.compile(r"=([0-9A-F]{2})")

RESERVED: Final = frozenset({"remit", "new", "broker"})
"""Names no agent or server may have: they stand for the broker itself or for 'no txn yet' in subjects."""

DEFAULT_TENANT: Final = "default"
"""The tenant that is always there."""


def is_principal(name: str) -> bool:
    """Whether ``name`` may name an agent or a server (``[a-z0-9][a-z0-9_-]*``, at most 63 characters, not reserved)."""
    return bool(_PRINCIPAL.fullmatch(name)) and name not in RESERVED


def is_tenant(name: str) -> bool:
    """Whether ``name`` may name a tenant."""
    return bool(_TENANT.fullmatch(name))


def is_connection(name: str) -> bool:
    """Whether ``name`` may be a connection's own name: one plain token that no wildcard can hide in."""
    return bool(_CONNECTION.fullmatch(name))


def is_txn(text: str) -> bool:
    """Whether ``text`` is a txn id (32 lower-case hex digits: a W3C trace id)."""
    return bool(_TXN.fullmatch(text)) and text != "0" * 32


def is_hop(text: str) -> bool:
    """Whether ``text`` is a hop id (16 lower-case hex digits: a W3C span id)."""
    return bool(_HOP.fullmatch(text)) and text != "0" * 16


class Jti(NamedTuple):
    """The id of a grant: the ``n``-th one minted for ``hop`` of ``txn``."""

    txn: str
    hop: str
    n: int

    def __str__(self) -> str:
        return f"{self.txn}.{self.hop}.{self.n}"


def parse_jti(text: str) -> Jti | None:
    """``<txn>.<hop>.<n>``, or None."""
    match = _JTI.fullmatch(text)
    return Jti(match[1], match[2], int(match[3])) if match else None


def normalize(text: str) -> str:
    """The NFKC form in which names are compared and stored (Unicode TR15)."""
    return unicodedata.normalize("NFKC", text)


def is_op(text: str) -> bool:
    """Whether ``text`` may name a skill or tool: NFKC, 1 to 256 printable characters, no ``/``, ``*`` or bare ``.``/``..``."""
    return (
        0 < len(text) <= MAX_OP
        and text == normalize(text)
        and text not in (".", "..")
        and "/" not in text
        and "*" not in text
        and text.isprintable()
    )


def token(segment: str) -> str:
    """The one NATS token of a name: every byte outside ``A-Za-z0-9_-`` and a leading ``$`` is written ``=XX``."""
    if _PLAIN_TOKEN.fullmatch(segment):
        return segment
    raw = segment.encode()
    return "".join(
        chr(byte) if byte in _PLAIN or (index == 0 and byte == 0x24) else f"={byte:02X}"
        for index, byte in enumerate(raw)
    )


def untoken(text: str) -> str | None:
    """The name whose token is exactly ``text``, or None where no name has that token."""
    try:
        name = _ESCAPE.sub(lambda m: chr(int(m[1], 16)), text).encode("latin-1").decode()
    except UnicodeError:
        return None
    return name if token(name) == text else None


class Resource(NamedTuple):
    """What a hop calls: ``agent/<agent>/<skill>`` or ``mcp/<server>/<tool>``."""

    kind: Kind
    name: str
    op: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}/{self.op}"


def parse_resource(text: str) -> Resource:
    """A concrete resource. Raises a MALFORMED refusal that says what a resource looks like."""
    parts = text.split("/", 2)
    if len(parts) == 3 and is_principal(parts[1]) and is_op(parts[2]):
        if parts[0] == "agent":
            return Resource("agent", parts[1], parts[2])
        if parts[0] == "mcp":
            return Resource("mcp", parts[1], parts[2])
    raise refusal(
        Code.MALFORMED, f"{text!r} is not a resource", rule="resource.syntax",
        ask="name one skill or tool: agent/<agent>/<skill> or mcp/<server>/<tool>",
    )  # fmt: skip
