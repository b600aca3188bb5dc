"""Evidence in which personal fields are withheld: made from what is there, and read again. Pure.

A withheld field stands in the file as a salted commitment (:mod:`remit_schemas.veil`), and ``personal`` holds what opens those that
are not withheld, each by its own salt. Refusals have no such form and are left out with them. Grants name the user: where that is
withheld they are left out too, and the checkpoint alone binds the records.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, NamedTuple

from remit_schemas.canonical import canonical_document, digest, loads
from remit_schemas.errors import Code, Refusal, refusal
from remit_schemas.records import OWNER
from remit_schemas.veil import (
    GROUPS,
    MAX_TEXT,
    commitments,
    disclosure,
    opens,
    personal,
    veiled,
    with_values,
    withheld_of,
)

HIDDEN: Final = "(withheld)"
"""What a reader is shown in the place of a name."""


class Shown(NamedTuple):
    """The records of a file as they can be read: what was disclosed stands there, what was withheld is :data:`HIDDEN`, or nothing."""

    records: list[dict[str, Any]]
    veils: dict[int, str]
    """By number, the digest of the veiled form of those records that are shown so."""
    withheld: list[str]
    """What stays closed, as ``<record>.<field>``."""
    disclosed: int
    user: bool
    """Whether it says whose task it is."""


def withhold(evidence: Mapping[str, Any], groups: Collection[str], but: Iterable[str] = ()) -> dict[str, Any]:
    """``evidence`` without the personal fields of ``groups``, ``but`` for those named (``<record>.<field>``).

    Refuses CONFLICT where a field has to be shown, or no record can be veiled; MALFORMED for what there is not.
    """
    if unknown := sorted(set(groups) - set(GROUPS)):
        raise refusal(
            Code.MALFORMED, f"nothing is called {unknown[0][:64]!r} that could be withheld", rule="evidence.withhold",
            ask=f"some of {', '.join(GROUPS)}",
        )  # fmt: skip
    spared, named = set(but), set[str]()
    records, opened = [], []
    last, user = len(evidence["records"]) - 1, evidence["records"][0]["user"]
    for number, raw in enumerate(evidence["records"]):
        wanted = [] if number == last and _closed_by_nobody(raw, evidence["records"]) else _hidden(raw, groups, user)
        named |= {f"{number}.{field}" for field in wanted}
        hidden = [field for field in wanted if f"{number}.{field}" not in spared]
        if hidden and number == last:
            raise refusal(
                Code.CONFLICT, f"{', '.join(hidden)} of record {number} has to be shown: it is the last, and is proved whole",
                rule="evidence.last", ask="withhold other groups; of a task that its agent or its own user closed the end names nobody",
            )  # fmt: skip
        if hidden and "token" in wanted and "token" not in hidden:
            raise refusal(
                Code.MALFORMED, f"{number}.token says all that is withheld of record {number}", rule="evidence.disclose",
                ask="disclose the fields of that record, or none",
            )  # fmt: skip
        try:
            records.append(veiled(raw) if hidden else raw)
            opened += [disclosure(raw, field) for field, _ in personal(raw) if hidden and field not in hidden]
        except ValueError as old:
            raise refusal(
                Code.CONFLICT, f"nothing can be withheld: {old}", rule="evidence.old", ask="of tasks opened since then it can be"
            ) from None  # fmt: skip
    if strange := sorted(spared - named):
        raise refusal(
            Code.MALFORMED, f"{strange[0][:64]!r} is no field that is withheld", rule="evidence.disclose",
            ask="as in 0.user; " + (f"there are {', '.join(sorted(named)[:20])}" if named else "nothing is withheld"),
        )  # fmt: skip
    told = {
        **evidence,
        "records": records,
        "personal": opened,
        "refusals": [],
        "refusal_proofs": [],
        "refusal_checkpoint": None,
    }
    # INVARIANT: where the user is withheld nothing in the file names them (test_nothing_names_a_user_who_is_withheld).
    return told if shown(told).user else {**told, "grants": []}


def _hidden(raw: Mapping[str, Any], groups: Collection[str], user: str) -> list[str]:
    """What is not shown of a record: the fields of ``groups``, and whatever else names the user where the user is not."""
    found = dict.fromkeys(withheld_of(raw, groups))
    if "user" in groups:
        found |= dict.fromkeys(
            field for field, value in personal(raw) if value == user or str(value).endswith(f":{user}")
        )
        if raw["kind"] == "approval.decided" and found:
            found["token"] = None
    return list(found)


def _closed_by_nobody(raw: Mapping[str, Any], records: list[dict[str, Any]]) -> bool:
    """Whether a task was closed by nobody who would be a person."""
    agents = {record["resource"].split("/")[1] for record in records if record["kind"] == "hop.opened"}
    return raw["kind"] == "txn.closed" and raw["who"] in {"broker", OWNER, records[0]["agent"], *agents}


def shown(evidence: Mapping[str, Any]) -> Shown:
    """The records of a file, opened as far as it opens them. Raises ``ValueError``, in words, for what opens nothing."""
    raws: list[dict[str, Any]] = evidence["records"]
    told = evidence.get("personal", [])
    if not isinstance(told, list):
        raise ValueError("what is disclosed is no list")
    values: dict[int, dict[str, Any]] = {}
    for index, each in enumerate(told):
        try:
            number, field, data = opens(each, raws)
            if field in values.setdefault(number, {}):
                raise ValueError("it is there twice")
            values[number][field] = loads(data, max_bytes=MAX_TEXT)
        except Refusal as no:
            raise ValueError(f"disclosure {index}: {no.body.message}") from None
        except (ValueError, KeyError, AttributeError) as bad:
            raise ValueError(f"disclosure {index}: {bad}") from None
    owner = next((v["user"] for n, v in values.items() if "user" in v and raws[n]["kind"] in _OWNERS), HIDDEN)
    records, veils, withheld = [], dict[int, str](), list[str]()
    for number, raw in enumerate(raws):
        try:
            closed = commitments(raw)
            if closed:
                veils[number] = digest(canonical_document(raw))
        except (ValueError, TypeError, KeyError, RecursionError) as bad:
            raise ValueError(f"record {number}: {bad}") from None
        mine = values.get(number, {})
        withheld += [f"{number}.{field}" for field in closed if field not in mine]
        records.append(with_values(raw, {field: mine.get(field, _blank(raw, field, owner)) for field in closed}))
    opened = sum(map(len, values.values()))
    return Shown(records, veils, withheld, opened, "0.user" not in withheld or owner != HIDDEN)


_OWNERS: Final = ("txn.opened", "approval.requested")
"""Kinds of records whose user is that of the task."""


def _blank(raw: Mapping[str, Any], field: str, owner: str) -> Any:
    """What stands in the place of a withheld value, so that a record can still be judged."""
    if field in ("facts.roles", "facts.groups", "roles", "groups"):
        return []
    if field == "user":
        # That two people are not one is judged where they are shown. Here each who decided is somebody of their own.
        return owner if raw["kind"] in _OWNERS else f"{HIDDEN} {raw['seq']}"
    return HIDDEN


__all__ = ["GROUPS", "HIDDEN", "Shown", "shown", "withhold"]
