#!/usr/bin/env python3
"""The container's health check: ask `/livez` of the server in this container; exit 0 on 200, else 1 with one line.

Liveness, not readiness: a server that is loading its weights or draining is healthy and must not be killed.
"""

from __future__ import annotations

import http.client
import os
import ssl
import sys

TIMEOUT_S = 3.0


def main() -> int:
    """Ask on the port and with the scheme that the server's own settings name."""
    port = int(os.environ.get("LENSGATE_HTTP__PORT") or 8000)
    connection: http.client.HTTPConnection
    if os.environ.get("LENSGATE_HTTP__TLS_CERT"):
        # Nothing secret is sent and the address is our own, which no certificate names.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=TIMEOUT_S, context=context)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/livez")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        print(f"/livez on port {port}: {error}")
        return 1
    finally:
        connection.close()
    if status != http.HTTPStatus.OK:
        print(f"/livez on port {port}: {status}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
