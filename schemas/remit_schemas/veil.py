"""Leaving personal fields out of a record that is shown, while it still proves what it proved.

The *veiled form* of a record has a salted commitment where each personal field says something, and no ``blind``. The record
after it names the digest of that form in ``veil``, as it names the record's hash in ``prev``. So whoever is shown the veiled form
finds it bound by the next record, and that one by the chain; and opens one field with the salt of that one. ``blind`` is random:
without it neither the commitments nor the record's hash let a name be guessed.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

from remit_schemas.base64url import decode, encode
from remit_schemas.canonical import canonical_document, digest
from remit_schemas.records import Record

Group = Literal["user", "claims", "people", "reasons"]
GROUPS: Final[tuple[Group, ...]] = ("user", "claims", "people", "reasons")
"""Whose task it is; what an issuer said of them; who else acted, as a person; what people and agents wrote in their own words."""

PERSONAL: Final[Mapping[str, Mapping[str, tuple[Group, ...]]]] = {
    "txn.opened": {
        "user": ("user",), "auth": ("user",), "token": ("user", "claims"), "issuer": ("claims",), "roles": ("claims",),
        "groups": ("claims",),
    },
    "hop.opened": {"facts.roles": ("claims",), "facts.groups": ("claims",)},
    "hop.parked": {"reason": ("reasons",)},
    "hop.closed": {"reason": ("reasons",)},
    "approval.requested": {"user": ("user",), "reason": ("reasons",)},
    "approval.decided": {
        "user": ("people",), "who": ("people",), "auth": ("people",), "reason": ("reasons",), "token": ("people", "reasons"),
    },
    "grant.revoked": {"who": ("people",), "why": ("reasons",)},
    "txn.closed": {"who": ("people",)},
}  # fmt: skip
"""By the kind of a record, its personal fields, and which groups each belongs to: it is shown where none of them is withheld."""
SALT: Final = 32
MAX_TEXT: Final = 64 * 1024
_MARK: Final = "withheld"
"""The only name in the object that stands for a withheld value; its value is the commitment."""


def personal(raw: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The personal fields of a record that say something."""
    for field in PERSONAL.get(raw["kind"], ()):
        value = _get(raw, field)
        if value not in (None, "", [], ()):
            yield field, value


def speaks(record: Record) -> bool:
    """Whether a record has a personal field that says something, and can be veiled."""
    return record.blind != "" and any(
        _said(record, field) for field in PERSONAL.get(str(record.__struct_config__.tag), ())
    )


def _said(record: Any, field: str) -> Any:
    for name in field.split("."):
        record = getattr(record, name, None)
    return record


def withheld_of(raw: Mapping[str, Any], groups: Collection[str]) -> list[str]:
    """Which personal fields of a record are not shown where ``groups`` are withheld."""
    of = PERSONAL.get(raw["kind"], {})
    return [field for field, _ in personal(raw) if not set(of[field]).isdisjoint(groups)]


def veiled(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The veiled form of a record that has a ``blind``. Raises ``ValueError`` for one that has none."""
    shown = dict(raw)
    blind = _blind(raw)
    for field, value in personal(raw):
        _put(shown, field, {_MARK: _commitment(_salt(blind, field), canonical_document(value))})
    return {**shown, "blind": ""}


def veil_of(raw: Mapping[str, Any]) -> str:
    """What the next record says in ``veil``: the digest of the veiled form, or nothing where a record has nothing to veil."""
    if not raw.get("blind") or next(personal(raw), None) is None:
        return ""
    return digest(canonical_document(veiled(raw)))


def disclosure(raw: Mapping[str, Any], field: str) -> dict[str, Any]:
    """What opens one field of the veiled form: its salt, and the value as canonical JSON (RFC 8785)."""
    text = canonical_document(_get(raw, field)).decode()
    return {"record": raw["seq"], "field": field, "salt": encode(_salt(_blind(raw), field)), "text": text}


def commitments(raw: Mapping[str, Any]) -> dict[str, str]:
    """The withheld fields of a record in its veiled form, with their commitments. Raises ``ValueError`` for what has no such form."""
    found = {}
    for field in PERSONAL.get(str(raw.get("kind")), ()):
        value = _get(raw, field)
        if isinstance(value, dict):
            if set(value) != {_MARK} or not isinstance(value[_MARK], str):
                raise ValueError(f"its {field} is no commitment")
            found[field] = value[_MARK]
    if found and raw.get("blind") != "":
        raise ValueError("what is veiled shows no blind")
    return found


def opens(told: Any, records: Sequence[Mapping[str, Any]]) -> tuple[int, str, bytes]:
    """The record and the field that a disclosure opens, and the value. Raises ``ValueError``, in words, where it opens none."""
    if not isinstance(told, dict) or set(told) != {"record", "field", "salt", "text"}:
        raise ValueError("it is not of the form that disclosures have")
    number, field, salt, text = told["record"], told["field"], told["salt"], told["text"]
    if type(number) is not int or not 0 <= number < len(records):
        raise ValueError("it names no record of the file")
    found = commitments(records[number]).get(field if isinstance(field, str) else "")
    if found is None:
        raise ValueError(f"record {number} withholds no field of that name")
    try:
        key, data = decode(salt.encode()), text.encode()
    except (ValueError, AttributeError, TypeError):
        raise ValueError("its salt or its text is none") from None
    # INVARIANT: nothing opens a commitment but what was committed to (test_a_forged_name_opens_nothing).
    if len(key) != SALT or len(data) > MAX_TEXT or not hmac.compare_digest(_commitment(key, data), found):
        raise ValueError(f"it is not what record {number} commits to")
    return number, field, data


def with_values(raw: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A record in its veiled form with ``values`` where its fields are withheld."""
    shown = dict(raw)
    for field, value in values.items():
        _put(shown, field, value)
    return shown


def _blind(raw: Mapping[str, Any]) -> bytes:
    blind = raw.get("blind") or ""
    if len(blind) != 32:
        raise ValueError(f"record {raw['seq']} is from before personal fields could be left out")
    return bytes.fromhex(blind)


def _salt(blind: bytes, field: str) -> bytes:
    return hmac.new(blind, field.encode(), "sha256").digest()


def _commitment(salt: bytes, data: bytes) -> str:
    return hmac.new(salt, data, "sha256").hexdigest()


def _get(raw: Mapping[str, Any], field: str) -> Any:
    value: Any = raw
    for name in field.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _put(shown: dict[str, Any], field: str, value: Any) -> None:
    name, _, inner = field.partition(".")
    shown[name] = {**shown[name], inner: value} if inner else value
