"""The process of `support.identity_provider`: serves the providers' keys and tokens, and takes the tests' orders."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from support.identity_provider_shapes import TENANT, Auth0, Entra, Keycloak, Provider, Standard

SECRET = "the provider's own secret"


class Handler(BaseHTTPRequestHandler):
    """Serves the providers, and the tests that give them orders."""

    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        name, _, rest = self.path.strip("/").partition("/")
        provider = self.server.providers.get(name)
        if provider is None or not rest.endswith("jwks"):
            self._send(404, b"{}")
            return
        getattr(self, f"_jwks_{provider.mode}")(provider)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/control":
            answer = self.server.control(json.loads(body))
            self._send(200, json.dumps(answer).encode())
            return
        form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        provider = self.server.providers[self.path.strip("/").partition("/")[0]]
        if form.get("grant_type") != "client_credentials" or form.get("client_secret") != SECRET:
            self._send(401, b'{"error": "invalid_client"}')
            return
        token = provider.token({"permission": form.get("scope", "predict")}, provider)
        self._send(200, json.dumps({"access_token": token, "token_type": "Bearer", "expires_in": 300}).encode())

    def _jwks_ok(self, provider: Provider) -> None:
        self._send(200, json.dumps({"keys": provider.jwks()}).encode())

    def _jwks_broken(self, provider: Provider) -> None:
        self._send(500, b"")

    def _jwks_garbage(self, provider: Provider) -> None:
        self._send(200, b"<html>sign in first</html>")

    def _jwks_redirect(self, provider: Provider) -> None:
        """To a place where the right keys would be."""
        self.send_response(302)
        self.send_header("Location", f"/{provider.prefix}-elsewhere/jwks")
        self.end_headers()

    def _jwks_hang(self, provider: Provider) -> None:
        self.server.released.wait(60)

    def _jwks_huge(self, provider: Provider) -> None:
        keys = json.dumps({"keys": provider.jwks()}).encode()
        self._send(200, keys + b" " * 10_000_000)

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Keep the tests' output clean."""


class Server(ThreadingHTTPServer):
    """Every provider, each under a path of its own."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        base = f"http://127.0.0.1:{self.server_port}"
        self.providers: dict[str, Provider] = {
            "keycloak": Keycloak(base, "keycloak/realms/demo"),
            "auth0": Auth0(base, "auth0/"),
            "entra": Entra(base, f"entra/{TENANT}/v2.0"),
            "standard": Standard(base, "standard"),
        }
        self.asked: list[str] = []
        self.released = threading.Event()

    def control(self, order: dict[str, Any]) -> Any:  # noqa: ANN401 - JSON
        """What a test asks for."""
        provider = self.providers[order.get("provider", "keycloak")]
        actions: dict[str, Callable[[], Any]] = {
            "token": lambda: provider.token(order, self.providers[order.get("signed_by", order["provider"])]),
            "rotate": provider.rotate,
            "behave": lambda: setattr(provider, "mode", order["mode"]),
            "jwks": lambda: {"keys": provider.jwks()},
            "asked": lambda: list(self.asked),
            "issuers": lambda: {name: one.issuer for name, one in self.providers.items()},
        }
        return actions[order["action"]]()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has left is part of these tests."""


if __name__ == "__main__":
    with Server(int(sys.argv[1])) as server:
        sys.stdout.write(f"{server.server_port}\n")
        sys.stdout.flush()
        server.serve_forever(poll_interval=0.05)
