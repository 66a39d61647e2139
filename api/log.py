"""One pipeline for every log line, ours and the libraries': structured, one line an event, to standard output. See docs/logs.md."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final, Literal, TextIO

import msgspec
import structlog
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, Processor, WrappedLogger

from api.log_writer import LogWriter, standard_output

_HANDLER_NAME: Final = "lensgate"
_MAX_FRAMES: Final = 30
_PLAIN_TYPES: Final = frozenset({int, float, bool, type(None)})
_MAX_MESSAGE_CHARACTERS: Final = 2000

_encode: Final = msgspec.json.Encoder().encode


REQUEST_IDS: Final[ContextVar[Mapping[str, str] | None]] = ContextVar("request_ids", default=None)
"""While a request is served: what names it, on every line that is written meanwhile."""


def configure_logging(
    level: Literal["debug", "info", "warning", "error"],
    format: Literal["auto", "json", "text"],  # noqa: A002 # what the setting is called
    *,
    process: str | None = None,
    stream: TextIO | None = None,
) -> None:
    """Send everything that is logged in this process through one pipeline; calling it again replaces the former set-up.

    Args:
        level: the least serious level that is written.
        format: `json` (one object a line), `text`, or `auto`: text where the lines go to a terminal, else JSON.
        process: what this process is called, on every line beside its pid: `supervisor`, `api-0`, `engine-0`.
        stream: where the lines go, each before its call returns; when None, to standard output, for which nobody waits.
    """
    output: TextIO | LogWriter = standard_output() if stream is None else stream
    as_text = format == "text" or (format == "auto" and output.isatty())
    numeric_level = logging.getLevelNamesMapping()[level.upper()]
    origin = {} if process is None else {"process": process, "pid": os.getpid()}

    clock = _Clock()

    def head(_: WrappedLogger, level: str, event: EventDict) -> EventDict:
        return {
            "timestamp": clock.now(),
            "level": level,
            "event": event.pop("event"),
            **origin,
            **(REQUEST_IDS.get() or {}),
            **event,
        }

    # Neither form ever holds local variables: they may be secrets.
    exceptions = structlog.processors.ExceptionRenderer(_format_traceback if as_text else _traceback_transformer())
    last: list[Processor] = [exceptions, _escape_event, _render_text if as_text else _render_json]
    structlog.configure(
        processors=[head, *last],
        wrapper_class=structlog.make_filtering_bound_logger(numeric_level),
        logger_factory=lambda *_: _Lines(output),
        cache_logger_on_first_use=False,
    )
    _configure_stdlib(output, numeric_level, head, last)
    if isinstance(output, LogWriter):
        output.on_drops(tell=_tell_of_dropped_lines)
        _log_what_nobody_catches()


class _Lines:
    """What structlog hands its lines to."""

    def __init__(self, output: TextIO | LogWriter) -> None:
        self._write = output.write
        self._flush = output.flush

    def info(self, line: str) -> None:
        self._write(line + "\n")

    def error(self, line: str) -> None:
        # What this tells of may be what the process dies of.
        self._write(line + "\n")
        self._flush()

    debug = info
    warning = critical = error


class _Clock:
    """The time of day, whose seconds are put into words once a second: more often would take longer than all other fields of a line."""

    def __init__(self) -> None:
        self._second = (0, "")

    def now(self) -> str:
        """RFC 3339, in UTC, to the microsecond."""
        second, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
        known, text = self._second
        if second != known:
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = (second, text)
        return f"{text}.{microseconds:06}Z"


def _configure_stdlib(output: TextIO | LogWriter, numeric_level: int, head: Processor, last: list[Processor]) -> None:
    handler = logging.StreamHandler(output)
    handler.name = _HANDLER_NAME
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[head, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers = [old for old in root.handlers if old.name != _HANDLER_NAME] + [handler]
    root.setLevel(numeric_level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    # Its lines hold the query string, and the context layer writes the request line.
    logging.getLogger("uvicorn.access").disabled = True
    # The libraries' own detail (SQL statements, sockets, "Started server process [7]") is nobody's business: our events tell it.
    for name in ("uvicorn.error", "alembic", "sqlalchemy", "aiosqlite", "asyncio", "PIL"):
        logging.getLogger(name).setLevel(max(numeric_level, logging.WARNING))
    # It warns of whatever a caller sent, byte by byte; the request's own line says `malformed_body`.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    logging.captureWarnings(capture=True)


def _log_what_nobody_catches() -> None:
    """Python's own reports of it are many lines on standard error, in which the message of an exception could look like a line of ours."""

    def log(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None, where: str) -> None:
        # Without an instance there is nothing to tell but the kind (the interpreter had no memory to make one).
        error = kind() if error is None else error
        structlog.get_logger().error("uncaught_exception", where=where, exc_info=(kind, error, trace))

    def name_of(culprit: object) -> str:
        return str(getattr(culprit, "__qualname__", type(culprit).__qualname__))  # its repr could be anything

    sys.excepthook = lambda kind, error, trace: log(kind, error, trace, "main")
    threading.excepthook = lambda args: log(
        args.exc_type, args.exc_value, args.exc_traceback, args.thread.name if args.thread else "thread"
    )
    sys.unraisablehook = lambda args: log(args.exc_type, args.exc_value, args.exc_traceback, name_of(args.object))


