"""The container's health check, run as the container runs it, against real servers."""

from __future__ import annotations

import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

SCRIPT = Path(__file__).parents[2] / "deploy" / "healthcheck.py"


@contextmanager
def server(status: int, *, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Answer `/livez` with `status`, anything else with 404; yields the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/livez" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        if tls is not None:
            httpd.socket = tls.wrap_socket(httpd.socket, server_side=True)
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        try:
            yield httpd.server_port
        finally:
            httpd.shutdown()
            thread.join()


def check(port: int, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {"LENSGATE_HTTP__PORT": str(port), **settings}
    return subprocess.run([sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, check=False)


def test_a_live_server_is_healthy() -> None:
    with server(200) as port:
        done = check(port)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_live_server_with_tls_is_healthy() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("lensgate.example").configure_cert(context)
    with server(200, tls=context) as port:
        done = check(port, LENSGATE_HTTP__TLS_CERT="cert.pem")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("status", [404, 500, 503])
def test_any_other_answer_is_unhealthy_and_says_which(status: int) -> None:
    with server(status) as port:
        done = check(port)
    assert done.returncode == 1
    assert done.stdout == f"/livez on port {port}: {status}\n"


def test_a_server_that_is_gone_is_unhealthy_without_a_stack_trace() -> None:
    with server(200) as port:
        pass
    done = check(port)
    assert done.returncode == 1
    assert done.stdout.startswith(f"/livez on port {port}: ")
    assert done.stderr == ""
