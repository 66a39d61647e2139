"""The log: whatever hostile text is logged, an event is one line, a field is one field, and no terminal is driven."""

from __future__ import annotations

import io
import json
from typing import Literal

import pytest
import structlog
from hypothesis import example, given
from hypothesis import strategies as st

from api.log import configure_logging

_HOSTILE = st.text(st.sampled_from('\n\r\x1b\x00\x85\u2028\u202e\ud800\t\\" =[{é😀') | st.characters(), max_size=30)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.binary(max_size=9) | _HOSTILE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_HOSTILE, inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=8,
)
pytestmark = pytest.mark.usefixtures("restored_logging")
_FORMS: tuple[Literal["json", "text"], ...] = ("json", "text")


def _written(form: Literal["json", "text"], *, failure: Exception | None = None, **fields: object) -> str:
    stream = io.StringIO()
    configure_logging("info", form, stream=stream)
    structlog.get_logger().info("event", exc_info=failure, **fields)
    return stream.getvalue()


@given(_VALUES, _HOSTILE)
@example({"\ud800": "\x1b[2J"}, "\r\n{}")
@example(2**64, "a")
def test_an_event_is_one_line_of_printable_text(value: object, text: str) -> None:
    for form in _FORMS:
        line = _written(form, value=value, text=text)
        assert line.endswith("\n")
        assert line[:-1].isprintable()
        line.encode("utf-8")


@given(_VALUES, _HOSTILE)
def test_a_json_line_is_an_object_with_the_fields_that_were_logged_and_no_others(value: object, text: str) -> None:
    line = json.loads(_written("json", value=value, text=text))
    assert line.keys() == {"timestamp", "level", "event", "value", "text"}
    assert line["event"] == "event"
    if text.isprintable():
        assert line["text"] == text


@given(_HOSTILE)
def test_a_text_line_has_no_field_that_was_not_logged(text: str) -> None:
    """What could look like a field of ours stands inside quotes."""
    head, _, rest = _written("text", text=text)[:-1].partition("  text=")
    assert head.split()[-1] == "event"
    quoted = rest.startswith('"')
    if quoted:
        assert isinstance(json.loads(rest), str)
    else:
        assert not set(rest) & set(' ="')


@given(_HOSTILE)
def test_an_exceptions_message_cannot_forge_a_line(message: str) -> None:
    line = _written("json", failure=ValueError(message))
    assert line.count("\n") == 1
    assert line[:-1].isprintable()
    first, *others = _written("text", failure=ValueError(message))[:-1].split("\n")
    assert first.endswith("event")
    assert all(other.startswith("    ") and other.isprintable() for other in others)
