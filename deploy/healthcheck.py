#!/usr/bin/env python3
"""The container's health check: ask `/livez` of the server in this container; exit 0 on 200, else 1 with one line.

Liveness, not readiness: a server that is loading its weights or draining is healthy and must not be killed.
"""

from __future__ import annotations

import http.client
import ssl
import sys

from api.settings import ConfigurationError, load_settings

TIMEOUT_S = 3.0
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  what is asked where the server listens on every address


def main() -> int:
    """Ask at the address, on the port and with the scheme of the server's own settings, read as it reads them: `.env` too."""
    try:
        settings = load_settings().http
    except ConfigurationError as error:
        print(error)
        return 1
    host, port = LOOPBACK.get(settings.host, settings.host), settings.port
    connection: http.client.HTTPConnection
    if settings.tls_cert is not None:
        # Nothing secret is sent and the address is our own, which no certificate names.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/livez")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        print(f"/livez of {host} on port {port}: {error}")
        return 1
    finally:
        connection.close()
    if status != http.HTTPStatus.OK:
        print(f"/livez of {host} on port {port}: {status}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
