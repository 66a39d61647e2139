"""How often the served model names the class that the exact one names: in every number format, compiled or not, however it is decoded.

    python -m benchmarks.accuracy [--crops 600] [--photographs FOLDER]

The packaged ImageNet weights on random crops of real photographs: of scikit-image's, or of your own. The reference is float32, not
compiled, on the same file decoded in full. Where another class is named, it says by how much the exact model preferred its own: a crop in
which it sees nothing clearly is decided by a hair.
"""

from __future__ import annotations

import argparse
import importlib.resources
import io
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
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
from inference.worker.model import DeviceModel
from inference.worker.preparation import prepare_model

Precision = Literal["fp32", "bf16", "fp16"]

WANTED: Final = 0.99
_PHOTOGRAPHS: Final = (
    *("astronaut.png", "camera.png", "chelsea.png", "coffee.png"),
    *("motorcycle_left.png", "motorcycle_right.png", "retina.jpg", "rocket.jpg"),
)
_MAX_PIXELS: Final = 50_000_000
_BATCH: Final = 8
_WHOLE_PX: Final = 1_000
"""A shorter side up to which JPEG is decoded in full (`inference.image.fit.draft_size`: below four times `resize_px`, here 256)."""
_DRAFTED_PX: Final = 1_100
"""A shorter side from which it is decoded at half its size or less."""

_Sets = dict[str, list[Pixels]]
"""Decoded crops by the kind of their files."""


@dataclass(frozen=True)
class Agreement:
    """One way to serve a picture, and in what share of the crops it names the class that the exact model names."""

    precision: Precision
    compiled: bool
    decoder: str
    share: float
    lost_lead: float
    """By how much the exact model's class was ahead of the one that is named instead, at most: in logits (e to the power of it is the ratio
    of their probabilities). 0 where no crop differs."""
    crops: int


def photographs(folder: Path | None) -> list[Image.Image]:
    """All JPEG and PNG files of a folder, or scikit-image's photographs, as RGB.

    Raises:
        ValueError: the folder holds none.
    """
    if folder is None:
        packaged = Path(str(importlib.resources.files("skimage"))) / "data"
        found = [packaged / name for name in _PHOTOGRAPHS]
    else:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not found:
        raise ValueError(f"{folder} holds no JPEG and no PNG file.")
    return [Image.open(path).convert("RGB") for path in found]


def crops(count: int, pictures: Sequence[Image.Image], seed: int = 0) -> Iterator[Image.Image]:
    """Random crops: between half of the shorter side and all of it, half of them mirrored."""
    random = np.random.default_rng(seed)
    for index in range(count):
        picture = pictures[index % len(pictures)]
        side = int(min(picture.size) * random.uniform(0.5, 1.0))
        left, top = (int(random.integers(0, length - side + 1)) for length in picture.size)
        crop = picture.crop((left, top, left + side, top + side))
        yield crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else crop


def files(crop: Image.Image) -> dict[str, bytes]:
    """A crop as PNG, as lossy WebP, as JPEG, and as a JPEG so large that its decoder scales it."""
    small, large = min(crop.width, _WHOLE_PX), max(crop.width, _DRAFTED_PX)
    whole, drafted = (crop.resize((side, side), Image.Resampling.BICUBIC) if side != crop.width else crop for side in (small, large))
    return {
        "PNG": _encoded(whole, "PNG", compress_level=1),
        "WebP": _encoded(whole, "WEBP", quality=90),
        "JPEG": _encoded(whole, "JPEG", quality=90),
        "JPEG, drafted": _encoded(drafted, "JPEG", quality=90),
    }


def measure(count: int, served: Sequence[tuple[Precision, bool]], folder: Path | None = None) -> list[Agreement]:
    """Compare each of the number formats, compiled or not, with the exact model, by every way of decoding."""
    exact_model = _model("fp32", compiled=False)
    preprocessing = exact_model.info.preprocessing
    whole: _Sets = defaultdict(list)
    drafted: _Sets = defaultdict(list)
    for crop in crops(count, photographs(folder)):
        for kind, data in files(crop).items():
            for decoded, draft in ((whole, False), (drafted, True)):
                decoded[kind].append(decode(data, preprocessing=preprocessing, max_pixels=_MAX_PIXELS, draft=draft).pixels)
    exact = {kind: _logits(exact_model, pixels) for kind, pixels in whole.items()}
    found = []
    for precision, compiled in served:
        model = _model(precision, compiled=compiled)
        found += [_agreement(precision, compiled, kind, exact[kind], _named(model, pixels)) for kind, pixels in drafted.items()]
    return found


def _agreement(precision: Precision, compiled: bool, decoder: str, exact: NDArray[np.float32], named: NDArray[np.int64]) -> Agreement:
    leads = exact.max(axis=1) - np.take_along_axis(exact, named[:, None], axis=1)[:, 0]
    return Agreement(precision, compiled, decoder, float((leads == 0).mean()), float(leads.max()), len(named))


def _model(precision: Precision, *, compiled: bool) -> DeviceModel:
    settings = InferenceSettings(
        model="efficientnet_lite0",
        weights="package:efficientnet_lite0",
        device="cpu",
        precision=precision,
        compile="on" if compiled else "off",
        max_batch=_BATCH,
    )
    return prepare_model([settings], publish=lambda _: None, connect_timeout_s=1)


def _batches(pixels: Sequence[Pixels]) -> Iterator[Sequence[Pixels]]:
    return (pixels[start : start + _BATCH] for start in range(0, len(pixels), _BATCH))


def _logits(model: DeviceModel, pixels: Sequence[Pixels]) -> NDArray[np.float32]:
    return np.concatenate([model.logits(batch) for batch in _batches(pixels)])


def _named(model: DeviceModel, pixels: Sequence[Pixels]) -> NDArray[np.int64]:
    return np.concatenate([model.infer(batch)[0][:, 0] for batch in _batches(pixels)])


def _encoded(picture: Image.Image, kind: str, **options: int) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def main() -> int:
    """Print the table; the exit status is 1 where the agreement is less than wanted."""
    parser = argparse.ArgumentParser(prog="benchmarks.accuracy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crops", type=int, default=600)
    parser.add_argument("--photographs", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    found = measure(arguments.crops, [("fp32", False), ("fp32", True), ("bf16", True), ("fp16", False)], arguments.photographs)
    table = Table(title=f"Top-1 agreement with float32, {arguments.crops} crops")
    for column in ("precision", "compiled", "decoded from", "agreement", "largest lead lost"):
        table.add_column(column)
    for one in found:
        table.add_row(one.precision, "yes" if one.compiled else "no", one.decoder, f"{one.share:.2%}", f"{one.lost_lead:.3f}")
    Console().print(table)
    return 0 if all(one.share >= WANTED for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
