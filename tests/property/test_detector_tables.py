"""The tables of kinds keep what the search relies on."""

from __future__ import annotations

import re2  # type: ignore[import-untyped,unused-ignore]
from hypothesis import given, settings
from hypothesis import strategies as st

from remit_broker.adapters.content.readings import WAYS
from remit_broker.adapters.content.search import KINDS, Gate, group, options
from remit_broker.core.findings import REDACTABLE, class_of
from tests.support.secret_samples import SAMPLES
from tests.unit.test_disguise import WAYS as DISGUISES
from tests.unit.test_injection import HIDDEN
from tests.unit.test_injection import SAMPLES as SIGNS
from tests.unit.test_pii import SAMPLES as PERSONAL

COMPILED = [(kind, re2.compile(kind.pattern.encode(), options())) for kind in KINDS]
GATE = Gate([kind.key for kind in KINDS])
WAYS_GATE = Gate([way.key for way in WAYS])
TEXTS = [
    *(text for text, _ in SAMPLES.values()),
    *(text for texts in PERSONAL.values() for text in texts),
    *(text for texts in SIGNS.values() for text in texts),
    *HIDDEN.values(),
]
DISGUISED = [disguise(SAMPLES["npm_token"][1]) for disguise in DISGUISES.values()]

noise = st.one_of(
    st.text(max_size=8), st.sampled_from(("\n", " ", "-", "=", "@", "://", "\ufeff", "\u200b", "%41", "\x1b["))
)
mixtures = st.lists(st.one_of(st.sampled_from(TEXTS), st.sampled_from(DISGUISED), noise), max_size=6).map("".join)


@settings(deadline=None, max_examples=150)
@given(mixtures)
def test_whatever_a_pattern_finds_its_key_finds(text: str):
    data = text.encode(errors="surrogatepass")
    keys = set(GATE(data))
    for index, (kind, regex) in enumerate(COMPILED):
        for match in regex.finditer(data):
            start, end = group(match, regex)
            if start < end and (kind.check is None or kind.check(data[start:end])):
                assert index in keys, kind.name


@settings(deadline=None, max_examples=150)
@given(mixtures)
def test_whatever_can_be_read_in_another_way_has_its_key(text: str):
    data = text.encode(errors="surrogatepass")
    keys = set(WAYS_GATE(data))
    for index, way in enumerate(WAYS):
        for reading in way.read(data):
            if index not in keys and way.read.__name__ != "undisguised":
                # Runs that are too short for a key are too short for what is looked for.
                start, end = reading.back(0, len(reading.data))
                assert end - start < 32
            start, end = reading.back(0, len(reading.data))
            assert 0 <= start <= end <= len(data)


def test_every_key_is_found_in_the_samples_of_its_kind():
    data = "\n\n".join(TEXTS).encode(errors="surrogatepass")
    missing = {kind.name for index, kind in enumerate(KINDS) if index not in GATE(data)}
    assert missing == set()


def test_every_kind_can_be_redacted():
    assert {class_of(kind.name) for kind in KINDS} == REDACTABLE
