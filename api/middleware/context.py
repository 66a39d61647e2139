"""The outermost layer: every request gets an id and its place in a trace, every answer its common headers; each is logged and counted."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Final

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.log import REQUEST_IDS
from api.metrics import METHODS, UNMATCHED, Metrics
from api.random_octets import random_octets
from api.record import RECORD_KEY, RequestRecord, Stage
from api.trace_context import continue_trace, read_trace_context
from security import rate_limits
from security.middleware.client_limit import TIER_KEY
from security.principal import STATE_KEY, Principal
from security.rate_limits import Verdict

if TYPE_CHECKING:  # it loads OpenTelemetry
    from api.otlp_tracer import OtlpTracer, RequestSpan

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_REQUEST_ID_OCTETS: Final = 16
_TIMED_PATHS: Final = frozenset({"/predict", "/predict/batch"})
_MAX_LOGGED_CHARACTERS: Final = 256
CLIENT_CLOSED_REQUEST: Final = 499
"""No status of HTTP: what the log and the metrics say of a client that left before its answer."""

COMMON_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)
HSTS: Final = (b"strict-transport-security", b"max-age=31536000")
"""A year (RFC 6797)."""


class _Exchange:
    """Counts what passes between the server and the app for one request."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, record: RequestRecord, common_headers: tuple[tuple[bytes, bytes], ...]
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self.record = record
        self._common_headers = common_headers
        self.status: int | None = None
        self.bytes_in = 0
        self.bytes_out = 0

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self.bytes_in += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", ()))
            present = {name for name, _ in headers}
            headers += [header for header in self._common_headers if header[0] not in present]
            headers.append((b"x-request-id", self.record.request_id.encode()))
            headers.append((b"traceparent", self.record.trace.traceparent))
            if verdicts := self._scope["state"].get(rate_limits.STATE_KEY):
                headers += rate_limits.rate_limit_headers(verdicts)
            if self._scope["path"] in _TIMED_PATHS and (timing := self._server_timing()):
                headers.append((b"server-timing", timing))
            message = {**message, "headers": headers}
        elif message["type"] == "http.response.body":
            self.bytes_out += len(message.get("body", b""))
        await self._send(message)

    def _server_timing(self) -> bytes:
        record = self.record
        stages = (
            ("auth", self._scope["state"].get("auth_ms")),
            ("decode", record.decode_ms),
            ("queue", record.queue_ms),
            ("infer", record.infer_ms),
        )
        return ", ".join(f"{name};dur={took_ms:.2f}" for name, took_ms in stages if took_ms is not None).encode()


