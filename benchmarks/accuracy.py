"""How often the served model names the class that the exact one names: in every number format, compiled or not, however it is decoded.

    python -m benchmarks.accuracy [--crops 600] [--photographs FOLDER]

The packaged ImageNet weights on random crops of real photographs: of scikit-image's, or of your own. The reference is float32, not
compiled, on the same file decoded in full, which `tests/inference/test_image_fit.py` holds to torchvision's pixels. Where another class is
named, it says by how much the exact model preferred its own: a crop in which it sees nothing clearly is decided by a hair.
"""

from __future__ import annotations

import argparse
import importlib.resources
import io
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from rich.console import Console
from rich.table import Table

from inference.close_calls import is_close_call
from inference.image import decode
from inference.settings import InferenceSettings
from inference.types import Pixels, Preprocessing
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
_DRAFTED: Final = "JPEG, drafted"
_AS_SERVED: Final = "JPEG, as served"


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
    off_by: float
    """The largest difference from the exact model's probability of the class that is named."""
    pixels_off_by: tuple[float, float]
    """How far the pixels are from those of the file decoded in full, in levels of 255: in the mean, and in 99 of 100."""
    twice: float = 0.0
    """What share of the crops was decoded and run twice."""


def photographs(folder: Path | None) -> list[Path]:
    """All JPEG, PNG and WebP files of a folder, or scikit-image's photographs.

    Raises:
        ValueError: the folder holds none, or is none.
    """
    if folder is None:
        packaged = Path(str(importlib.resources.files("skimage"))) / "data"
        return [packaged / name for name in _PHOTOGRAPHS]
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    if not found:
        raise ValueError(f"{folder} holds no photograph.")
    return found


def crops(count: int, paths: Sequence[Path], seed: int = 0) -> Iterator[Image.Image]:
    """Random crops: between half of the shorter side and all of it, half of them mirrored. As many of each photograph."""
    random = np.random.default_rng(seed)
    for path, of_it in Counter(paths[index % len(paths)] for index in range(count)).items():
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGB")
        for _ in range(of_it):
            side = max(1, int(min(picture.size) * random.uniform(0.5, 1.0)))
            left, top = (int(random.integers(0, length - side + 1)) for length in picture.size)
            crop = picture.crop((left, top, left + side, top + side))
            yield crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else crop


def files(crop: Image.Image, preprocessing: Preprocessing) -> dict[str, bytes]:
    """A crop as PNG, as lossy WebP, as JPEG, and as a JPEG so large that its decoder scales it (`inference.image.fit.draft_size`)."""
    drafted_from_px = 4 * preprocessing.resize_px
    small, large = min(crop.width, drafted_from_px - 1), max(crop.width, drafted_from_px)
    whole, drafted = (crop.resize((side, side), Image.Resampling.BICUBIC) if side != crop.width else crop for side in (small, large))
    return {
        "PNG": _encoded(whole, "PNG", compress_level=1),
        "WebP": _encoded(whole, "WEBP", quality=90),
        "JPEG": _encoded(whole, "JPEG", quality=90),
        _DRAFTED: _encoded(drafted, "JPEG", quality=90),
    }


def measure(count: int, served: Sequence[tuple[Precision, bool]], paths: Sequence[Path]) -> list[Agreement]:
    """Compare each of the number formats, compiled or not, with the exact model, by every way of decoding."""
    exact_model = _model("fp32", compiled=False)
    preprocessing = exact_model.info.preprocessing
    whole: dict[str, list[Pixels]] = defaultdict(list)
    drafted: list[Pixels] = []
    for crop in crops(count, paths):
        for kind, data in files(crop, preprocessing).items():
            whole[kind].append(decode(data, preprocessing=preprocessing, max_pixels=_MAX_PIXELS, draft=False).pixels)
            if kind == _DRAFTED:
                drafted.append(decode(data, preprocessing=preprocessing, max_pixels=_MAX_PIXELS).pixels)
    exact = {kind: _logits(exact_model, pixels) for kind, pixels in whole.items()}
    decoded = whole | {_DRAFTED: drafted}
    pixels_off_by = {kind: _difference(pixels, whole[kind]) for kind, pixels in decoded.items()}
    found = []
    for precision, compiled in served:
        model = _model(precision, compiled=compiled)
        for kind, pixels in decoded.items():
            ids, probabilities = _answers(model, pixels)
            found.append(Agreement(precision, compiled, kind, *_compared(exact[kind], ids, probabilities), pixels_off_by[kind]))
        # `ids` and `probabilities` are those of the drafted pictures now, the last.
        close = np.array([is_close_call(row) for row in probabilities.tolist()])
        again = [picture if twice else as_drafted for picture, as_drafted, twice in zip(whole[_DRAFTED], drafted, close, strict=True)]
        off_by = _difference(again, whole[_DRAFTED])
        named = _compared(exact[_DRAFTED], *_answers(model, again))
        found.append(Agreement(precision, compiled, _AS_SERVED, *named, off_by, float(close.mean())))
    return found


def _compared(exact: NDArray[np.float32], ids: NDArray[np.int64], probabilities: NDArray[np.float32]) -> tuple[float, float, float]:
    """The share of the same class, the largest lead lost and the largest error of a probability."""
    logits = np.take_along_axis(exact, ids[:, :1], axis=1)[:, 0]
    highest = exact.max(axis=1)
    exact_probabilities = np.exp(logits - highest) / np.exp(exact - highest[:, None]).sum(axis=1)
    leads = highest - logits
    return float((leads == 0).mean()), float(leads.max()), float(np.abs(probabilities[:, 0] - exact_probabilities).max())


def _difference(one: Sequence[Pixels], other: Sequence[Pixels]) -> tuple[float, float]:
    levels = np.array([np.bincount(np.abs(a.astype(np.int16) - b).ravel(), minlength=256) for a, b in zip(one, other, strict=True)]).sum(
        axis=0
    )
    share = levels.cumsum() / levels.sum()
    return float((levels * np.arange(256)).sum() / levels.sum()), float(np.searchsorted(share, 0.99))


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


def _answers(model: DeviceModel, pixels: Sequence[Pixels]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The most probable classes of each picture and their probabilities, as a caller gets them: both `[N, K]`."""
    answers = [model.infer(batch) for batch in _batches(pixels)]
    return np.concatenate([ids for ids, _ in answers]), np.concatenate([scores for _, scores in answers])


def _encoded(picture: Image.Image, kind: str, **options: int) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.accuracy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crops", type=int, default=600)
    parser.add_argument("--photographs", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    served: list[tuple[Precision, bool]] = [("fp32", False), ("fp32", True), ("bf16", True), ("fp16", False)]
    try:
        paths = photographs(arguments.photographs)
    except ValueError as error:
        parser.error(str(error))
    found = measure(arguments.crops, served, paths)
    table = Table(title=f"Top-1 agreement with float32, {arguments.crops} crops")
    for column in ("precision", "compiled", "decoded from", "agreement", "largest lead lost", "p off by", "pixels off by", "twice"):
        table.add_column(column)
    for one in found:
        table.add_row(
            one.precision,
            "yes" if one.compiled else "no",
            one.decoder,
            f"{one.share:.2%}{' missed' * (one.share < WANTED)}",
            f"{one.lost_lead:.3f}",
            f"{one.off_by:.3f}",
            "{:.2f}, {:.0f}".format(*one.pixels_off_by),
            f"{one.twice:.1%}" if one.twice else "",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
