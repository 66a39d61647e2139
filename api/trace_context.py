"""W3C Trace Context (https://www.w3.org/TR/trace-context/): the trace that a request is part of, as its headers say, or one begun here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from api.random_octets import random_octets

_TRACEPARENT: Final = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_NO_VERSION: Final = b"ff"
_VERSION_0: Final = b"00"
_NO_TRACE_ID: Final = b"0" * 32
_NO_SPAN_ID: Final = b"0" * 16
_SAMPLED: Final = 0x01
_TRACE_OCTETS: Final = 16
_SPAN_OCTETS: Final = 8

_KEY: Final = rb"[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13}"
_VALUE: Final = rb"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
_MEMBER: Final = re.compile(rb"(%b)=(%b)" % (_KEY, _VALUE))
_MAX_MEMBERS: Final = 32


class TraceContext(NamedTuple):
    """One span of a trace: the caller's, as its `traceparent` says, or ours."""

    trace_id: str
    """32 hexadecimal digits, lower case."""
    span_id: str
    """16 hexadecimal digits, lower case."""
    sampled: bool
    """Whether the caller records the trace, or of ours: whether we do."""
    state: str = ""
    """`tracestate`: what the vendors of tracing systems tell one another, each member well-formed."""

    @property
    def traceparent(self) -> bytes:
        """The header."""
        return b"00-%b-%b-%02x" % (self.trace_id.encode(), self.span_id.encode(), self.sampled)


def read_trace_context(headers: Iterable[tuple[bytes, bytes]]) -> TraceContext | None:
    """The caller's span; None where there is no `traceparent`, more than one, or one that is not valid (section 3.2).

    A `tracestate` that is not valid is left out; what is wrong with it says nothing about the trace (section 3.3).
    """
    parents: list[bytes] = []
    states: list[bytes] = []
    for name, value in headers:
        if name == b"traceparent":
            parents.append(value)
        elif name == b"tracestate":
            states.append(value)
    match = _TRACEPARENT.fullmatch(parents[0]) if len(parents) == 1 else None
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    # A later version may go on behind a dash (section 3.2.4); the first one ends here.
    if version == _NO_VERSION or (version == _VERSION_0 and more) or trace_id == _NO_TRACE_ID or span_id == _NO_SPAN_ID:
        return None
    return TraceContext(trace_id.decode(), span_id.decode(), bool(int(flags, 16) & _SAMPLED), _state(states) if states else "")


def continue_trace(caller: TraceContext | None) -> TraceContext:
    """A new span in the caller's trace, or in a new one, that nobody here records."""
    octets = random_octets(_TRACE_OCTETS + _SPAN_OCTETS)
    if not any(octets[:_TRACE_OCTETS]) or not any(octets[_TRACE_OCTETS:]):
        return continue_trace(caller)  # all zeros is no id
    if caller is not None:
        return caller._replace(span_id=octets[_TRACE_OCTETS:].hex())
    return TraceContext(octets[:_TRACE_OCTETS].hex(), octets[_TRACE_OCTETS:].hex(), sampled=False)


def _state(values: list[bytes]) -> str:
    """The members of all headers together; empty unless every one is well-formed and named once."""
    members = [member.strip(b" \t") for value in values for member in value.split(b",")]
    members = [member for member in members if member]
    matches = [_MEMBER.fullmatch(member) for member in members[: _MAX_MEMBERS + 1]]
    keys = {match[1] for match in matches if match is not None}
    if len(members) > _MAX_MEMBERS or len(keys) < len(members):
        return ""
    return b",".join(members).decode("ascii")
