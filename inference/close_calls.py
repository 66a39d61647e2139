"""When two classes are so close that the way in which a picture was decoded may have decided between them. See docs/decisions/0007."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

CLOSE_RATIO: Final = 1.25
"""A JPEG that was decoded at a part of its size names another class than the whole one for 2 or 3 of 100 crops; where the class that it
names is at least so many times as probable as the next, for at most 1 of 200 (`benchmarks.accuracy`)."""
RANKS: Final = 2
"""How many of the most probable classes must be known to tell."""


def is_close_call(probabilities: Sequence[float]) -> bool:
    """Whether the second class is nearly as probable as the first.

    Args:
        probabilities: of the most probable classes, in falling order; with less than two there is nothing to choose between.
    """
    return len(probabilities) >= RANKS and probabilities[0] < CLOSE_RATIO * probabilities[1]
