"""Photographs, torchvision's own crop of them, a weights server, and a GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode  # type: ignore[import-untyped]  # torchvision ships no types
from torchvision.transforms import functional as F  # noqa: N812 - its usual name

from inference.types import Pixels, Preprocessing
from support.pictures import photo
from support.weights_server import WeightsServer, serve_weights

Crop = Callable[[Image.Image, Preprocessing], Pixels]


@pytest.fixture(scope="session")
def photographs() -> dict[str, Image.Image]:
    """Three photographs that scikit-image carries, RGB."""
    return {name: photo(f"{name}.{suffix}") for name, suffix in (("coffee", "png"), ("chelsea", "png"), ("rocket", "jpg"))}


@pytest.fixture(scope="session")
def crop() -> Crop:
    """Torchvision's own resizing and cropping of a Pillow picture, stopped before it becomes floating point."""

    def to_pixels(picture: Image.Image, preprocessing: Preprocessing) -> Pixels:
        resized = F.resize(picture, [preprocessing.resize_px], interpolation=InterpolationMode(preprocessing.interpolation))
        return np.array(F.center_crop(resized, [preprocessing.crop_px]), dtype=np.uint8)

    return to_pixels


@pytest.fixture(scope="session")
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU with a driver for torch's CUDA build")
    return torch.device("cuda:0")


@pytest.fixture
def weights_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WeightsServer]:
    """A real HTTP server on the loopback that serves 300,000 seeded random bytes under a name with their hash."""
    monkeypatch.setenv("no_proxy", "*")
    with serve_weights(np.random.default_rng(1).bytes(300_000)) as server:
        yield server
