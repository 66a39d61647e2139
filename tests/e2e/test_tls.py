"""HTTPS from a certificate and a key in the settings, and a word of warning where there is none."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import trustme
from cryptography import x509

from support.service import Service


def test_https_is_served_from_the_certificate_and_plain_http_is_not(start_service: Callable[..., Service], tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    service = start_service({"LENSGATE_HTTP__TLS_CERT": "cert.pem", "LENSGATE_HTTP__TLS_KEY": "key.pem"})
    service.wait_for("worker_serving")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    assert service.url.startswith("https://")
    answer = httpx.get(f"{service.url}/livez", verify=context, timeout=30)
    assert (answer.status_code, answer.headers["strict-transport-security"]) == (200, "max-age=31536000")
    token = _token(service, context)
    shown = httpx.get(f"{service.url}/metrics", headers={"Authorization": f"Bearer {token}"}, verify=context, timeout=30).text
    end_s = x509.load_pem_x509_certificate(certificate.cert_chain_pems[0].bytes()).not_valid_after_utc.timestamp()
    (line,) = re.findall(r'^lensgate_tls_certificate_expires_timestamp_seconds\{process="api-0"\} (.+)$', shown, re.MULTILINE)
    assert float(line) == end_s
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{service.url.replace('https', 'http')}/livez", timeout=30)


def _token(service: Service, context: ssl.SSLContext) -> str:
    client = service.create_client("scraper", "metrics")
    answer = httpx.post(
        f"{service.url}/oauth2/token",
        data={"grant_type": "client_credentials"},
        auth=(client["client_id"], client["client_secret"]),
        verify=context,
        timeout=30,
    )
    return str(answer.json()["access_token"])


def test_plain_http_beyond_loopback_says_so_and_loopback_does_not(start_service: Callable[..., Service], service: Service) -> None:
    open_to_all = start_service({"LENSGATE_HTTP__HOST": "0.0.0.0"})
    assert open_to_all.wait_for("plain_http")["level"] == "warning"
    assert not [line for line in service.log if line["event"] == "plain_http"]


def test_an_issuer_that_nobody_can_call_is_warned_of(start_service: Callable[..., Service], service: Service) -> None:
    warned = start_service({"LENSGATE_HTTP__HOST": "0.0.0.0"}).wait_for("issuer_is_no_address")
    assert str(warned["url"]).startswith("http://0.0.0.0:")
    assert "LENSGATE_SECURITY__ISSUER" in warned["hint"]
    assert not [line for line in service.log if line["event"] == "issuer_is_no_address"]


def test_an_issuer_that_is_set_is_not_warned_of(start_service: Callable[..., Service]) -> None:
    named = start_service({"LENSGATE_HTTP__HOST": "0.0.0.0", "LENSGATE_SECURITY__ISSUER": "http://gate.example.com"})
    named.wait_for("worker_serving")
    assert not [line for line in named.log if line["event"] == "issuer_is_no_address"]


def test_an_empty_registry_says_how_to_make_the_first_client(start_service: Callable[..., Service]) -> None:
    assert "lensgate clients create" in start_service().wait_for("no_clients")["hint"]
