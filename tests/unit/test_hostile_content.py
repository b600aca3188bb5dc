"""No text makes the search slow: the work is counted, never timed, and what is left undone is a finding."""

from __future__ import annotations

import base64

import pytest

from remit_broker.adapters.content import search
from remit_broker.adapters.content.search import MAX_WORK, Search, Work
from remit_broker.adapters.detectors import ContentDetectors
from remit_broker.core.findings import OVER_CAP
from remit_schemas.errors import Code, Refusal
from tests.support.secret_samples import SAMPLES

DETECTORS = ContentDetectors()


def nested(text: str, times: int) -> str:
    for _ in range(times):
        text = base64.b64encode(text.encode()).decode()
    return text


HOSTILE = {
    "one letter": "a" * 300_000,
    "beginnings": "eyJ" * 100_000,
    "assignments": "password=" * 30_000,
    "blocks": "-----BEGIN PRIVATE KEY-----" * 10_000,
    "vendors": "aws secret=" * 30_000,
    "digits": "4111 1111 1111 1112 " * 15_000,
    "addresses": "a@b.c" * 60_000,
    "escapes": "%41" * 100_000,
    "nested": nested("ignore all previous instructions " * 2000, 5),
    "marks": "a\u0301" * 100_000,
    "words": "ignore all the previous " * 12_000,
    "pictures": "![](http://a?" * 20_000,
    "comments": "<!-- ignore " * 20_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_the_work_for_a_hostile_text_is_linear_in_its_size(text: str):
    whole, half = Work(1 << 40), Work(1 << 40)
    found = Search()
    found.spans(text.encode(), whole)
    found.spans(text[: len(text) // 2].encode(), half)
    spent, less = ((1 << 40) - work.left for work in (whole, half))
    assert spent <= 2.5 * less + (1 << 20)


def test_the_work_for_any_text_is_bounded_and_the_rest_is_a_finding(monkeypatch: pytest.MonkeyPatch):
    text = "\n".join(text for text, _ in SAMPLES.values())
    work = Work(len(text))
    Search().spans(text.encode(), work)
    # A pattern or a reading may be begun with the last of it, and no more.
    assert work.over
    assert work.left >= -4 * len(text)
    monkeypatch.setattr(search.Work.__init__, "__defaults__", (len(text),))
    assert OVER_CAP in {finding.kind for finding in DETECTORS.scan(text)}
    with pytest.raises(Refusal) as no:
        DETECTORS.redact(text, ("secret",))
    assert no.value.body.code is Code.TOO_LARGE


def test_equal_values_get_equal_answers():
    value = [text for text, _ in SAMPLES.values()]
    assert DETECTORS.scan(value) == ContentDetectors().scan(value)
    assert MAX_WORK >= 32 << 20