def _tell_of_dropped_lines(lines: int) -> None:
    structlog.get_logger().warning("log_lines_dropped", lines=lines)


def _traceback_transformer() -> ExceptionDictTransformer:
    return ExceptionDictTransformer(show_locals=False, max_frames=_MAX_FRAMES, use_rich=False)


def _format_traceback(exc_info: tuple[Any, Any, Any]) -> str:
    return "".join(traceback.TracebackException(*exc_info, limit=_MAX_FRAMES, capture_locals=False).format())


def _escape_event(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Make control characters of hostile text visible, so that no line can be forged and no terminal driven."""
    for name, value in event.items():
        kind = type(value)
        # Nearly every field: a call for each would take most of the line's time.
        if kind in _PLAIN_TYPES or (kind is str and len(value) <= _MAX_MESSAGE_CHARACTERS and value.isprintable()):
            continue
        event[name] = _escape_lines(value) if name == "exception" and isinstance(value, str) else _escape(value)
    return event


def _escape(value: object) -> object:
    if type(value) in _PLAIN_TYPES:  # asking an abstract class like Mapping about each takes long
        return value
    if isinstance(value, str):
        if len(value) > _MAX_MESSAGE_CHARACTERS:
            value = value[:_MAX_MESSAGE_CHARACTERS] + "…"
        return value if value.isprintable() else "".join(map(_escape_character, value))
    if isinstance(value, Mapping):
        return {str(_escape(key)): _escape(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_escape(item) for item in value]
    return value if isinstance(value, (int, float)) else _escape(repr(value))


def _escape_lines(text: str) -> str:
    # Indented, so that a line inside an exception's message cannot pass for a log line of its own.
    return "\n".join("    " + str(_escape(line)) for line in text.rstrip("\n").split("\n"))


def _escape_character(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


def _render_json(_: WrappedLogger, __: str, event: EventDict) -> str:
    return _encode(event).decode()


def _render_text(_: WrappedLogger, __: str, event: EventDict) -> str:
    exception = event.pop("exception", None)
    head = f"{event.pop('timestamp')} {event.pop('level'):<8} {event.pop('event')}"
    line = "  ".join([head, *(f"{name}={_quoted(value)}" for name, value in event.items())])
    return line if exception is None else f"{line}\n{exception}"


def _quoted(value: object) -> str:
    # Unquoted, hostile text with spaces in it could look like fields of ours.
    text = str(value)
    return msgspec.json.encode(text).decode() if not text or any(mark in text for mark in ' ="') else text
