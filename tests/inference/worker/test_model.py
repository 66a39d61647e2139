from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models  # type: ignore[import-untyped]  # torchvision ships no types

from inference.errors import InferenceFailed, ModelLoadError
from inference.settings import InferenceSettings
from inference.types import ModelInfo, Pixels, Preprocessing
from inference.worker.model import DeviceModel
from inference.worker.weights import LoadedWeights, load_weights
from support.random_weights import random_classifier

Crop = Callable[[Image.Image, Preprocessing], Pixels]

_SIDE_PX = 8


class _Tiny(nn.Module):
    """Quick, and with every kind of layer that the code treats apart: one batch norm belongs to its convolution, one does not."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.late_norm = nn.BatchNorm2d(8)
        for norm in (self.norm, self.late_norm):
            nn.init.uniform_(norm.running_mean, -0.2, 0.2)  # type: ignore[arg-type]  # tracked by default
            nn.init.uniform_(norm.running_var, 0.5, 2)  # type: ignore[arg-type]
            nn.init.uniform_(norm.weight, 0.5, 2)
        self.head = nn.Linear(8, classes)
        self.eval().requires_grad_(requires_grad=False)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.late_norm(self.norm(self.conv(batch)).relu()).mean((2, 3)))
        return logits


def _tiny(classes: int = 5, module: nn.Module | None = None) -> LoadedWeights:
    info = ModelInfo(
        name="tiny",
        version="1",
        digest="sha256:0",
        precision="fp32",
        device="cpu",
        preprocessing=Preprocessing(resize_px=_SIDE_PX, crop_px=_SIDE_PX, interpolation="bilinear"),
        labels=tuple(f"class {index}" for index in range(classes)),
    )
    return LoadedWeights(module=module or _Tiny(classes), info=info, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def _settings(**changes: str | int) -> InferenceSettings:
    return InferenceSettings.model_validate({"device": "cpu", "precision": "fp32", "max_batch": 4} | changes)


def _noise(count: int, seed: int = 0) -> list[Pixels]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, _SIDE_PX, _SIDE_PX, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def resnet18(photographs: dict[str, Image.Image], tmp_path_factory: pytest.TempPathFactory) -> DeviceModel:
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(random_classifier("resnet18", list(photographs.values())).state_dict(), path)
    settings = _settings(model="resnet18", weights=str(path), max_batch=8)
    return DeviceModel(load_weights(settings), settings)


def _photograph_pixels(model: DeviceModel, photographs: dict[str, Image.Image], crop: Crop) -> list[Pixels]:
    return [crop(picture, model.info.preprocessing) for picture in photographs.values()]


def test_batched_answers_equal_single_ones(resnet18: DeviceModel, photographs: dict[str, Image.Image], crop: Crop) -> None:
    pixels = _photograph_pixels(resnet18, photographs, crop)
    batched_ids, batched_probabilities = resnet18.infer(pixels)
    assert len({tuple(row[:5]) for row in batched_ids}) == len(pixels)
    for index, picture in enumerate(pixels):
        ids, probabilities = resnet18.infer([picture])
        assert ids[0, :5].tolist() == batched_ids[index, :5].tolist()
        np.testing.assert_allclose(probabilities[0, :5], batched_probabilities[index, :5], rtol=1e-3)


def test_each_row_is_the_answer_for_the_picture_at_its_place(
    resnet18: DeviceModel, photographs: dict[str, Image.Image], crop: Crop
) -> None:
    pixels = _photograph_pixels(resnet18, photographs, crop)
    forwards, _ = resnet18.infer(pixels)
    backwards, _ = resnet18.infer(pixels[::-1])
    assert forwards[:, :5].tolist() == backwards[::-1, :5].tolist()


def test_a_small_batch_after_a_large_one_sees_nothing_of_it(resnet18: DeviceModel, photographs: dict[str, Image.Image], crop: Crop) -> None:
    pixels = _photograph_pixels(resnet18, photographs, crop)
    alone = resnet18.infer(pixels[:1])[1]
    resnet18.infer([pixels[2]] * 8)
    np.testing.assert_array_equal(resnet18.infer(pixels[:1])[1], alone)


def test_answers_stay_as_they_were_when_the_next_batch_runs(resnet18: DeviceModel, photographs: dict[str, Image.Image], crop: Crop) -> None:
    pixels = _photograph_pixels(resnet18, photographs, crop)
    ids, probabilities = resnet18.infer(pixels[:1])
    before = ids.copy(), probabilities.copy()
    resnet18.infer(pixels[1:2])
    np.testing.assert_array_equal(ids, before[0])
    np.testing.assert_array_equal(probabilities, before[1])


@pytest.mark.parametrize(("classes", "answers"), [(3, 3), (100, 100), (250, 100)])
def test_at_most_100_classes_are_returned_most_probable_first(classes: int, answers: int) -> None:
    model = DeviceModel(_tiny(classes), _settings())
    ids, probabilities = model.infer(_noise(2))
    assert ids.shape == probabilities.shape == (2, answers)
    assert (str(ids.dtype), str(probabilities.dtype)) == ("int64", "float32")
    assert (np.diff(probabilities, axis=1) <= 0).all()
    expected = torch.softmax(torch.from_numpy(model.logits(_noise(2))), dim=1).numpy()
    np.testing.assert_allclose(probabilities, np.take_along_axis(expected, ids, axis=1), rtol=1e-5)
    assert all(len(set(row)) == answers for row in ids.tolist())


def test_the_network_is_given_what_torchvision_would_give_it_in_channels_last_memory() -> None:
    seen: list[torch.Tensor] = []
    loaded = _tiny()
    loaded.module.get_submodule("conv").register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    pixels = _noise(3)
    DeviceModel(loaded, _settings()).infer(pixels)
    transforms = models.ResNet18_Weights.DEFAULT.transforms(crop_size=_SIDE_PX, resize_size=_SIDE_PX)
    expected = torch.stack([transforms(Image.fromarray(picture)) for picture in pixels])
    torch.testing.assert_close(seen[0], expected, rtol=1e-6, atol=1e-6)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_precision_asked_for_is_the_one_that_runs_with_batch_norm_in_float32(precision: str, dtype: torch.dtype) -> None:
    loaded = _tiny()
    module = loaded.module
    assert isinstance(module, _Tiny)
    model = DeviceModel(loaded, _settings(precision=precision))
    assert (model.info.precision, model.info.device) == (precision, "cpu")
    assert module.head.weight.dtype == dtype
    assert (module.late_norm.weight.dtype, module.late_norm.running_mean.dtype) == (torch.float32,) * 2  # type: ignore[union-attr]
    exact = DeviceModel(_tiny(), _settings())
    np.testing.assert_allclose(model.logits(_noise(2)), exact.logits(_noise(2)), atol=0.02)


def test_the_rest_of_the_description_is_unchanged() -> None:
    loaded = _tiny()
    model = DeviceModel(loaded, _settings(precision="bf16", max_batch=3))
    assert model.info == msgspec.structs.replace(loaded.info, precision="bf16")
    assert model.max_batch == 3


@pytest.mark.parametrize("count", [0, 5])
def test_too_few_or_too_many_pictures_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"1 to 4 pictures, not {count}"):
        DeviceModel(_tiny(), _settings()).infer(_noise(1) * count)


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((1, 1, 3), np.uint8),
        np.zeros((_SIDE_PX, _SIDE_PX, 1), np.uint8),
        np.zeros((_SIDE_PX, _SIDE_PX), np.uint8),
        np.zeros((3, _SIDE_PX, _SIDE_PX), np.uint8),
        np.zeros((_SIDE_PX, _SIDE_PX, 3), np.float32),
    ],
    ids=lambda picture: f"{picture.shape} {picture.dtype}",
)
def test_a_picture_of_another_shape_or_type_is_refused_not_stretched(picture: Pixels) -> None:
    with pytest.raises(ValueError, match="a picture is"):
        DeviceModel(_tiny(), _settings()).infer([picture])


@pytest.mark.parametrize(
    ("max_batch", "sizes"), [(1, [1]), (3, [3, 2, 1]), (8, [8, 7, 6, 5, 4, 3, 2, 1]), (20, [20, 16, 8, 7, 6, 5, 4, 3, 2, 1])]
)
def test_warm_up_runs_real_batches_the_largest_first(max_batch: int, sizes: list[int]) -> None:
    seen: list[int] = []
    loaded = _tiny()
    loaded.module.get_submodule("conv").register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].shape[0]))
    DeviceModel(loaded, _settings(max_batch=max_batch)).warm_up()
    # Once with its lane's share of the cores, once with all.
    assert seen == [size for size in sizes for _ in range(2)]


@pytest.mark.parametrize(
    ("precision", "advice"), [("fp32", "$"), ("bf16", "$"), ("fp16", ", or LENSGATE_INFERENCE__PRECISION=bf16 or fp32")]
)
def test_weights_with_a_nan_are_found_at_warm_up(precision: str, advice: str) -> None:
    loaded = _tiny()
    assert isinstance(loaded.module, _Tiny)
    loaded.module.conv.weight[0, 0, 0, 0] = math.nan
    with pytest.raises(ModelLoadError, match=rf"no finite numbers in {precision}: the weights are broken\.?{advice}"):
        DeviceModel(loaded, _settings(precision=precision)).warm_up()


class _Failing(nn.Module):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        raise self._error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            RuntimeError("'conv2d' not implemented for 'Half'\nmore"),
            "tiny does not run in fp32 on cpu: 'conv2d' not implemented for 'Half'$",
        ),
        (torch.OutOfMemoryError("out of memory"), "A batch of 4 pictures does not fit .* lower LENSGATE_INFERENCE__MAX_BATCH"),
    ],
)
def test_a_pass_that_fails_at_warm_up_stops_the_start(error: Exception, reason: str) -> None:
    with pytest.raises(ModelLoadError, match=reason):
        DeviceModel(_tiny(module=_Failing(error)), _settings()).warm_up()


class _Overflowing(nn.Module):
    """Gives infinity for a bright picture, as a network in fp16 may."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        brightness = batch.mean((1, 2, 3), keepdim=True).flatten(1)
        return torch.exp(brightness * 100) * torch.arange(1, 6)


