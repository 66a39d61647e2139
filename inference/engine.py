"""The engine as the API sees it: one small protocol, whatever stands behind it (a process now, a Ray Serve handle later)."""

from __future__ import annotations

from typing import Protocol

from inference.types import EngineStatus, Pixels, Prediction


class Engine(Protocol):
    """Runs pictures through the model. Safe for any number of concurrent calls on one event loop."""

    async def predict(self, pixels: Pixels, *, top_k: int, timeout_s: float, client: str, may_displace: bool = True) -> Prediction:
        """Classify one picture.

        Args:
            pixels: `[crop_px, crop_px, 3]` uint8 RGB, as `status().models[0].preprocessing` asks for.
            top_k: how many classes to return, 1 to 100; a model with fewer classes returns all of them.
            timeout_s: seconds from now; what has not started by then is never run.
            client: who asks, so that the engine can serve clients in turn.
            may_displace: where no more pictures can be held, it may take the place of one of a client that has more of them.

        Raises:
            EngineUnavailable: no engine is ready, or it died while it held this picture.
            Overloaded: the queue is full or the predicted wait is past the deadline.
            DeadlineExceeded: the deadline passed before the picture was run.
            InferenceFailed: the forward pass failed.
        """
        ...

    def status(self) -> EngineStatus:
        """What is known now; costs nothing."""
        ...

    async def aclose(self) -> None:
        """Let go of the engine. Predictions still waiting raise `EngineUnavailable`."""
        ...
