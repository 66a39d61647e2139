"""Random octets: as many as asked for, and none twice."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.random_octets import RandomOctets


@given(st.lists(st.integers(0, 5000), max_size=30))
def test_as_many_come_as_are_asked_for_and_none_twice(counts: list[int]) -> None:
    numbers = iter(range(1 << 24))
    with pytest.MonkeyPatch.context() as patch:
        # In place of random ones octets that tell, in fours, which they are.
        patch.setattr(os, "urandom", lambda count: b"".join(next(numbers).to_bytes(4) for _ in range(-(-count // 4)))[:count])
        octets = RandomOctets()
        taken = [octets.take(4 * count) for count in counts]
    assert [len(one) for one in taken] == [4 * count for count in counts]
    seen = [int.from_bytes(one[at : at + 4]) for one in taken for at in range(0, len(one), 4)]
    assert seen == sorted(set(seen))
