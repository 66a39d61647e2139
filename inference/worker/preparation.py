"""From the settings to a model that is ready to serve: weights, compilation, warm-up. Says at each step what is being waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from inference.errors import ModelLoadError
from inference.settings import InferenceSettings
from inference.types import EngineStatus
from inference.worker.compilation import compiled_model
from inference.worker.device import resolve_device, resolve_precision
from inference.worker.model import DeviceModel
from inference.worker.weights import LoadedWeights, load_weights

_PROGRESS_EVERY_S: Final = 0.5
_LOG_PROGRESS_EVERY_S: Final = 10.0

_log: Final = structlog.get_logger()

Publish = Callable[[EngineStatus], None]


def prepare_model(candidates: Sequence[InferenceSettings], *, publish: Publish, connect_timeout_s: float) -> DeviceModel:
    """Load the first of the candidates whose weights can be had, compile it where that is wanted and possible, and warm it up. Blocks.

    Args:
        candidates: the models to try; the reason why one is passed over is logged.
        publish: told what is being waited for.
        connect_timeout_s: how long a download may take to connect.

    Raises:
        ModelLoadError: the last candidate cannot be served as configured.
    """
    loaded, settings = _first_available(candidates, publish, connect_timeout_s)
    device = resolve_device(settings.device)

    def say_compiling() -> None:
        publish(EngineStatus(phase="compiling", detail="Compiling the model for this machine, once: about a minute."))

    precision = resolve_precision(settings.precision, device, loaded.module)
    compiled = compiled_model(loaded, settings, device=device, precision=precision, on_compiling=say_compiling)
    model = DeviceModel(loaded, settings, compiled)
    publish(EngineStatus(phase="warming", detail="Warming up the model."))
    model.warm_up()
    return model


def _first_available(
    candidates: Sequence[InferenceSettings], publish: Publish, connect_timeout_s: float
) -> tuple[LoadedWeights, InferenceSettings]:
    for settings in candidates[:-1]:
        try:
            return load_weights(settings, progress=_Progress(publish), connect_timeout_s=connect_timeout_s), settings
        except ModelLoadError as error:
            _log.warning("weights_unavailable", model=settings.model, weights=settings.weights, reason=str(error))
    last = candidates[-1]
    return load_weights(last, progress=_Progress(publish), connect_timeout_s=connect_timeout_s), last


class _Progress:
    """Publishes a download's progress, a few times a second at most."""

    def __init__(self, publish: Publish) -> None:
        self._publish = publish
        self._next_s = 0.0
        self._next_log_s = 0.0

    def __call__(self, received_bytes: int, total_bytes: int | None) -> None:
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        self._next_s = now_s + _PROGRESS_EVERY_S
        done = f"{received_bytes * 100 // total_bytes} %" if total_bytes else f"{received_bytes // 1_000_000} MB"
        self._publish(EngineStatus(phase="downloading", detail=f"Downloading the weights: {done}."))
        if now_s >= self._next_log_s:
            self._next_log_s = now_s + _LOG_PROGRESS_EVERY_S
            _log.info("weights_downloading", received_bytes=received_bytes, total_bytes=total_bytes)
