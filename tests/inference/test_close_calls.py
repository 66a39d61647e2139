from __future__ import annotations

import pytest

from inference.close_calls import is_close_call


@pytest.mark.parametrize(
    ("probabilities", "close"),
    [
        ([0.5, 0.45], True),
        ([0.4, 0.4, 0.2], True),
        ([0.5, 0.39, 0.11], False),
        ([0.9, 0.1], False),
        ([1.0, 0.0], False),
        ([1.0], False),
        ([], False),
    ],
)
def test_two_classes_that_are_nearly_as_probable_are_a_close_call(probabilities: list[float], close: bool) -> None:
    assert is_close_call(probabilities) == close
