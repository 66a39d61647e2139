"""A small OTLP/HTTP receiver: what a collector is to the service. It keeps the spans that it is sent."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

WAIT_S = 30.0


class Received(NamedTuple):
    """One span, with the attributes of its resource."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    began_ns: int
    ended_ns: int
    attributes: dict[str, Any]
    resource: dict[str, Any]
    state: str
    failed: bool


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """An exporter that has given up waiting has hung up; that is no error here."""


class OtlpReceiver:
    """Listens on a free port of loopback. While `answers` is not set, it takes requests and answers none."""

    def __init__(self) -> None:
        self.spans: list[Received] = []
        self.bodies = b""
        self.headers: list[dict[str, str]] = []
        self.requests = threading.Semaphore(0)
        """Released for every request that has come, answered or not."""
        self.answers = threading.Event()
        self.answers.set()
        self._changed = threading.Condition()
        self._server = _QuietServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def serve(self) -> None:
        """Until `close`."""
        self._server.serve_forever(poll_interval=0.05)

    def close(self) -> None:
        """Let everything go."""
        self.answers.set()
        self._server.shutdown()
        self._server.server_close()

    def trace(self, trace_id: str, names: set[str], *, count: int | None = None) -> list[Received]:
        """The spans of a trace, as soon as there are some of all these names (and so many)."""

        def found() -> list[Received]:
            return [span for span in self.spans if span.trace_id == trace_id]

        def complete() -> bool:
            return names <= {one.name for one in found()} and len(found()) >= (count or len(names))

        with self._changed:
            assert self._changed.wait_for(complete, WAIT_S), [span.name for span in found()]
            return found()

    def _take(self, body: bytes, headers: dict[str, str]) -> None:
        message = ExportTraceServiceRequest.FromString(gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body)
        with self._changed:
            self.bodies += body
            self.headers.append(headers)
            for group in message.resource_spans:
                resource = _values(group.resource.attributes)
                self.spans += [_received(span, resource) for scope in group.scope_spans for span in scope.spans]
            self._changed.notify_all()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.requests.release()
                receiver.answers.wait()
                if self.path != "/v1/traces" or self.headers["content-type"] != "application/x-protobuf":
                    self.send_error(400)
                    return
                receiver._take(body, {name.lower(): value for name, value in self.headers.items()})
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                pass

        return Handler


@contextmanager
def otlp_receiver() -> Iterator[OtlpReceiver]:
    """One that runs in a thread of its own."""
    receiver = OtlpReceiver()
    thread = threading.Thread(target=receiver.serve, name="otlp-receiver")
    thread.start()
    try:
        yield receiver
    finally:
        receiver.close()
        thread.join()


def _received(span: Any, resource: dict[str, Any]) -> Received:  # noqa: ANN401 # protobuf's classes have no types
    return Received(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        kind=span.kind,
        began_ns=span.start_time_unix_nano,
        ended_ns=span.end_time_unix_nano,
        attributes=_values(span.attributes),
        resource=resource,
        state=span.trace_state,
        failed=span.status.code == span.status.STATUS_CODE_ERROR,
    )


def _values(attributes: Any) -> dict[str, Any]:  # noqa: ANN401 # protobuf's classes have no types
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
