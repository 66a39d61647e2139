"""What one API worker counts and measures, and `/metrics`: the sums of all processes of the service. docs/metrics.md explains each."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.multiprocess import MultiProcessCollector

from api.errors import KINDS
from api.metric_files import log_drops

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
"""Of the text format that every Prometheus reads."""

UNMATCHED: Final = "unmatched"
"""The route of a request whose path is no route's."""

_OTHER: Final = "other"
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_CLOSED_UNANSWERED: Final = ("silent", "unread")
REGISTRY_LOST: Final = "registry_lost"
"""Why an OAuth endpoint refuses while the client registry does not answer. Not `not_ready`: pictures are classified all the same."""
SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""From a probe's answer to the longest that a caller is likely to wait."""


class Metrics:
    """The metrics of one API worker. Nothing that a caller sends becomes a label, so there is a bound on how many there are.

    Args:
        folder: where the processes share theirs (`share_metrics` was called before); None: this process's own are all there are.
    """

    def __init__(self, folder: Path | None = None) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # those that processes share have none, so there never are any
        self._folder = folder
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "lensgate_requests_total",
            "Requests, by route (unmatched: a path that is none), method and the status of the answer (499: the client left before it).",
            ["route", "method", "status"],
            registry=registry,
        )
        self._durations = Histogram(
            "lensgate_request_duration_seconds",
            "From the end of a request's head to the end of its answer.",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self._in_flight = Gauge(
            "lensgate_requests_in_flight", "Requests that are being served.", multiprocess_mode="sum", registry=registry
        )
        self.decode_duration = Histogram(
            "lensgate_decode_duration_seconds",
            "Decoding a picture, the wait for a decoder included.",
            buckets=SECONDS,
            registry=registry,
        )
        self.decoder_deaths = Counter(
            "lensgate_decoder_deaths_total", "Decoders that ended by themselves or were killed, and were started again.", registry=registry
        )
        self.queue_duration = Histogram(
            "lensgate_queue_duration_seconds",
            "A picture's wait in the engine until its batch starts.",
            buckets=SECONDS,
            registry=registry,
        )
        self._close_calls = Counter(
            "lensgate_close_calls_total",
            "Large JPEGs whose two most probable classes were close, so that they were decoded in full and run again: whether that "
            "confirmed the class or changed it, or was left for lack of room or time, or because it failed.",
            ["outcome"],
            registry=registry,
        )
        self._refusals = Counter(
            "lensgate_refusals_total",
            "Refused requests, and pictures refused inside a batch, by the problem's code; "
            "connections closed because they stayed silent, or because an answer stayed unread.",
            ["reason"],
            registry=registry,
        )
        self._limit_hits = Counter(
            "lensgate_rate_limit_hits_total",
            "Requests answered 429, by the limit that was hit and the tier of the client (none: the limit is an address's).",
            ["limit", "tier"],
            registry=registry,
        )
        self.tokens_issued = Counter("lensgate_tokens_issued_total", "Access tokens given out.", registry=registry)
        self._token_refusals = Counter(
            "lensgate_token_refusals_total", "Requests with an access token that is not valid, by its fault.", ["cause"], registry=registry
        )
        self.redis_fallbacks = Counter(
            "lensgate_redis_fallbacks_total",
            "How often a limit was counted by this service alone, because Redis was not there or too slow.",
            registry=registry,
        )
        self.registry_lost = Gauge(
            "lensgate_registry_lost",
            "1 while the client registry does not answer a worker, so that no token is given out and no new refusal is heard of; else 0.",
            multiprocess_mode="max",
            registry=registry,
        )
        self.log_drops = log_drops(registry)
        self._in_flight.set(0)
        for reason in (*KINDS, REGISTRY_LOST, *_CLOSED_UNANSWERED):  # from the start, so that the first of a kind is seen as an increase
            self._refusals.labels(reason)
        for outcome in ("confirmed", "changed", "left"):
            self._close_calls.labels(outcome)

    def began(self) -> None:
        """A request has come."""
        self._in_flight.inc()

    def answered(self, route: str, method: str, status: int, duration_s: float) -> None:
        """A request that `began` has ended.

        Args:
            route: the path of a route, or `UNMATCHED`.
            method: as sent.
            status: of the answer.
            duration_s: how long it took.
        """
        self._in_flight.dec()
        self._requests.labels(route, method if method in METHODS else _OTHER, status).inc()
        self._durations.labels(route).observe(duration_s)

    def close_call(self, outcome: Literal["confirmed", "changed", "left"]) -> None:
        """A picture's classes were close."""
        self._close_calls.labels(outcome).inc()

    def refused(self, reason: str) -> None:
        """A request, a picture of a batch or a connection was refused: `reason` is one of our own fixed words."""
        self._refusals.labels(reason).inc()

    def token_refused(self, cause: str) -> None:
        """An access token was not valid: `cause` is one of our own fixed words."""
        self._token_refusals.labels(cause).inc()

    def limit_hit(self, limit: str, tier: str | None) -> None:
        """A request was one too many.

        Args:
            limit: which limit it hit.
            tier: the client's; None where no client is known yet.
        """
        self._limit_hits.labels(limit, tier or "none").inc()

    def exposition(self) -> bytes:
        """The metrics of all processes, in Prometheus's text format. Reads files: not for the event loop."""
        if self._folder is None or not self._folder.is_dir():
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(self._folder))  # type: ignore[no-untyped-call]
        return generate_latest(registry)
