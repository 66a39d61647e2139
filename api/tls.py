"""Whether the certificate and its key can be served: asked before the start, and before workers are renewed to read new ones."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from api.http_settings import HttpSettings
from api.settings import ConfigurationError

_CERT: Final = "LENSGATE_HTTP__TLS_CERT"
_KEY: Final = "LENSGATE_HTTP__TLS_KEY"


def check_tls(http: HttpSettings) -> None:
    """Make sure that the two files can be served, where they are set. Reads files: not for the event loop.

    Raises:
        ConfigurationError: they cannot; the message names the setting and the file that is to blame.
    """
    if http.tls_cert is None or http.tls_key is None:
        return
    certificate, key = _read(_CERT, http.tls_cert), _read(_KEY, http.tls_key)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(http.tls_cert, http.tls_key, password=_no_password)
    except ssl.SSLError as error:
        raise ConfigurationError(_blame(http.tls_cert, certificate, http.tls_key, key)) from error
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{_KEY}: {http.tls_key} cannot be used: {error}") from error


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{name}: {path} cannot be read: {error.strerror}") from error


def _blame(certificate_path: Path, certificate: bytes, key_path: Path, key: bytes) -> str:
    """OpenSSL says only that one of them is no PEM, or that it does not like something."""
    try:
        x509.load_pem_x509_certificates(certificate)
    except ValueError:
        return f"{_CERT}: {certificate_path} is no PEM certificate, or a damaged one"
    try:
        public_key = load_pem_private_key(key, None).public_key()
    except Exception:  # noqa: BLE001  cryptography has many ways to say no (ValueError, TypeError, UnsupportedAlgorithm, ...)
        return f"{_KEY}: {key_path} is no PEM private key, or a damaged one"
    if public_key != x509.load_pem_x509_certificate(certificate).public_key():
        return f"{_CERT} and {_KEY} do not go together: {key_path} is not the key of {certificate_path}"
    return f"{_CERT} and {_KEY} cannot be used: OpenSSL refuses {certificate_path} or {key_path}"


def _no_password() -> str:
    # Without this OpenSSL would ask on the terminal, and a service would hang.
    raise ValueError("the key is encrypted, and nobody is there to give its password")
