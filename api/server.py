"""uvicorn behind the wire guard, and how it stops: not ready first, then no new connections, then what is complete is finished."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

import structlog
import uvicorn
from starlette.types import ASGIApp

from api.acceptor import Acceptor
from api.connection_counts import ConnectionCounts
from api.http_settings import HttpSettings
from api.services import Lifecycle
from api.wire import renderer
from security.wire_guard import WireGuard, WireLimits
from security.wire_protocol import LAST_CALL_S, guarded_protocol

_STOP_MARGIN_S: Final = 3.0
"""What is kept of the grace period for the supervisor and the engine to end after the workers."""
_MAX_OPEN_FILES: Final = 65_536
_CROWD: Final = 4096
"""Connections, of some 11 KiB each where they idle."""

_log: Final = structlog.get_logger()


class Server(uvicorn.Server):
    """One worker's server.

    Args:
        app: what it serves.
        http: the settings.
        lifecycle: what it tells the routes about itself.
        counts: how many connections each worker of the service has.
        worker: which of them this is.
        on_started: called once connections are accepted.
        on_refused: called with a code for everything that the wire guard refuses.
    """

    def __init__(
        self,
        app: ASGIApp,
        http: HttpSettings,
        lifecycle: Lifecycle,
        *,
        counts: ConnectionCounts,
        worker: int,
        on_started: Callable[[], None] = lambda: None,
        on_refused: Callable[[str], None] | None = None,
    ) -> None:
        drain_s = max(1, int(http.grace_s - http.drain_pause_s - _STOP_MARGIN_S))
        limits = WireLimits(
            header_timeout_s=http.header_timeout_s,
            body_timeout_s=http.body_timeout_s,
            max_header_bytes=http.max_header_bytes,
            drain_s=drain_s,
            crowd=_crowd(),
        )
        self._guard = WireGuard(limits, renderer(over_tls=http.tls_cert is not None), on_refused, self._count)
        super().__init__(
            uvicorn.Config(
                app,
                http=guarded_protocol(self._guard),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                # Else a connection whose reading was paused serves its later requests in the context of the one that resumed it.
                reset_contextvars=True,
                timeout_graceful_shutdown=drain_s,
                ssl_certfile=http.tls_cert,
                ssl_keyfile=http.tls_key,
            )
        )
        self._lifecycle = lifecycle
        self._counts = counts
        self._worker = worker
        self._acceptor: Acceptor | None = None
        self._on_started = on_started
        self._drain_pause_s = http.drain_pause_s
        self._handshake_timeout_s = http.header_timeout_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the port, and say so.

        Not uvicorn's own, which takes whatever comes, and leaves a client a minute for its TLS handshake.
        """
        assert sockets is not None
        await self.lifespan.startup()
        (listener,) = sockets
        self.servers = []
        self._acceptor = Acceptor(listener, self._counts, self._worker, self._connect)
        self.started = True
        _log.info("worker_serving")
        self._on_started()

    async def _connect(self, connection: socket.socket) -> None:
        tls: dict[str, Any] = {}
        if self.config.ssl is not None:
            tls = {"ssl": self.config.ssl, "ssl_handshake_timeout": self._handshake_timeout_s}
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection, **tls)
        except OSError:  # a TLS handshake that failed, or took too long
            self._count(-1)

    def _protocol(self) -> asyncio.Protocol:
        make: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        return protocol

    def _count(self, change: int) -> None:
        assert self._acceptor is not None
        self._acceptor.count(change)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take what has connected already, close the port, and serve what is complete."""
        if self._acceptor is not None:
            await self._acceptor.close(LAST_CALL_S)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. Second: end at once. Runs inside a signal handler."""
        if self._lifecycle.draining:
            self.should_exit = self.force_exit = True
            return
        self._lifecycle.draining = True
        asyncio.get_running_loop().call_soon_threadsafe(self._close_after_pause)

    def _close_after_pause(self) -> None:
        # Those who wait for their answers, or come back, are sent on to another server; who is idle may stay until the port closes.
        self._guard.drain()
        asyncio.get_running_loop().call_later(self._drain_pause_s, self.stop_accepting)

    def stop_accepting(self) -> None:
        """Close the port, finish what is complete, and end."""
        self._lifecycle.draining = True
        self.should_exit = True

    def retire(self) -> None:
        """The same, because another worker has taken over: the service stays as ready as it is."""
        self._guard.drain()
        self.should_exit = True


def allow_many_connections() -> None:
    """Raise this process's limit on open files, which is 1,024 in many shells: so many idle sockets would shut everybody out."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _crowd() -> int:
    """How many connections are a crowd: half of the open files are left to new ones, and to what serves them."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _CROWD if soft == resource.RLIM_INFINITY else min(_CROWD, soft // 2)
