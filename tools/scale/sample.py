"""Txns as a broker writes them: sealed records of ordinary size, with grants that are really signed."""

from __future__ import annotations

import secrets
import time
from typing import Final

from remit_broker.adapters.jetstream import Message
from remit_broker.adapters.ledger_memory import subject_of
from remit_broker.core.fold import Fold, extend
from remit_schemas import base64url
from remit_schemas.budget import Budget
from remit_schemas.grant import Actor, Claims, mint
from remit_schemas.keys import SigningKey
from remit_schemas.records import HopClosed, HopOpened, Record, TxnOpened, encode_entry
from remit_schemas.scope import parse_scope
from tests.support.story import closing, opened, opening

SCOPE: Final = tuple(parse_scope(text) for text in ("mcp/git/*", "mcp/files/read", "agent/researcher/*"))
BUDGET: Final = Budget(5_000_000, 1_000_000, 1_000_000)
HOLD: Final = Budget(1000, 100, 5)


class Txns:
    """Draws txns. All grants are the same one: the ledger keeps their text and does not read it."""

    def __init__(self) -> None:
        key, now, txn = SigningKey.from_seed(secrets.token_bytes(32)), int(time.time()), secrets.token_hex(16)
        claims = Claims(
            iss="http://127.0.0.1:7480", sub="ann@example.org", tenant="default", aud="researcher", iat=now,
            exp=now + 60, jti=f"{txn}.{secrets.token_hex(8)}.1", txn=txn, depth=1,
            max_depth=8, rec=secrets.token_hex(32), authorization_details=SCOPE, budget=HOLD,
            labels=("*",), act=Actor(sub="planner"), par=base64url.encode(secrets.token_bytes(32)),
        )  # fmt: skip
        self.grant = mint(claims, key)

    def first(self) -> TxnOpened:
        """The record that opens a new txn."""
        return opened(secrets.token_hex(16), user="ann@example.org", scope=SCOPE, budget=BUDGET)

    def entry(self, record: Record) -> bytes:
        """The message that the ledger stores."""
        return encode_entry(record, None if isinstance(record, HopClosed) else self.grant)

    def hops(self, fold: Fold, count: int) -> tuple[Fold, list[HopOpened | HopClosed]]:
        """``count`` hops below the root, each opened and closed."""
        records: list[HopOpened | HopClosed] = []
        for _ in range(count):
            hop = secrets.token_hex(8)
            record: HopOpened | HopClosed = opening(fold, hop, budget=HOLD, scope=SCOPE[:1], resource="mcp/git/git_log")
            fold = extend(fold, record)
            records.append(record)
            record = closing(fold, hop, Budget(100, 10, 0), result_digest="f" * 64, result_size=1000)
            fold = extend(fold, record)
            records.append(record)
        return fold, records

    def whole(self, hops: int) -> tuple[Fold, list[Record]]:
        """A txn of so many closed hops, still open itself."""
        first = self.first()
        fold, records = self.hops(extend(None, first), hops)
        return fold, [first, *records]

    def messages(self, records: list[Record], seq: int) -> list[Message]:
        """The records as the stream has them, from ``seq`` on."""
        return [
            Message(number, subject_of((record.tenant, record.txn)), self.entry(record))
            for number, record in enumerate(records, start=seq)
        ]
