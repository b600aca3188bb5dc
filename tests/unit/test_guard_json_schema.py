"""The bound on a validator's work, with a small bound: without it the large one could only be seen by waiting."""

from __future__ import annotations

import pytest

from remit_broker.adapters import json_schema
from tests.unit.test_json_schema import DOUBLING, nested, refused


def test_what_is_more_work_than_the_bound_is_refused_and_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_schema, "MAX_WORK", 200)
    few, many = refused(DOUBLING, nested(1)), refused(DOUBLING, nested(12))
    assert few is None or few.rule != "schema.work"
    assert many is not None and many.rule == "schema.work"
