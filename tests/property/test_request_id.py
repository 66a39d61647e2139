"""The request id: the caller's own where it is one good one, else ours; whatever it is, it is safe in a header and in a log line."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from api.middleware.context import request_id_from

_GOOD = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_VALUES = st.binary(max_size=70) | st.from_regex(_GOOD, fullmatch=True) | st.from_regex(_GOOD, fullmatch=True).map(b"%b\n".__mod__)
_HEADERS = st.lists(st.tuples(st.sampled_from([b"x-request-id", b"x-other"]), _VALUES), max_size=4)


@given(_HEADERS)
def test_the_callers_id_is_taken_only_where_it_is_one_good_one(headers: list[tuple[bytes, bytes]]) -> None:
    given_ids = [value for name, value in headers if name == b"x-request-id"]
    chosen = request_id_from(headers).encode("ascii")
    assert _GOOD.fullmatch(chosen)
    if len(given_ids) == 1 and _GOOD.fullmatch(given_ids[0]):
        assert chosen == given_ids[0]
    else:
        assert chosen not in given_ids


def test_no_two_requests_get_the_same_id() -> None:
    assert len({request_id_from([]) for _ in range(1000)}) == 1000
