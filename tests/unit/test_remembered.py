"""What is remembered is bounded by weight: whoever asks decides how large one entry is."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from remit_broker.adapters.detectors import ContentDetectors
from remit_broker.adapters.ledger_memory import LedgerMemory
from remit_broker.adapters.mint import KeyMint
from remit_broker.adapters.remembered import Remembered
from remit_broker.core.fold import apply
from remit_schemas.keys import KeySet, SigningKey
from remit_schemas.scope import Detail
from tests.support.story import Story, as_stored, closing, hop_id, opened, opening


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 40), st.booleans())))
def test_no_more_than_the_weight_is_kept_and_the_newest_stay(steps: list[tuple[int, int, bool]]) -> None:
    kept: Remembered[int, int] = Remembered(100)
    weights: dict[int, int] = {}
    for key, weight, drop in steps:
        if drop:
            kept.drop(key)
            weights.pop(key, None)
        else:
            kept.put(key, weight, weight)
            weights.pop(key, None)
            weights[key] = weight
        while sum(weights.values()) > 100:
            del weights[next(iter(weights))]
        assert kept.weight == sum(weights.values()) <= 100
        assert len(kept) == len(weights)
    assert [kept.get(key) for key in weights] == list(weights.values())


def test_what_is_heavier_than_all_is_not_kept() -> None:
    kept: Remembered[str, str] = Remembered(10)
    kept.put("a", "a", 5)
    kept.put("b", "b", 11)
    assert kept.get("b") is None and kept.weight == 0


def test_long_names_of_members_are_not_kept() -> None:
    detectors = ContentDetectors()
    detectors.scan({"warm": "up"})
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(40):
            detectors.scan({f"{number:04}" + "n" * 200_000: 1})
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 2_000_000


def test_a_closed_hop_keeps_no_scope() -> None:
    fold = apply(None, as_stored(opened(scope=(Detail(resource="agent/**"),))))
    fold = apply(fold, as_stored(opening(fold, hop_id(1), scope=fold.nodes[fold.root].scope)))
    assert fold.nodes[hop_id(1)].scope
    fold = apply(fold, as_stored(closing(fold, hop_id(1))))
    assert fold.nodes[hop_id(1)].scope == ()


def _known(txn: str, hops: int) -> Any:
    fold = SimpleNamespace(nodes=range(hops), txn=txn)
    return SimpleNamespace(fold=fold, at=1)


def test_large_txns_push_out_more_than_one_small_one() -> None:
    memory = LedgerMemory(cast("Any", SimpleNamespace(reconnects=0)), 8)
    for number in range(8):
        memory.remember(("t", str(number)), _known(str(number), 3))
    assert len(memory) == 8
    memory.remember(("t", "large"), _known("large", 32 * 5))
    assert len(memory) == 4


def test_grants_whose_signatures_are_remembered_are_bounded_by_bytes() -> None:
    key = SigningKey.from_seed(bytes(32))
    story = Story()
    mint = KeyMint("http://127.0.0.1", key, KeySet([key.public]), cast("Any", SimpleNamespace(now=lambda: 0.0)), 1000)
    mint._verified.put("x" * 900, cast("Any", story), 900)
    mint._verified.put("y" * 600, cast("Any", story), 600)
    assert len(mint._verified) == 1
