"""torchvision's image classifiers and their weights cards: what each file was trained with, and the network it goes into."""

from __future__ import annotations

import difflib
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from inference.errors import ModelLoadError
from inference.settings import PACKAGED_MODEL
from inference.types import Interpolation, Preprocessing

_AUXILIARY_HEADS = ("aux1.", "aux2.", "AuxLogits.")
# torchvision's DenseNet files predate the rule that a module's name has no dot: norm.1 is norm1 today.
_OLD_DENSENET_KEY = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a weights file's publisher says of it."""

    name: str
    """`IMAGENET1K_V2`, say; never `DEFAULT`."""
    url: str
    preprocessing: Preprocessing
    mean: tuple[float, float, float]
    """Of the red, green and blue channels, in the range 0 to 1."""
    std: tuple[float, float, float]
    labels: tuple[str, ...]
    """Empty where the weights have no classifier (`IMAGENET1K_FEATURES`)."""


def find_card(model: str, name: str) -> Card:
    """Return the card `name` (`DEFAULT` for torchvision's own choice) of the classifier `model`.

    Raises:
        ModelLoadError: no such model or card; the message lists the nearest names.
    """
    from torchvision import models  # type: ignore[import-untyped]  # torchvision ships no types

    classifiers = models.list_models(module=models)
    if model not in classifiers:
        raise ModelLoadError(f"There is no model {model!r}. {_nearest(model, [*classifiers, PACKAGED_MODEL])}")
    cards = models.get_model_weights(model)
    wanted = name.removeprefix(f"{cards.__name__}.")
    if wanted not in cards.__members__:
        raise ModelLoadError(f"{model} has no weights {name!r}; it has {', '.join(cards.__members__)}.")
    weights = cards[wanted]
    preset = weights.transforms()
    interpolation = preset.interpolation.value
    if interpolation not in get_args(Interpolation):
        raise ModelLoadError(f"{model}'s weights {weights.name} resize pictures by {interpolation!r}, which is not supported.")
    return Card(
        name=weights.name,
        url=weights.url,
        preprocessing=Preprocessing(resize_px=_only(preset.resize_size), crop_px=_only(preset.crop_size), interpolation=interpolation),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        labels=tuple(weights.meta["categories"] or ()),
    )


def imagenet_labels() -> tuple[str, ...]:
    """Return ImageNet-1k's 1,000 labels in torchvision's wording."""
    return find_card("resnet50", "DEFAULT").labels


def build_empty(model: str, card: Card, classes: int) -> nn.Module:
    """Build torchvision's network for the card's input size with `classes` outputs and without the memory for its weights."""
    from torchvision import models

    arguments: dict[str, Any] = {"num_classes": classes}
    crop_px = card.preprocessing.crop_px
    if model.startswith("vit_"):
        arguments["image_size"] = crop_px
    elif model.startswith("maxvit_"):
        arguments["input_size"] = (crop_px, crop_px)
    elif model in ("googlenet", "inception_v3"):
        # The published weights expect the transformed input; the auxiliary heads serve training only.
        arguments |= {"transform_input": True, "aux_logits": False, "init_weights": False}
    return without_memory(lambda: models.get_model_builder(model)(**arguments))


def without_memory(build: Callable[[], Any]) -> nn.Module:
    """Run `build` with its large parameters on torch's meta device: neither allocated nor initialised, to be assigned later."""
    with _ParametersOnMeta():
        module = build()
    if not isinstance(module, nn.Module):
        raise TypeError(f"expected a network, not {type(module)}")
    return module


def current_keys(state: OrderedDict[str, torch.Tensor]) -> OrderedDict[str, torch.Tensor]:
    """Return a torchvision state dict without auxiliary training heads and with DenseNet's old names made new."""
    return OrderedDict(
        (_OLD_DENSENET_KEY.sub(r"\1\2", key), tensor) for key, tensor in state.items() if not key.startswith(_AUXILIARY_HEADS)
    )


class _ParametersOnMeta(TorchFunctionMode):
    """Sends `torch.empty` to the meta device: layers make their weights with it, while RegNet computes its widths with real tensors."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:  # noqa: ANN401 - whatever the intercepted function returns
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _only(size: list[int]) -> int:
    (side_px,) = size
    return side_px


def _nearest(name: str, known: list[str]) -> str:
    matches = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    if not matches:
        return "Any image classifier of torchvision goes by its name there, such as resnet50 or vit_b_16."
    return f"Did you mean {', '.join(matches)}?"
