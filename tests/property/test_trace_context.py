"""`traceparent` and `tracestate`: taken where they are as the W3C says, else ignored; what comes of them is safe in a header and a log."""

from __future__ import annotations

import re

from hypothesis import example, given
from hypothesis import strategies as st

from api.trace_context import TraceContext, continue_trace, read_trace_context

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01".encode()

_HEX = "0123456789abcdef"
_VALID = st.tuples(
    st.text(_HEX, min_size=32, max_size=32).filter(lambda text: set(text) != {"0"}),
    st.text(_HEX, min_size=16, max_size=16).filter(lambda text: set(text) != {"0"}),
    st.integers(0, 255),
)
_ANY_VALUE = st.binary(max_size=80) | st.text("0123456789abcdefABCDEF-gz \t\r\n", max_size=70).map(str.encode)
_HEADERS = st.lists(st.tuples(st.sampled_from([b"traceparent", b"tracestate", b"x-other"]), _ANY_VALUE | st.just(GOOD)), max_size=5)


def _read(*values: bytes, state: tuple[bytes, ...] = ()) -> TraceContext | None:
    return read_trace_context([*((b"traceparent", value) for value in values), *((b"tracestate", value) for value in state)])


@given(_VALID)
def test_every_valid_header_is_taken_as_it_is(parts: tuple[str, str, int]) -> None:
    trace_id, span_id, flags = parts
    read = _read(f"00-{trace_id}-{span_id}-{flags:02x}".encode())
    assert read == TraceContext(trace_id, span_id, bool(flags & 1))


@given(_HEADERS)
def test_whatever_is_sent_the_span_of_ours_is_well_formed(headers: list[tuple[bytes, bytes]]) -> None:
    ours = continue_trace(read_trace_context(headers))
    assert re.fullmatch(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-0[01]", ours.traceparent)
    assert ours.state.isprintable()


@given(_VALID, st.integers(0, 54), st.integers(0, 255))
@example(("1" * 32, "1" * 16, 1), 54, ord("\n"))
def test_one_octet_that_is_changed_gives_another_valid_header_or_none(parts: tuple[str, str, int], place: int, octet: int) -> None:
    good = f"00-{parts[0]}-{parts[1]}-{parts[2]:02x}".encode()
    read = _read(good[:place] + bytes([octet]) + good[place + 1 :])
    if octet not in (_HEX if good[place : place + 1] != b"-" else "-").encode():
        assert read is None


def test_a_later_version_is_read_as_far_as_we_know_it() -> None:
    for value in (f"01-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like"):
        assert _read(value.encode()) == TraceContext(TRACE, SPAN, sampled=True)


def test_what_the_specification_calls_invalid_is_ignored() -> None:
    invalid = (
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01\n",
        f"01-{TRACE}-{SPAN}-01.what",
        f"00-{TRACE}-{SPAN}",
        f"0-{TRACE}-{SPAN}-01",
        f"00-{TRACE}{SPAN}-01",
        f" 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-0x",
        "",
    )
    assert [value for value in invalid if _read(value.encode()) is not None] == []


def test_two_headers_are_none() -> None:
    assert _read(GOOD, GOOD) is None


def test_a_trace_goes_on_with_a_span_of_its_own() -> None:
    caller = _read(GOOD, state=(b"a=1",))
    ours = continue_trace(caller)
    assert (ours.trace_id, ours.sampled, ours.state) == (TRACE, True, "a=1")
    assert ours.span_id != SPAN


def test_without_a_caller_each_request_begins_a_trace() -> None:
    begun = [continue_trace(None) for _ in range(1000)]
    assert len({one.trace_id for one in begun}) == len({one.span_id for one in begun}) == 1000
    assert not any(one.sampled for one in begun)


def test_the_states_of_several_headers_are_one_list() -> None:
    read = _read(GOOD, state=(b"rojo=00f0,  congo=t61 ", b"", b"t@v=x y,"))
    assert read is not None
    assert read.state == "rojo=00f0,congo=t61,t@v=x y"


def test_a_state_that_is_not_well_formed_is_left_out_and_the_trace_goes_on() -> None:
    many = ",".join(f"a{number}=1" for number in range(33)).encode()
    for state in (b"a", b"=1", b"A=1", b"a=", b"a=1,a=2", b"a=\x1b[31m", b"a=1\n", b"a=b=c", "é=1".encode(), many, b"a" * 257 + b"=1"):
        assert _read(GOOD, state=(state,)) == TraceContext(TRACE, SPAN, sampled=True), state
    assert _read(GOOD, state=(many.rpartition(b",")[0],)) != TraceContext(TRACE, SPAN, sampled=True)


@given(st.binary(max_size=600))
def test_a_state_is_empty_or_what_was_sent_without_its_blanks(state: bytes) -> None:
    read = _read(GOOD, state=(state,))
    assert read is not None
    assert not read.state or re.sub(rb"[ \t,]", b"", read.state.encode()) == re.sub(rb"[ \t,]", b"", state)
