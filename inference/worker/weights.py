"""From the settings to a network with its weights, in float32 on the CPU, and all that is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from inference.errors import ModelLoadError
from inference.settings import PACKAGED_MODEL, InferenceSettings
from inference.types import ModelInfo
from inference.worker.cards import Card, build_empty, current_keys, find_card
from inference.worker.download import fetch, fetch_hashed, sha256_of
from inference.worker.labels import read_labels
from inference.worker.packaged import load_packaged, packaged_card, packaged_file
from inference.worker.state_dict import fill, read_state_dict
from inference.worker.transfer import Progress


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """A network ready to be moved to its device."""

    module: nn.Module
    """In inference mode, float32, on the CPU: `[N,3,crop_px,crop_px]` normalised pictures in, `[N,classes]` logits out."""
    info: ModelInfo
    """As it lies in memory now; `DeviceModel` puts in the precision and the device that it runs with."""
    mean: tuple[float, float, float]
    """Of the red, green and blue channels, in the range 0 to 1."""
    std: tuple[float, float, float]


def load_weights(settings: InferenceSettings, *, progress: Progress | None = None, connect_timeout_s: float = 10.0) -> LoadedWeights:
    """Build the model that the settings name and load its weights, from the network where they are not here yet. Blocks.

    Args:
        settings: `model`, `weights`, `card` and `labels` are read.
        progress: told the bytes downloaded so far and the total (None when unknown); never called when nothing is downloaded.
        connect_timeout_s: the most seconds to wait for the download server's answer.

    Raises:
        ModelLoadError: the model cannot be served as configured; the message is one line that says what to do.
    """
    card = _card_of(settings)
    # Read before anything large, so that a mistake in it shows at once.
    labels = card.labels if settings.labels is None else read_labels(settings.labels)
    if settings.weights_path is not None:
        version, (module, digest) = settings.weights_path.stem, _load_file(settings.weights_path, settings.model, card, labels)
    elif len(labels) != len(card.labels):
        raise ModelLoadError(f"The labels file {settings.labels} has {len(labels)} labels; the model has {len(card.labels)} classes.")
    elif settings.model == PACKAGED_MODEL:
        version, (module, digest) = card.name, load_packaged()
    else:
        path, digest = fetch_hashed(card.url, progress=progress, connect_timeout_s=connect_timeout_s)
        version, module = card.name, _build_from(path, settings.model, card, len(labels))
    info = ModelInfo(
        name=settings.model,
        version=version,
        digest=f"sha256:{digest}",
        precision="fp32",
        device="cpu",
        preprocessing=card.preprocessing,
        labels=labels,
    )
    return LoadedWeights(module=module, info=info, mean=card.mean, std=card.std)


def fetch_weights(settings: InferenceSettings, *, progress: Progress | None = None, connect_timeout_s: float = 10.0) -> Path:
    """Make sure that the settings' weights file is on this machine and return where; a torchvision file is downloaded. Loads nothing.

    Raises:
        ModelLoadError: as `load_weights`.
    """
    card = _card_of(settings)
    path = settings.weights_path
    if path is None:
        return (
            packaged_file() if settings.model == PACKAGED_MODEL else fetch(card.url, progress=progress, connect_timeout_s=connect_timeout_s)
        )
    if not path.is_file():
        raise ModelLoadError(f"There is no weights file {path}.")
    return path


def _card_of(settings: InferenceSettings) -> Card:
    """Return the card that goes with the settings' weights."""
    if settings.weights_path is not None:
        return find_card(settings.model, settings.card or "DEFAULT")
    if settings.model == PACKAGED_MODEL:
        return packaged_card()
    card = find_card(settings.model, settings.weights)
    if not card.labels:
        raise ModelLoadError(f"{settings.model}'s weights {card.name} have no classifier, so they cannot be served.")
    return card


def _load_file(path: Path, model: str, card: Card, labels: tuple[str, ...]) -> tuple[nn.Module, str]:
    """Return the network with the weights of an operator's file, and the file's SHA-256."""
    if path.suffix not in (".pth", ".pt", ".safetensors"):
        raise ModelLoadError(f"The weights file {path} must end in .pth or .safetensors.")
    if not labels:
        raise ModelLoadError(f"The weights card {card.name} has no labels: name a file of them in LENSGATE_INFERENCE__LABELS.")
    try:
        digest = sha256_of(path)
    except OSError as error:
        raise ModelLoadError(f"The weights file {path} cannot be read: {error.strerror}.") from error
    return _build_from(path, model, card, len(labels)), digest


def _build_from(path: Path, model: str, card: Card, classes: int) -> nn.Module:
    module = build_empty(model, card, classes)
    fill(module, current_keys(read_state_dict(path)), model=model, classes=classes, source=str(path))
    return module
