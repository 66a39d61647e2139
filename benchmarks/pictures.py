"""The pictures that every contender is sent: a real photograph as a small and as a 12-megapixel JPEG."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from api.demo import photographs

SIZES = {"small": (500, 334), "large": (4248, 2832)}
"""Width and height; the small one is that of the prototypes' measurements, the large one 12 megapixels."""

_QUALITY = {"small": 92, "large": 90}
# An enlarged photograph is smoother than a camera's: its sensor's noise is put back, and with it the work of the decoder.
_NOISE = {"small": 0.0, "large": 6.0}


def load_photographs() -> list[Image.Image]:
    """The demo's three photographs; the first is the one that is sent."""
    return [Image.open(path).convert("RGB") for path in photographs()]


def jpeg(name: str, folder: Path) -> bytes:
    """The photograph in one of `SIZES`, made once and kept in `folder`."""
    path = folder / f"{name}.jpg"
    if not path.is_file():
        width, height = SIZES[name]
        picture = load_photographs()[0].resize((width, height), Image.Resampling.LANCZOS)
        noise = np.random.default_rng(0).normal(0.0, _NOISE[name], (height, width, 1)).astype(np.float32)
        noisy = Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))
        encoded = io.BytesIO()
        noisy.save(encoded, "JPEG", quality=_QUALITY[name])
        path.write_bytes(encoded.getvalue())
    return path.read_bytes()
