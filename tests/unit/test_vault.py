"""Commitments to contents, and what operators' acts amount to."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Any

import pytest

from remit_broker.adapters.mint import HmacDigester
from remit_broker.core.admin import AdminRecord, follow
from remit_broker.core.revocations import Entry
from remit_broker.core.vault import Content, Slot, disclosure, opens, standing
from remit_schemas.canonical import canonical

TXN = "a" * 32
DIGESTER = HmacDigester(b"k" * 32)
ARGS = canonical({"path": "a"})
SLOT = Slot("default", "ann", "arguments", TXN, "b" * 16, DIGESTER.digest(TXN, ARGS))
RECORDS = [{"kind": "txn.opened"}, {"kind": "hop.opened", "args_digest": SLOT.digest}]
TOLD = disclosure(Content(1, "args_digest", SLOT, False), ARGS, DIGESTER.salt(TXN, ARGS))


def test_what_was_committed_to_opens_its_commitment() -> None:
    assert opens(TOLD, RECORDS) == (1, "args_digest")


def other(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda told: {**told, **changes}


@pytest.mark.parametrize(
    "change",
    [
        other(text='{"path":"b"}'), other(salt="A" * 43), other(salt=""), other(salt="é"), other(text=None),
        other(text=" " + TOLD["text"]),
        other(record=0), other(record=2), other(record=True), other(record=-1), other(field="result_digest"),
        other(more=1), lambda told: {}, lambda told: [],
    ],
)  # fmt: skip
def test_a_forged_disclosure_is_refused(change: Callable[[dict[str, Any]], Any]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        opens(change(TOLD), RECORDS)


def test_a_salt_opens_one_commitment_and_no_guess_at_another() -> None:
    """Whoever is shown one content with its salt cannot try out what another one of the task may have been."""
    salt, guess = DIGESTER.salt(TXN, ARGS), canonical({"path": "b"})
    assert DIGESTER.digest(TXN, ARGS) == hmac.new(salt, ARGS, "sha256").hexdigest()
    assert DIGESTER.digest(TXN, guess) != hmac.new(salt, guess, "sha256").hexdigest()
    assert DIGESTER.digest(TXN, ARGS) == DIGESTER.digest(TXN, ARGS), "equal contents are seen to be equal in a task"
    assert DIGESTER.digest("c" * 32, ARGS) != DIGESTER.digest(TXN, ARGS)


def chain(*said: tuple[str, str, str]) -> list[AdminRecord]:
    found: list[AdminRecord] = []
    for what, state, user in said:
        entry = Entry(kind=what, name=user, who="op", at="2026-01-01T00:00:00.000Z", state=state)  # type: ignore[arg-type]
        found.append(follow(found[-1] if found else None, "default", entry))
    return found


def test_what_stands_is_what_was_said_last_of_each() -> None:
    found = standing(
        chain(
            ("hold", "held", "ann"), ("hold", "held", "bob"), ("erasure", "erasing", "eve"), ("hold", "released", "ann"),
            ("erasure", "erasing", "zoe"), ("erasure", "erased", "zoe"), ("user", "revoked", "bob"),
            ("erasure", "erasing", "hal"), ("erasure", "spared", "hal"),
        )
    )  # fmt: skip
    assert (list(found.holds), list(found.erasing), list(found.erased)) == (["bob"], ["eve"], ["zoe"])
