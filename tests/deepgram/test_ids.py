"""Request ids."""

from __future__ import annotations

import uuid

from hypothesis import given
from hypothesis import strategies as st

from gateway.deepgram.ids import uuid7

MS = st.integers(0, 2**48 - 1)
BITS = st.integers(0, 2**80 - 1)


@given(MS, BITS)
def test_it_is_a_uuid_of_version_7(unix_ms: int, bits: int) -> None:
    """Clients parse the id; the Rust SDK refuses anything that is no UUID."""
    text = uuid7(unix_ms, bits)
    parsed = uuid.UUID(text)
    assert (str(parsed), parsed.version, parsed.variant) == (text, 7, uuid.RFC_4122)
    assert parsed.int >> 80 == unix_ms


@given(MS, st.integers(0, 2**74 - 1), st.integers(0, 73))
def test_every_random_bit_counts(unix_ms: int, bits: int, flipped: int) -> None:
    """74 bits are what keeps two ids of one millisecond apart."""
    assert uuid7(unix_ms, bits) != uuid7(unix_ms, bits ^ 1 << flipped)


@given(MS, MS, BITS, BITS)
def test_ids_sort_by_time(one: int, two: int, bits: int, other: int) -> None:
    """That is what version 7 is for."""
    if one < two:
        assert uuid7(one, bits) < uuid7(two, other)
