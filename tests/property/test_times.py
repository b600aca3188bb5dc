"""Times as records write them, against the standard library."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from remit_broker.core.times import rfc3339


@given(
    st.floats(0, 4e9) | st.integers(0, 4_000_000_000).map(float) | st.integers(0, 4 * 10**15).map(lambda us: us / 1e6)
)
def test_a_time_is_written_as_the_standard_library_writes_it(seconds: float) -> None:
    expected = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    assert rfc3339(seconds) == expected
