"""The gauges of the signing key and the certificate; tests/e2e/test_tls.py and tests/deploy see them at a real service."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import Mock

import pytest
import trustme
from prometheus_client import CollectorRegistry

from api.credential_metrics import CredentialMetrics
from security.key_ring import KeyRing
from security.keys import create_key

CERTIFICATE = "lensgate_tls_certificate_expires_timestamp_seconds"
KEY = "lensgate_signing_key_created_timestamp_seconds"


def read(registry: CollectorRegistry, name: str) -> float | None:
    return registry.get_sample_value(name, {"process": "api-0"})


def test_the_first_certificate_of_a_chain_to_end_counts(tmp_path: Path) -> None:
    authority = trustme.CA()
    ends = [datetime.now(UTC).replace(microsecond=0) + timedelta(days=days) for days in (30, 10, 20)]
    chain = b"".join(authority.issue_cert("127.0.0.1", not_after=end).cert_chain_pems[0].bytes() for end in ends)
    (tmp_path / "cert.pem").write_bytes(chain)
    registry = CollectorRegistry()
    CredentialMetrics("api-0", registry).read_certificate(tmp_path / "cert.pem")
    assert read(registry, CERTIFICATE) == ends[1].timestamp()


def test_a_certificate_that_cannot_be_read_is_said_and_is_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cert.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    registry = CollectorRegistry()
    CredentialMetrics("api-0", registry).read_certificate(tmp_path / "cert.pem")
    assert read(registry, CERTIFICATE) is None
    assert "certificate_end_unknown" in capsys.readouterr().out


async def test_a_new_key_counts_when_it_signs_and_not_when_it_is_only_published(tmp_path: Path) -> None:
    now_s = int(time.time())
    for created_at in (now_s - 1000, now_s + 3):
        create_key(tmp_path, created_at=created_at)
    keys = Mock(ring=KeyRing.load(tmp_path, publication_delay_s=0))
    registry = CollectorRegistry()
    watch = asyncio.create_task(CredentialMetrics("api-0", registry).watch_key(keys, 0.01))

    async def seen() -> list[float | None]:
        values: list[float | None] = []
        while not values or values[-1] != now_s + 3:
            await asyncio.sleep(0)
            values.append(read(registry, KEY))
        return values

    try:
        assert {value for value in await asyncio.wait_for(seen(), 30) if value} == {now_s - 1000, now_s + 3}
    finally:
        watch.cancel()
