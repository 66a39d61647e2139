"""The container's health check, run as the container runs it, against real servers."""

from __future__ import annotations

import socket
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

from support.service import PACKAGED, Service

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
    return run(LENSGATE_HTTP__PORT=str(port), **settings)


def run(cwd: Path | None = None, /, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = Service.clean_environment(settings)
    return subprocess.run([sys.executable, str(SCRIPT)], env=environment, cwd=cwd, capture_output=True, text=True, check=False)


def test_a_live_server_is_healthy() -> None:
    with server(200) as port:
        done = check(port)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_live_server_with_tls_is_healthy() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("lensgate.example").configure_cert(context)
    with server(200, tls=context) as port:
        done = check(port, LENSGATE_HTTP__TLS_CERT="cert.pem", LENSGATE_HTTP__TLS_KEY="key.pem")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("status", [404, 500, 503])
def test_any_other_answer_is_unhealthy_and_says_which(status: int) -> None:
    with server(status) as port:
        done = check(port)
    assert done.returncode == 1
    assert done.stdout == f"/livez of 127.0.0.1 on port {port}: {status}\n"


def test_a_server_that_is_gone_is_unhealthy_without_a_stack_trace() -> None:
    with server(200) as port:
        pass
    done = check(port)
    assert done.returncode == 1
    assert done.stdout.startswith(f"/livez of 127.0.0.1 on port {port}: ")
    assert done.stderr == ""


@pytest.mark.parametrize("host", ["127.0.0.2", "0.0.0.0", "::"])
def test_it_asks_where_the_real_server_listens_by_the_settings_of_the_same_env_file(host: str, tmp_path: Path) -> None:
    certificate = trustme.CA().issue_cert("lensgate.example")
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
    lines = (f"HOST={host}", f"PORT={port}", "TLS_CERT=cert.pem", "TLS_KEY=key.pem")
    (tmp_path / ".env").write_text("".join(f"LENSGATE_HTTP__{line}\n" for line in lines))
    with Service(tmp_path, PACKAGED | {"LENSGATE_HTTP__PORT": str(port)}) as service:
        service.wait_for("worker_serving")
        done = run(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_settings_that_are_wrong_are_told(tmp_path: Path) -> None:
    done = run(tmp_path, LENSGATE_HTTP__PORT="none")
    assert (done.returncode, done.stderr) == (1, "")
    assert "LENSGATE_HTTP__PORT" in done.stdout
