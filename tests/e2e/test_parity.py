"""What is served equals torchvision's own pipeline: `weights.transforms()` and the eager float32 model, from the file's bytes on."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import models  # type: ignore[import-untyped]  # torchvision ships no types

from inference.image import decode
from inference.settings import InferenceSettings
from inference.worker.model import DeviceModel
from inference.worker.weights import load_weights
from support.random_weights import SPREAD, random_classifier
from support.service import Service

MAX_PIXELS = 50_000_000
LOGIT_TOLERANCE = 1e-3
"""Of the largest logit: what the order of float32 sums, which differs from processor to processor, may change."""
DRAFT_TOLERANCE = 0.05
"""Of the largest logit, with trained weights. Drafting (libjpeg scales first, Pillow after) moved the logits by 0.024 at most on these
photographs at 2 to 6 times their size; coding them as JPEG of quality 75 in the first place moves them by up to 0.075. Random weights,
whose logits are stretched until three photographs differ clearly, magnify a quarter of a grey level beyond any use as a measure."""


@dataclass(frozen=True)
class Parity:
    """One architecture with random weights that tell the pictures apart: ours, and torchvision's own."""

    served: DeviceModel
    reference: Callable[[bytes], NDArray[np.float32]]
    files: Mapping[str, bytes]

    def logits(self, data: bytes, *, draft: bool = True) -> NDArray[np.float32]:
        image = decode(data, preprocessing=self.served.info.preprocessing, max_pixels=MAX_PIXELS, draft=draft)
        logits: NDArray[np.float32] = self.served.logits([image.pixels])[0]
        return logits


def encoded(picture: Image.Image, kind: str, **options: int) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def is_top(served: NDArray[np.float32], expected: NDArray[np.float32], k: int) -> bool:
    """Whether the k best of `served` are the k best of `expected`; two logits nearer to each other than the tolerance may change places."""
    best = np.argsort(-served)[:k]
    return bool(np.all(np.abs(expected[best] - np.sort(expected)[::-1][:k]) <= LOGIT_TOLERANCE * np.abs(expected).max()))


@pytest.fixture(scope="module", params=["resnet50", "vit_b_16", "efficientnet_b3", "convnext_tiny"])
def parity(request: pytest.FixtureRequest, photographs_by_name: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Parity:
    pictures = {name: Image.open(io.BytesIO(data)).convert("RGB") for name, data in photographs_by_name.items()}
    model = str(request.param)
    reference = random_classifier(model, list(pictures.values()))
    weights = tmp_path_factory.mktemp(model) / "random.pth"
    torch.save(reference.state_dict(), weights)
    settings = InferenceSettings(model=model, weights=str(weights), device="cpu", precision="fp32", max_batch=len(pictures))
    served = DeviceModel(load_weights(settings), settings)
    weights.unlink()
    transforms = models.get_model_weights(model).DEFAULT.transforms()

    def torchvision_logits(data: bytes) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits = reference(transforms(Image.open(io.BytesIO(data)).convert("RGB"))[None])[0]
        assert isinstance(logits, torch.Tensor)
        return logits.numpy()

    files = {f"{name}.{kind}": encoded(picture, kind) for name, picture in pictures.items() for kind in ("png", "jpeg")}
    return Parity(served, torchvision_logits, files)


def test_random_weights_tell_the_pictures_apart(parity: Parity) -> None:
    logits = np.stack([parity.reference(data) for name, data in parity.files.items() if name.endswith(".png")])
    assert logits.std(axis=0).mean() > SPREAD / 4


@pytest.mark.parametrize("suffix", ["png", "jpeg"])
def test_logits_and_top_five_are_torchvisions(parity: Parity, suffix: str) -> None:
    files = [data for name, data in parity.files.items() if name.endswith(suffix)]
    assert len(files) == 3
    for data in files:
        expected, served = parity.reference(data), parity.logits(data, draft=False)
        assert np.abs(served - expected).max() <= LOGIT_TOLERANCE * np.abs(expected).max()
        assert is_top(served, expected, 5)


@pytest.mark.parametrize("times", [3, 4, 6])
def test_a_drafted_jpeg_is_within_tolerance_and_names_the_same_class(photographs_by_name: dict[str, bytes], times: int) -> None:
    settings = InferenceSettings(model="efficientnet_lite0", weights="package:efficientnet_lite0", device="cpu", precision="fp32")
    model = DeviceModel(load_weights(settings), settings)
    drafted = 0
    for data in photographs_by_name.values():
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        file = encoded(picture.resize((picture.width * times, picture.height * times), Image.Resampling.BICUBIC), "JPEG", quality=75)
        crops = [decode(file, preprocessing=model.info.preprocessing, max_pixels=MAX_PIXELS, draft=draft).pixels for draft in (False, True)]
        whole, draft = model.logits(crops)
        drafted += not np.array_equal(crops[0], crops[1])
        assert np.abs(draft - whole).max() <= DRAFT_TOLERANCE * np.abs(whole).max()
        assert draft.argmax() == whole.argmax()
    assert drafted >= 2, "nothing was drafted, so nothing was compared"


def test_a_batch_gives_what_each_picture_gives_alone(parity: Parity) -> None:
    preprocessing = parity.served.info.preprocessing
    pixels = [decode(data, preprocessing=preprocessing, max_pixels=MAX_PIXELS).pixels for data in list(parity.files.values())[:3]]
    together = parity.served.logits(pixels)
    for row, one in enumerate(pixels):
        alone = parity.served.logits([one])[0]
        assert np.abs(together[row] - alone).max() <= LOGIT_TOLERANCE * np.abs(alone).max()


def test_the_probabilities_over_http_are_torchvisions(
    start_service: Callable[..., Service], photographs_by_name: dict[str, bytes], tmp_path: Path
) -> None:
    pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in photographs_by_name.values()]
    reference = random_classifier("resnet50", pictures)
    torch.save(reference.state_dict(), tmp_path / "random.pth")
    service = start_service(
        {
            "LENSGATE_INFERENCE__MODEL": "resnet50",
            "LENSGATE_INFERENCE__WEIGHTS": "random.pth",
            "LENSGATE_INFERENCE__PRECISION": "fp32",
            "LENSGATE_INFERENCE__DEVICE": "cpu",
        }
    )
    service.wait_ready()
    token = service.token(service.create_client("parity", "predict"))
    transforms = models.ResNet50_Weights.DEFAULT.transforms()
    for picture in pictures:
        with torch.inference_mode():
            expected = torch.softmax(reference(transforms(picture)[None]), dim=1)[0]
        answer = service.predict(encoded(picture, "PNG"), token, query="?top_k=100").json()
        served = {one["class_id"]: one["confidence"] for one in answer["predictions"]}
        assert len(served) == 100
        for class_id, confidence in served.items():
            assert confidence == pytest.approx(float(expected[class_id]), rel=2e-2, abs=1e-6)
        best = [float(expected[one["class_id"]]) for one in answer["predictions"][:5]]
        assert best == pytest.approx(expected.sort(descending=True).values[:5].tolist(), rel=2e-2, abs=1e-6)
