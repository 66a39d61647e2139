"""The photographs of a soak, in several formats and sizes, and what the service must say of each."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from support.pictures import encode, photo

LABELS: Final = {
    "coffee.png": {"espresso"},
    "chelsea.png": {"tabby", "tiger cat", "Egyptian cat"},
    "rocket.jpg": {"missile", "projectile"},
}
"""What is on them, in the words of ImageNet. More than one where a network may well settle on either."""
CONFIDENCE_TOLERANCE: Final = 0.03
"""Between one picture's runs in batches of different sizes, whose sums are rounded differently."""


@dataclass
class Photograph:
    """One file. `expected` is the first answer that the quiet service gave."""

    name: str
    labels: set[str]
    content_type: str
    data: bytes
    expected: dict[str, Any] | None = None

    @cached_property
    def base64(self) -> str:
        """For JSON bodies."""
        return b64encode(self.data).decode()

    def complaint(self, found: dict[str, Any]) -> str | None:
        """What is wrong with a prediction; None when it is right."""
        predictions = found["predictions"]
        if found["label"] not in self.labels:
            return f"{self.name} is called {found['label']}"
        if any(found[key] != predictions[0][key] for key in ("class_id", "label", "confidence")):
            return f"{self.name}: the first of the predictions is another"
        scores = [one["confidence"] for one in predictions]
        if scores != sorted(scores, reverse=True) or not 0 < scores[0] <= 1:
            return f"{self.name}: {scores} are no probabilities in order"
        if self.expected is not None:
            known = {one["class_id"]: one["confidence"] for one in self.expected["predictions"]}
            mine = known.get(found["class_id"])
            if mine is None or abs(mine - found["confidence"]) > CONFIDENCE_TOLERANCE:
                return f"{self.name}: {found['label']} at {found['confidence']:.3f}, and {mine} when it was quiet"
        return None


def photographs() -> list[Photograph]:
    """Each as PNG, JPEG and WebP, whole and smaller."""
    found = []
    for name, labels in LABELS.items():
        whole = photo(name)
        half = whole.resize((whole.width * 2 // 3, whole.height * 2 // 3))
        for image, size in ((whole, "whole"), (half, "smaller")):
            for form, options in (("JPEG", {"quality": 92}), ("WEBP", {"quality": 92}), ("PNG", {})):
                data = encode(image, form, **options)
                found.append(Photograph(f"{name} {size} {form}", labels, f"image/{form.lower()}", data))
    return found
