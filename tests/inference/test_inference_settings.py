"""Which settings of the model go together, and which file the weights setting names."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference.settings import InferenceSettings


@pytest.mark.parametrize(
    ("model", "weights"),
    [("resnet50", "DEFAULT"), ("resnet50", "IMAGENET1K_V2"), ("efficientnet_lite0", "package:efficientnet_lite0")],
)
def test_a_card_and_a_package_are_no_files(model: str, weights: str) -> None:
    assert InferenceSettings(model=model, weights=weights).weights_path is None


@pytest.mark.parametrize(
    ("model", "weights"),
    [
        ("efficientnet_lite0", "DEFAULT"),
        ("resnet50", "package:efficientnet_lite0"),
        ("efficientnet_lite0", "package:efficientnet_lite1"),
        ("efficientnet_lite0", "/somewhere/weights.pth"),
        ("efficientnet_lite0", "/somewhere/package:efficientnet_lite0"),
    ],
)
def test_the_packaged_model_and_its_weights_go_together_only(model: str, weights: str) -> None:
    with pytest.raises(ValueError, match=f"WEIGHTS=package:efficientnet_lite0 go together, but the settings say {model} and {weights}"):
        InferenceSettings(model=model, weights=weights)


@pytest.mark.parametrize("weights", ["DEFAULT", "IMAGENET1K_V2"])
def test_a_card_that_would_be_ignored_is_refused(weights: str) -> None:
    with pytest.raises(ValueError, match="goes with a local weights file only"):
        InferenceSettings(weights=weights, card="IMAGENET1K_V1")


def test_a_card_goes_with_a_local_file() -> None:
    assert InferenceSettings(weights="flowers.pth", card="IMAGENET1K_V1").card == "IMAGENET1K_V1"


def test_a_home_folder_is_found() -> None:
    assert InferenceSettings(weights="~/flowers.pth").weights_path == Path.home() / "flowers.pth"


def test_the_home_of_somebody_unknown_is_a_path_like_any_other() -> None:
    assert InferenceSettings(weights="~nobody-has-this-name/x.pth").weights_path == Path("~nobody-has-this-name/x.pth")


@pytest.mark.parametrize("fraction", ["0.25", "1", "1.0"])
def test_a_share_of_the_gpus_memory_can_be_set(fraction: str) -> None:
    assert InferenceSettings.model_validate({"gpu_memory_fraction": fraction}).gpu_memory_fraction == float(fraction)


@pytest.mark.parametrize("fraction", ["0", "-0.5", "1.01", "nan", "inf", "half", ""])
def test_what_is_no_share_of_the_gpus_memory_stops_the_start(fraction: str) -> None:
    with pytest.raises(ValueError, match="gpu_memory_fraction"):
        InferenceSettings.model_validate({"gpu_memory_fraction": fraction})
