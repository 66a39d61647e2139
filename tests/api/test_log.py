from __future__ import annotations

import io
import json
import logging
import warnings
from datetime import UTC, datetime
from typing import Any, Literal

import pytest
import structlog

from api.errors import MalformedBody
from api.log import REQUEST_IDS, configure_logging
from api.multipart import parse_files

Format = Literal["json", "text"]
Level = Literal["debug", "info", "warning", "error"]

HOSTILE = "a\r\n2026-01-01T00:00:00Z info fake\x1b[31m\x9b\u2028\u202e\udc80\x7f"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _json_lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def _fail() -> None:
    password = "hunter2"  # noqa: F841 # it must not reach the log
    raise ValueError(HOSTILE)


def test_json_is_one_object_a_line_with_time_and_level() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream=stream)
    structlog.get_logger().info("started", port=8000)

    [line] = _json_lines(stream)
    written_at = datetime.fromisoformat(line.pop("timestamp"))
    assert written_at.utcoffset() == UTC.utcoffset(None)
    assert line == {"level": "info", "event": "started", "port": 8000}


def test_the_libraries_log_goes_the_same_way() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream=stream)
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request: %s", HOSTILE)

    [line] = _json_lines(stream)
    assert (line["level"], line["logger"]) == ("warning", "uvicorn.error")
    assert line["event"].startswith(r"Invalid HTTP request: a\r\n2026")


def test_uvicorns_access_lines_are_not_written_because_they_hold_the_query() -> None:
    stream = io.StringIO()
    configure_logging("debug", "json", stream=stream)
    logging.getLogger("uvicorn.access").info("GET /?secret")

    assert stream.getvalue() == ""


def test_what_is_wrong_with_a_callers_multipart_body_is_no_line_of_its_own() -> None:
    stream = io.StringIO()
    configure_logging("debug", "json", stream=stream)
    with pytest.raises(MalformedBody):
        parse_files(b"hostile", "multipart/form-data; boundary=b", max_files=1)

    assert stream.getvalue() == ""


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_hostile_text_stays_on_one_line_and_drives_no_terminal(log_format: Format) -> None:
    stream = io.StringIO()
    configure_logging("info", log_format, stream=stream)
    structlog.get_logger().info("request", path=HOSTILE, nested={HOSTILE: [HOSTILE]})

    text = stream.getvalue()
    assert text.count("\n") == len(text.splitlines()) == 1
    assert text.rstrip("\n").isprintable()


def test_text_quotes_values_that_could_pass_for_fields() -> None:
    stream = io.StringIO()
    configure_logging("info", "text", stream=stream)
    structlog.get_logger().info("request", path="/a  status=200", agent='"', empty="", status=404)

    assert stream.getvalue().endswith('request  path="/a  status=200"  agent="\\""  empty=""  status=404\n')


@pytest.mark.parametrize("log_format", ["json", "text"])
@pytest.mark.parametrize("logger", ["structlog", "stdlib"])
def test_attack_103_an_exception_is_written_without_local_variables(log_format: Format, logger: str) -> None:
    stream = io.StringIO()
    configure_logging("info", log_format, stream=stream)
    try:
        _fail()
    except ValueError as error:
        if logger == "structlog":
            structlog.get_logger().error("failed", exc_info=error)
        else:
            logging.getLogger("library").exception("failed")

    text = stream.getvalue()
    assert "_fail" in text
    assert "ValueError" in text
    assert "hunter2" not in text
    assert all(line.isprintable() for line in text.split("\n"))


def test_a_line_of_an_exceptions_message_cannot_pass_for_a_log_line() -> None:
    stream = io.StringIO()
    configure_logging("info", "text", stream=stream)
    try:
        _fail()
    except ValueError as error:
        structlog.get_logger().error("failed", exc_info=error)

    first, *others = stream.getvalue().rstrip("\n").split("\n")
    assert first.endswith("failed")
    assert all(line.startswith("    ") for line in others)


def test_auto_is_text_on_a_terminal_and_json_elsewhere() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        configure_logging("info", "auto", stream=stream)
        structlog.get_logger().info("started")

    assert not terminal.getvalue().startswith("{")
    assert pipe.getvalue().startswith("{")


@pytest.mark.parametrize(("level", "written"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_the_level_bounds_what_is_written(level: Level, written: int) -> None:
    stream = io.StringIO()
    configure_logging(level, "json", stream=stream)
    for name in ("debug", "info", "warning", "error"):
        getattr(structlog.get_logger(), name)("ours")
        getattr(logging.getLogger("library"), name)("theirs")

    assert len(_json_lines(stream)) == 2 * written


def test_configuring_again_replaces_the_former_set_up() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure_logging("info", "json", stream=first)
    configure_logging("info", "json", stream=second)
    logging.getLogger("library").info("theirs")
    structlog.get_logger().info("ours")

    assert first.getvalue() == ""
    assert [line["event"] for line in _json_lines(second)] == ["theirs", "ours"]


def test_handlers_of_others_are_left_alone() -> None:
    other = logging.NullHandler()
    logging.getLogger().addHandler(other)
    configure_logging("info", "json", stream=io.StringIO())

    assert other in logging.getLogger().handlers


def test_warnings_are_logged() -> None:
    stream = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        configure_logging("info", "json", stream=stream)
        warnings.warn("old", stacklevel=1)
        logging.captureWarnings(capture=False)

    [line] = _json_lines(stream)
    assert (line["logger"], line["level"]) == ("py.warnings", "warning")


def test_what_names_the_request_is_on_every_line_while_it_is_served() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream=stream)
    token = REQUEST_IDS.set({"request_id": "abc"})
    structlog.get_logger().info("ours")
    logging.getLogger("library").info("theirs")
    REQUEST_IDS.reset(token)
    structlog.get_logger().info("ours")

    assert [line.get("request_id") for line in _json_lines(stream)] == ["abc", "abc", None]


def test_the_time_of_day_is_right_and_never_goes_back() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream=stream)
    before = datetime.now(UTC)
    for _ in range(100):
        structlog.get_logger().info("tick")

    texts = [line["timestamp"] for line in _json_lines(stream)]
    assert texts == sorted(texts)
    assert {len(text) for text in texts} == {len("2026-11-23T12:00:00.000000Z")}
    times = [datetime.fromisoformat(text) for text in texts]
    assert before <= times[0] <= times[-1] <= datetime.now(UTC)


def test_very_long_text_is_cut() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream=stream)
    structlog.get_logger().info("x", text="a" * 1_000_000)

    assert len(stream.getvalue()) < 3000
