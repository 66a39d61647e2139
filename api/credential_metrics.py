"""What ends or grows old while a service runs: the key that signs our tokens, and the certificate that one API worker shows."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import structlog
from cryptography import x509
from prometheus_client import CollectorRegistry, Gauge

from security.key_ring import KeySource

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class CredentialMetrics:
    """The metrics of one API worker's key and certificate: after a change on disk, each worker may have another.

    Args:
        process: the worker's name.
        registry: of the worker's other metrics.
    """

    def __init__(self, process: str, registry: CollectorRegistry) -> None:
        self._process = process
        self._key_created = Gauge(
            "lensgate_signing_key_created_timestamp_seconds",
            "When the key was made that signs the tokens that are given out now, in seconds since the epoch.",
            ["process"],
            multiprocess_mode="max",
            registry=registry,
        )
        self._certificate_expires = Gauge(
            "lensgate_tls_certificate_expires_timestamp_seconds",
            "When the TLS certificate ends, or the first one of its chain, in seconds since the epoch.",
            ["process"],
            multiprocess_mode="max",
            registry=registry,
        )

    def read_certificate(self, path: Path) -> None:
        """Look when the certificates of this PEM file end. Call it when the server reads the file: a later one is not served yet."""
        try:
            chain = x509.load_pem_x509_certificates(path.read_bytes())
        except ValueError as error:  # OpenSSL serves what cryptography is too strict for: that must end no worker
            _log.warning("certificate_end_unknown", file=str(path), reason=str(error))
            return
        self._certificate_expires.labels(self._process).set(min(one.not_valid_after_utc.timestamp() for one in chain))

    async def watch_key(self, keys: KeySource, poll_s: float) -> None:
        """Say which key signs, every `poll_s` seconds until cancelled."""
        key_created = self._key_created.labels(self._process)
        while True:
            key_created.set(keys.ring.signing_key(time.time()).created_at)
            await asyncio.sleep(poll_s)
