"""The entry point of an API worker (`python -m api.worker_process api-0`): uvicorn with our app on the supervisor's socket, no torch."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import structlog
import uvloop

from api.app import create_app
from api.child_config import read_config, when_supervisor_dies
from api.children import EXIT_CONFIGURATION
from api.connection_counts import ConnectionCounts
from api.credential_metrics import CredentialMetrics
from api.log import configure_logging
from api.log_writer import standard_output
from api.metric_files import remove_metric_files, share_metrics
from api.metrics import Metrics
from api.pulse import Pulse
from api.server import Server, allow_many_connections
from api.services import Services
from api.settings import ConfigurationError, Settings
from api.tls import check_tls
from api.tracing import tracer_for
from inference.allocator import return_large_blocks
from inference.cores import usable_cores
from inference.decoding.pool import DecodePool
from inference.garbage import keep_what_exists
from inference.process_engine import ProcessEngine
from security.clients import ClientRegistry
from security.database import Database
from security.errors import KeysError, RegistryError
from security.housekeeping import prune_regularly
from security.key_ring import KeyStore
from security.limit_storage import RateLimiter
from security.limit_windows import SharedWindows
from security.revocation import RevocationView
from security.tokens import TokenIssuer, TokenVerifier
from security.trusted_issuers import TrustedIssuers

_MAX_WAITING_PER_DECODER: Final = 32
_FIRST_WORD_S: Final = 1.0
"""How long a new worker waits to hear from the engines before it takes requests: one that knows nothing would refuse them."""


@asynccontextmanager
async def _open_services(
    settings: Settings, name: str, engine_sockets: Sequence[Path], limits: SharedWindows, metrics_dir: Path | None
) -> AsyncIterator[Services]:
    security = settings.security
    metrics = Metrics(metrics_dir)
    tracer = tracer_for(name, os.environ)
    credentials = CredentialMetrics(name, metrics.registry)
    if settings.http.tls_cert is not None:
        credentials.read_certificate(settings.http.tls_cert)
    database = Database(security.database_url.get_secret_value())
    registry = ClientRegistry(database)
    keys = KeyStore(security.keys_dir, poll_s=security.poll_s)
    revocations = RevocationView(registry, issuer=settings.issuer, poll_s=security.poll_s, on_answer=metrics.registry_lost.set)
    await revocations.refresh()
    verifier = TokenVerifier(keys, issuer=settings.issuer, audience=security.audience, clock_skew_s=security.clock_skew_s)
    trusted = TrustedIssuers(verifier, security.trusted_issuers, own_issuer=settings.issuer, clock_skew_s=security.clock_skew_s)
    await trusted.load_files()
    rates = RateLimiter(limits, security.rate_limit_storage.get_secret_value(), on_fallback=metrics.redis_fallbacks.inc)
    await rates.start()
    engine = ProcessEngine(engine_sockets, max_pending=settings.inference.queue_size)
    engine.start()
    decoders = _decoders(settings.http.workers)
    decoder = DecodePool(
        max_pixels=settings.inference.max_pixels,
        processes=decoders,
        max_waiting=decoders * _MAX_WAITING_PER_DECODER,
        on_death=metrics.decoder_deaths.inc,
    )
    decoder.start()
    await engine.heard(timeout_s=_FIRST_WORD_S)
    polls = [
        asyncio.create_task(keys.run(), name="poll keys"),
        asyncio.create_task(credentials.watch_key(keys, security.poll_s), name="say which key signs"),
        asyncio.create_task(revocations.run(), name="poll revocations"),
        asyncio.create_task(trusted.run(), name="fetch the keys of trusted issuers"),
        asyncio.create_task(rates.run(), name="look for a lost rate limit storage"),
        asyncio.create_task(prune_regularly(registry), name="prune the registry"),
    ]
    try:
        yield Services(
            settings=settings,
            engine=engine,
            registry=registry,
            issuer=TokenIssuer(keys, issuer=settings.issuer, audience=security.audience, ttl_s=security.token_ttl_s),
            verifier=verifier,
            trusted_issuers=trusted,
            revocations=revocations,
            keys=keys,
            decoder=decoder,
            rates=rates,
            metrics=metrics,
            tracer=tracer,
        )
    finally:
        for poll in polls:
            poll.cancel()
        await asyncio.gather(*polls, return_exceptions=True)
        await engine.aclose()
        await rates.aclose()
        await decoder.aclose()
        await database.aclose()
        if tracer is not None:
            await asyncio.to_thread(tracer.close)


def _decoders(workers: int) -> int:
    """How many decoders each worker has: twice its share of the cores, because clients do not keep all workers equally busy."""
    cores = usable_cores()
    return min(cores, math.ceil(2 * cores / workers))


async def _serve(config: dict[str, Any]) -> None:
    settings = Settings.restore(config["settings"])
    await asyncio.to_thread(check_tls, settings.http)  # it was good when the service started, and may not be when this worker does
    pulse = Pulse(config["pulse"])
    metrics_dir = share_metrics(config["metrics_dir"], config["name"], planned=config["planned"])
    engine_sockets = [Path(path) for path in config["engines"]]
    worker = config["workers"].index(config["name"])
    limits = SharedWindows(config["limits"], worker=worker, workers=len(config["workers"]))
    counts = ConnectionCounts(config["connections"])
    os.close(config["limits"])
    os.close(config["connections"])
    async with _open_services(settings, config["name"], engine_sockets, limits, metrics_dir) as services:
        server = Server(
            create_app(services),
            settings.http,
            services.lifecycle,
            counts=counts,
            worker=worker,
            on_started=lambda: pulse.beat(serving=True),
            on_refused=services.metrics.refused,
        )
        standard_output().on_drops(count=services.metrics.log_drops.inc)
        loop = asyncio.get_running_loop()

        def end() -> None:
            remove_metric_files(metrics_dir)
            _call_soon(loop, server)

        when_supervisor_dies(end)
        loop.add_signal_handler(signal.SIGHUP, server.retire)
        beating = asyncio.create_task(pulse.beat_regularly(lambda: server.started), name="beat")
        keep_what_exists()
        try:
            await server.serve(sockets=[socket.socket(fileno=config["listener"])])
        finally:
            beating.cancel()


def _call_soon(loop: asyncio.AbstractEventLoop, server: Server) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has closed: this worker is ending already
        loop.call_soon_threadsafe(server.stop_accepting)


def main() -> None:
    """Serve until SIGTERM or the supervisor's end; exit code 78 when keys or registry cannot be used at all, 1 for a certificate."""
    allow_many_connections()
    return_large_blocks()
    # Until uvicorn takes over, a signal must not end a half-made worker with a stack trace.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    config = read_config()
    log = config["settings"]["log"]
    configure_logging(log["level"], log["format"], process=config["name"])
    try:
        uvloop.run(_serve(config))
    except (ConfigurationError, KeysError, RegistryError) as error:
        structlog.get_logger().error("start_failed", reason=str(error))
        sys.stderr.write(f"lensgate: error: {error}\n")
        # A certificate that is being replaced is whole again at the next try; nothing else of the configuration changes under way.
        sys.exit(1 if isinstance(error, ConfigurationError) else EXIT_CONFIGURATION)


if __name__ == "__main__":
    main()
