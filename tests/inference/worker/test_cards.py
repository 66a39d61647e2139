from __future__ import annotations

import re

import pytest
import torch
from torchvision import models  # type: ignore[import-untyped]  # torchvision ships no types

from inference.errors import ModelLoadError
from inference.types import Preprocessing
from inference.worker.cards import build_empty, find_card

_CLASSIFIERS = models.list_models(module=models)


@pytest.mark.parametrize("model", _CLASSIFIERS)
def test_every_classifier_is_built_without_memory_for_the_input_of_each_of_its_cards(model: str) -> None:
    cards = [find_card(model, name) for name in models.get_model_weights(model).__members__]
    for side_px, card in {card.preprocessing.crop_px: card for card in cards}.items():
        network = build_empty(model, card, 7)
        assert all(tensor.is_meta or tensor.numel() < 200_000 for tensor in network.state_dict().values())
        # On the meta device shapes are computed and nothing else, so that the largest models are as quick as the smallest.
        assert network.eval().to("meta")(torch.empty(2, 3, side_px, side_px, device="meta")).shape == (2, 7)


def test_a_card_says_what_torchvision_says() -> None:
    card = find_card("resnet50", "IMAGENET1K_V2")
    assert card.name == "IMAGENET1K_V2"
    assert card.url.endswith("/resnet50-11ad3fa6.pth")
    assert card.preprocessing == Preprocessing(resize_px=232, crop_px=224, interpolation="bilinear")
    assert card.mean == (0.485, 0.456, 0.406)
    assert card.std == (0.229, 0.224, 0.225)
    assert (len(card.labels), card.labels[285]) == (1000, "Egyptian cat")


def test_other_cards_of_a_model_have_their_own_preprocessing() -> None:
    assert find_card("resnet50", "IMAGENET1K_V1").preprocessing.resize_px == 256
    assert find_card("efficientnet_b3", "DEFAULT").preprocessing == Preprocessing(resize_px=320, crop_px=300, interpolation="bicubic")
    assert find_card("efficientnet_v2_l", "DEFAULT").mean == (0.5, 0.5, 0.5)
    assert find_card("vit_b_16", "IMAGENET1K_SWAG_E2E_V1").preprocessing.crop_px == 384


def test_default_is_resolved_to_the_name_of_the_card() -> None:
    assert find_card("resnet50", "DEFAULT").name == "IMAGENET1K_V2"


def test_a_card_may_be_named_with_its_enum_as_torchvision_writes_it() -> None:
    assert find_card("resnet50", "ResNet50_Weights.IMAGENET1K_V1").name == "IMAGENET1K_V1"


@pytest.mark.parametrize(
    ("model", "match"),
    [("resnet5", "resnet50"), ("vit_b16", "vit_b_16"), ("efficientnet_lite", "efficientnet_lite0"), ("fcn_resnet50", "resnet50")],
)
def test_an_unknown_model_is_refused_with_the_nearest_names(model: str, match: str) -> None:
    with pytest.raises(ModelLoadError, match=rf"no model '{model}'\. Did you mean .*\b{match}\b"):
        find_card(model, "DEFAULT")


def test_a_model_like_no_other_is_refused_with_examples() -> None:
    with pytest.raises(ModelLoadError, match="such as resnet50"):
        find_card("qqqqqqqqqq", "DEFAULT")


def test_an_unknown_card_is_refused_with_the_ones_there_are() -> None:
    with pytest.raises(ModelLoadError, match=re.escape("it has IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT.")):
        find_card("resnet50", "IMAGENET1K_V3")
