"""Puts the bounds of this very service into the OpenAPI document: what a body and a picture may be at the most."""

from __future__ import annotations

from typing import Any

from api.openapi import BATCH_PATH
from api.settings import Settings


def add_bounds(document: dict[str, Any], settings: Settings) -> None:
    """Name the settings' bounds in the descriptions of `/predict` and `/predict/batch`, and in the schema of a batch."""
    body = f"A body has at most {settings.http.max_body_bytes:,} bytes, of which base64 counts in full"
    pixels = f"a picture at most {settings.inference.max_pixels:,} pixels (width × height)"
    images = f"at most {settings.http.max_batch_images} pictures"
    for path, bounds in (("/predict", f"{body}; {pixels}."), (BATCH_PATH, f"{body}, and {images}; {pixels}.")):
        document["paths"][path]["post"]["description"] += f"\n\n{bounds}"
    for content in document["paths"][BATCH_PATH]["post"]["requestBody"]["content"].values():
        [pictures] = content["schema"]["properties"].values()
        pictures["maxItems"] = settings.http.max_batch_images