class ContextMiddleware:
    """Request ids, common headers, the request log and its metrics.

    Args:
        app: the layer inside.
        known_paths: the paths of the routes; any other is logged as the route `unmatched`.
        metrics: count the requests.
        tracer: makes their spans; None where no traces go out.
        over_tls: clients reach us by HTTPS only, so their browsers may be told never to try anything else.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        known_paths: Collection[str],
        metrics: Metrics,
        tracer: OtlpTracer | None = None,
        over_tls: bool = False,
    ) -> None:
        self._app = app
        self._known_paths = frozenset(known_paths)
        self._metrics = metrics
        self._tracer = tracer
        self._common_headers = (*COMMON_HEADERS, HSTS) if over_tls else COMMON_HEADERS
        self._log = structlog.get_logger().bind()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s = time.perf_counter()
        caller = read_trace_context(scope["headers"])
        span = None if self._tracer is None else self._tracer.begin(caller)
        record = RequestRecord(request_id_from(scope["headers"]), continue_trace(caller) if span is None else span.context)
        if span is not None and span.recorded:
            record.stages = []
        scope.setdefault("state", {})[RECORD_KEY] = record
        exchange = _Exchange(scope, receive, send, record, self._common_headers)
        self._metrics.began()
        ids = REQUEST_IDS.set({"request_id": record.request_id, "trace_id": record.trace.trace_id})
        try:
            await self._app(scope, exchange.receive, exchange.send)
        finally:
            REQUEST_IDS.reset(ids)
            duration_s = time.perf_counter() - began_s
            route = scope["path"] if scope["path"] in self._known_paths else UNMATCHED
            limit = _limit_hit(record.code, scope["state"].get(rate_limits.STATE_KEY, ()))
            self._count(scope, exchange, route, limit, duration_s)
            self._write(scope, exchange, route, limit, duration_s * 1000)
            if span is not None:
                _end_span(span, scope, exchange, route)

    def _count(self, scope: Scope, exchange: _Exchange, route: str, limit: str | None, duration_s: float) -> None:
        record, metrics = exchange.record, self._metrics
        metrics.answered(route, scope["method"], _status(exchange), duration_s)
        if record.code is not None:
            metrics.refused(record.reason or record.code)
        if record.cause is not None:
            metrics.token_refused(record.cause)
        if limit is not None:
            metrics.limit_hit(limit, scope["state"].get(TIER_KEY))

    def _write(self, scope: Scope, exchange: _Exchange, route: str, limit: str | None, duration_ms: float) -> None:
        record, state = exchange.record, scope["state"]
        principal = state.get(STATE_KEY)
        known = isinstance(principal, Principal)
        fields: dict[str, object] = {
            "request_id": record.request_id,
            "trace_id": record.trace.trace_id,
            "span_id": record.trace.span_id,
            "method": scope["method"],
            "route": route,
            # The raw path is hostile text; the query is never logged, because it may hold secrets.
            "path": _printable(scope["path"]),
            "status": _status(exchange),
            "code": record.code,
            "cause": record.cause,
            "limit": limit,
            "duration_ms": _rounded(duration_ms),
            "bytes_in": exchange.bytes_in,
            "bytes_out": exchange.bytes_out,
            "client_address": scope["client"][0] if scope.get("client") else None,
            "client_id": principal.client_id if known else record.client_id,
            "token_id": principal.token_id if known else record.token_id,
            "scopes": sorted(principal.scopes) if known else None,
            "tier": state.get(TIER_KEY),
            "model": record.model,
            "digest": record.digest,
            "engine": record.engine,
            "images": record.images or None,
            "failed_images": record.failed_images or None,
            "close_calls": record.close_calls or None,
            "image_format": record.image_format,
            "image_width": record.image_width,
            "image_height": record.image_height,
            "batch_size": record.batch_size,
            "auth_ms": _rounded(state.get("auth_ms")),
            "decode_ms": _rounded(record.decode_ms),
            "queue_ms": _rounded(record.queue_ms),
            "infer_ms": _rounded(record.infer_ms),
        }
        self._log.info("request", **{name: value for name, value in fields.items() if value is not None})


def _end_span(span: RequestSpan, scope: Scope, exchange: _Exchange, route: str) -> None:
    record, state = exchange.record, scope["state"]
    if record.stages is not None and (began_s := state.get("auth_began_s")) is not None:
        record.stages.insert(0, Stage("authenticate", began_s, began_s + state["auth_ms"] / 1000, {}))
    principal = state.get(STATE_KEY)
    span.end(
        record,
        method=scope["method"] if scope["method"] in METHODS else "_OTHER",
        route=None if route == UNMATCHED else route,
        status=_status(exchange),
        client_id=principal.client_id if isinstance(principal, Principal) else record.client_id,
    )


def request_id_from(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The caller's own id where it sent a good one, else a new one."""
    given = [value for name, value in headers if name == b"x-request-id"]
    if len(given) == 1 and _REQUEST_ID.fullmatch(given[0]):
        return str(given[0], "ascii")
    return random_octets(_REQUEST_ID_OCTETS).hex()


def _limit_hit(code: str | None, verdicts: Iterable[Verdict]) -> str | None:
    """The limit behind a 429, as the log and the metrics call it."""
    if code == "too_many_in_flight":
        return "in_flight"
    if code != "rate_limited":
        return None
    # slowapi's have no verdict.
    return next((verdict.quota.name for verdict in verdicts if not verdict.admitted), "public")


def _status(exchange: _Exchange) -> int:
    if exchange.status is not None:
        return exchange.status
    return CLIENT_CLOSED_REQUEST if exchange.record.disconnected else 500


def _printable(text: str) -> str:
    return text[:_MAX_LOGGED_CHARACTERS].encode("unicode_escape").decode("ascii")[:_MAX_LOGGED_CHARACTERS]


def _rounded(took_ms: float | None) -> float | None:
    return None if took_ms is None else round(took_ms, 3)
