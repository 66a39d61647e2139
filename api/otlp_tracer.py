"""Spans of the requests, sent over OTLP from a thread of their own. Needs the extra `otel`; imported only where an endpoint is set."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Mapping
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from api.openapi import API_VERSION
from api.record import RequestRecord
from api.trace_context import TraceContext

LAST_SPANS_S: Final = 1.0
"""How long the end of a worker waits for its last spans to be sent."""

_FIRST_SERVER_ERROR: Final = 500


class RequestSpan:
    """The span of one request, from `OtlpTracer.begin` to `end`."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span, began_ns: int, began_s: float) -> None:
        self._tracer = tracer
        self._span = span
        self._began_ns = began_ns
        self._began_s = began_s
        context = span.get_span_context()
        self.context = TraceContext(
            trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id), sampled=context.trace_flags.sampled
        )
        """What the request is called in the log and in its answer."""
        self.recorded = span.is_recording()

    def end(self, record: RequestRecord, *, method: str, route: str | None, status: int, client_id: str | None) -> None:
        """Hand the spans of the request and of its stages over. Does not wait for them to be sent.

        Args:
            record: what is known of the request.
            method: `GET` and so on; of an unusual one, `_OTHER`.
            route: its path; None where the path is none.
            status: of the answer.
            client_id: whose token it was.
        """
        span = self._span
        if not self.recorded:
            return
        ended_ns = self._at_ns(time.perf_counter())
        parent = trace.set_span_in_context(span, Context())
        for stage in record.stages or ():
            began_ns = self._at_ns(stage.began_s)
            child = self._tracer.start_span(stage.name, parent, start_time=began_ns, attributes=stage.attributes)
            child.end(self._at_ns(stage.ended_s))
        name = "HTTP" if method == "_OTHER" else method
        span.update_name(name if route is None else f"{name} {route}")
        # The names of OpenTelemetry's semantic conventions for HTTP servers.
        span.set_attributes({"http.request.method": method, "http.response.status_code": status, "lensgate.request_id": record.request_id})
        optional = {"http.route": route, "error.type": record.code, "lensgate.client_id": client_id}
        span.set_attributes({name: value for name, value in optional.items() if value is not None})
        if status >= _FIRST_SERVER_ERROR:
            span.set_status(Status(StatusCode.ERROR))
        span.end(ended_ns)

    def _at_ns(self, moment_s: float) -> int:
        """A moment of `time.perf_counter`, since the epoch."""
        return self._began_ns + int((moment_s - self._began_s) * 1e9)


class OtlpTracer:
    """Makes the spans of one API worker's requests and sends them.

    What cannot be sent waits in a queue of bounded length, and is then dropped; what is known of that is in the log.

    Args:
        process: which worker it is.
        environment: of the process. OpenTelemetry reads its own variables from there too.
    """

    def __init__(self, process: str, environment: Mapping[str, str]) -> None:
        attributes = {"service.version": API_VERSION, "service.instance.id": f"{socket.gethostname()}/{process}"}
        if "OTEL_SERVICE_NAME" not in environment and "service.name=" not in environment.get("OTEL_RESOURCE_ATTRIBUTES", ""):
            attributes["service.name"] = "lensgate"
        # It would wait half a minute at the end of the process for a receiver that does not answer.
        self._provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("lensgate", API_VERSION)

    def begin(self, caller: TraceContext | None) -> RequestSpan:
        """Begin the span of a request: the caller's trace goes on, or a new one begins. `OTEL_TRACES_SAMPLER` says whether it is sent."""
        context = Context() if caller is None else trace.set_span_in_context(NonRecordingSpan(_span_context(caller)), Context())
        began_ns, began_s = time.time_ns(), time.perf_counter()
        span = self._tracer.start_span("HTTP", context, kind=SpanKind.SERVER, start_time=began_ns)
        return RequestSpan(self._tracer, span, began_ns, began_s)

    def close(self) -> None:
        """Send what is left, for a second at most."""
        sending = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        sending.start()
        sending.join(LAST_SPANS_S)


def _span_context(caller: TraceContext) -> SpanContext:
    return SpanContext(
        int(caller.trace_id, 16),
        int(caller.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED if caller.sampled else TraceFlags.DEFAULT),
        trace_state=TraceState.from_header([caller.state]) if caller.state else TraceState(),
    )
