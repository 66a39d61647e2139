"""The same pictures through torchvision's own pipeline and through ours: the same logits and the same five classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision import models  # type: ignore[import-untyped]  # torchvision ships no types

from inference.settings import InferenceSettings
from inference.types import Pixels, Preprocessing
from inference.worker.model import DeviceModel
from inference.worker.weights import load_weights
from support.random_weights import SPREAD, random_classifier

Crop = Callable[[Image.Image, Preprocessing], Pixels]

_CLASSIFIERS = {"resnet50": ".pth", "vit_b_16": ".safetensors", "efficientnet_b3": ".pth", "convnext_tiny": ".safetensors"}


def _compare_with_torchvision(model: str, device: str, photographs: dict[str, Image.Image], crop: Crop, folder: Path) -> None:
    pictures = list(photographs.values())
    reference = random_classifier(model, pictures)
    transforms = models.get_model_weights(model).DEFAULT.transforms()
    with torch.inference_mode():
        expected = reference(torch.stack([transforms(picture) for picture in pictures])).numpy()
    assert expected.std(axis=0).mean() > SPREAD / 2, "the weights do not tell the pictures apart, so the comparison would prove nothing"
    top = np.argsort(-expected, axis=1)[:, :5]
    assert len({tuple(row) for row in top}) == len(pictures)

    weights = folder / f"random{_CLASSIFIERS[model]}"
    if weights.suffix == ".pth":
        torch.save(reference.state_dict(), weights)
    else:
        save_file(reference.state_dict(), weights)
    settings = InferenceSettings(model=model, weights=str(weights), device=device, precision="fp32", max_batch=len(pictures))
    served = DeviceModel(load_weights(settings), settings)
    pixels = [crop(picture, served.info.preprocessing) for picture in pictures]

    assert np.abs(served.logits(pixels) - expected).max() <= 1e-3 * np.abs(expected).max()
    ids, probabilities = served.infer(pixels)
    assert ids[:, :5].tolist() == top.tolist()
    expected_probabilities = torch.softmax(torch.from_numpy(expected), dim=1).numpy()
    np.testing.assert_allclose(probabilities[:, :5], np.take_along_axis(expected_probabilities, top, axis=1), rtol=1e-2)


@pytest.mark.parametrize("model", _CLASSIFIERS)
def test_logits_and_top_five_equal_torchvisions_own_pipeline(
    model: str, photographs: dict[str, Image.Image], crop: Crop, tmp_path: Path
) -> None:
    _compare_with_torchvision(model, "cpu", photographs, crop, tmp_path)


@pytest.mark.gpu
@pytest.mark.parametrize("model", _CLASSIFIERS)
def test_a_gpu_in_fp32_equals_torchvisions_own_pipeline(
    model: str, cuda: torch.device, photographs: dict[str, Image.Image], crop: Crop, tmp_path: Path
) -> None:
    _compare_with_torchvision(model, str(cuda), photographs, crop, tmp_path)
