"""How often the served model names the class that the exact one names: in every number format, compiled or not, however it is decoded.

    python -m benchmarks.accuracy [--crops 600]

The packaged ImageNet weights on random crops of real photographs. The reference is float32, not compiled, on the same file decoded in full.
"""

from __future__ import annotations

import argparse
import importlib.resources
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from inference.image import decode
from inference.settings import InferenceSettings
from inference.types import Pixels
from inference.worker.preparation import prepare_model

Precision = Literal["fp32", "bf16", "fp16"]

WANTED: Final = 0.99
_PHOTOGRAPHS: Final = (
    *("astronaut.png", "camera.png", "chelsea.png", "coffee.png"),
    *("motorcycle_left.png", "motorcycle_right.png", "retina.jpg", "rocket.jpg"),
)
_MAX_PIXELS: Final = 50_000_000
_BATCH: Final = 8
_DRAFTED_PX: Final = 620
"""A shorter side from which JPEG is decoded at half its size."""


@dataclass(frozen=True)
class Agreement:
    """One way to serve a picture, and in what share of the crops it names the class that the exact model names."""

    precision: Precision
    compiled: bool
    decoder: str
    share: float
    crops: int


def crops(count: int, seed: int = 0) -> list[Image.Image]:
    """Random crops of real photographs, RGB: between half of the shorter side and all of it, half of them mirrored."""
    folder = Path(str(importlib.resources.files("skimage"))) / "data"
    photographs = [Image.open(folder / name).convert("RGB") for name in _PHOTOGRAPHS]
    random = np.random.default_rng(seed)
    found = []
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        side = int(min(photograph.size) * random.uniform(0.5, 1.0))
        left, top = (int(random.integers(0, length - side + 1)) for length in photograph.size)
        crop = photograph.crop((left, top, left + side, top + side))
        found.append(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else crop)
    return found


def files(pictures: Sequence[Image.Image]) -> dict[str, list[bytes]]:
    """Each picture as PNG, as lossy WebP, as JPEG, and as a JPEG so large that its decoder scales it."""
    drafted = [picture.resize((_DRAFTED_PX, _DRAFTED_PX), Image.Resampling.BICUBIC) for picture in pictures]
    return {
        "PNG": [_encoded(picture, "PNG") for picture in pictures],
        "WebP": [_encoded(picture, "WEBP", quality=90) for picture in pictures],
        "JPEG": [_encoded(picture, "JPEG", quality=90) for picture in pictures],
        "JPEG, drafted": [_encoded(picture, "JPEG", quality=90) for picture in drafted],
    }


def measure(count: int, served: Sequence[tuple[Precision, bool]]) -> list[Agreement]:
    """Compare each of the number formats, compiled or not, with the exact model, by every way of decoding."""
    encoded = files(crops(count))
    exact = _top(encoded, "fp32", compiled=False, draft=False)
    found = []
    for precision, compiled in served:
        named = _top(encoded, precision, compiled=compiled, draft=True)
        found += [Agreement(precision, compiled, name, float((named[name] == exact[name]).mean()), count) for name in encoded]
    return found


def _top(encoded: dict[str, list[bytes]], precision: Precision, *, compiled: bool, draft: bool) -> dict[str, NDArray[np.int64]]:
    settings = InferenceSettings(
        model="efficientnet_lite0",
        weights="package:efficientnet_lite0",
        device="cpu",
        precision=precision,
        compile="on" if compiled else "off",
        max_batch=_BATCH,
    )
    model = prepare_model([settings], publish=lambda _: None, connect_timeout_s=1)

    def named(data: Sequence[bytes]) -> NDArray[np.int64]:
        pixels: list[Pixels] = [
            decode(one, preprocessing=model.info.preprocessing, max_pixels=_MAX_PIXELS, draft=draft).pixels for one in data
        ]
        batches = [model.infer(pixels[start : start + _BATCH])[0][:, 0] for start in range(0, len(pixels), _BATCH)]
        return np.concatenate(batches)

    return {name: named(data) for name, data in encoded.items()}


def _encoded(picture: Image.Image, kind: str, **options: int) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def main() -> int:
    """Print the table; the exit status is 1 where the agreement is less than wanted."""
    parser = argparse.ArgumentParser(prog="benchmarks.accuracy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crops", type=int, default=600)
    arguments = parser.parse_args()
    found = measure(arguments.crops, [("fp32", False), ("fp32", True), ("bf16", True), ("fp16", False)])
    table = Table(title=f"Top-1 agreement with float32, {arguments.crops} crops")
    for column in ("precision", "compiled", "decoded from", "agreement"):
        table.add_column(column)
    for one in found:
        table.add_row(one.precision, "yes" if one.compiled else "no", one.decoder, f"{one.share:.2%}")
    Console().print(table)
    return 0 if all(one.share >= WANTED for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
