"""Which file the weights setting names."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference.settings import InferenceSettings


@pytest.mark.parametrize("weights", ["DEFAULT", "IMAGENET1K_V2", "package:efficientnet_lite0"])
def test_a_card_and_a_package_are_no_files(weights: str) -> None:
    assert InferenceSettings(weights=weights).weights_path is None


def test_a_home_folder_is_found() -> None:
    assert InferenceSettings(weights="~/flowers.pth").weights_path == Path.home() / "flowers.pth"


def test_the_home_of_somebody_unknown_is_a_path_like_any_other() -> None:
    assert InferenceSettings(weights="~nobody-has-this-name/x.pth").weights_path == Path("~nobody-has-this-name/x.pth")