def test_a_picture_that_overflows_is_marked_alone() -> None:
    model = DeviceModel(_tiny(module=_Overflowing()), _settings())
    dark, bright = (np.full((_SIDE_PX, _SIDE_PX, 3), value, np.uint8) for value in (20, 255))
    _ids, probabilities = model.infer([dark, bright, dark])
    assert np.isnan(probabilities[1]).all()
    assert np.isfinite(probabilities[[0, 2]]).all()


def test_the_self_test_passes_on_a_sound_device_at_any_precision() -> None:
    for precision in ("fp32", "bf16"):
        model = DeviceModel(_tiny(), _settings(precision=precision))
        model.warm_up()
        model.self_test()


def test_the_self_test_finds_weights_that_have_changed() -> None:
    loaded = _tiny()
    assert isinstance(loaded.module, _Tiny)
    model = DeviceModel(loaded, _settings())
    model.warm_up()
    loaded.module.head.bias[2] += 3
    with pytest.raises(InferenceFailed, match="other numbers"):
        model.self_test()


def test_the_self_test_finds_a_device_that_has_died() -> None:
    loaded = _tiny()
    model = DeviceModel(loaded, _settings())
    model.warm_up()

    def die(*_arguments: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    loaded.module.get_submodule("head").register_forward_pre_hook(die)
    with pytest.raises(InferenceFailed, match="does not run the model any more"):
        model.self_test()


def test_the_self_test_needs_a_warm_up() -> None:
    with pytest.raises(InferenceFailed, match="not been warmed up"):
        DeviceModel(_tiny(), _settings()).self_test()


def test_a_gpu_that_is_not_there_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelLoadError, match="DEVICE=cuda"):
        DeviceModel(_tiny(), _settings(device="cuda"))


def test_the_network_is_moved_in_place_so_that_it_lies_in_memory_once() -> None:
    loaded = _tiny()
    DeviceModel(loaded, _settings(precision="bf16"))
    assert isinstance(loaded.module, _Tiny)
    assert loaded.module.head.weight.dtype == torch.bfloat16


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_a_gpu_batched_answers_equal_single_ones(cuda: torch.device, precision: str, tmp_path: Path) -> None:
    model = DeviceModel(_tiny(), _settings(device=str(cuda), precision=precision))
    model.warm_up()
    model.self_test()
    pixels = _noise(4)
    batched = model.logits(pixels)
    np.testing.assert_allclose(batched, DeviceModel(_tiny(), _settings()).logits(pixels), atol=0.02)
    for index, picture in enumerate(pixels):
        np.testing.assert_allclose(model.logits([picture])[0], batched[index], atol=0.02)
