"""Reads the operator's file of labels."""

from __future__ import annotations

from pathlib import Path

from inference.errors import ModelLoadError

# ImageNet-21k, the largest common label set, has 21,841 labels in 0.5 MB.
MAX_LABELS = 100_000
_MAX_FILE_BYTES = 16 * 1024**2


def read_labels(path: Path) -> tuple[str, ...]:
    """Read a UTF-8 text file with a label a line, in the order of the class ids.

    Raises:
        ModelLoadError: the file is missing, no UTF-8, too long, or has a line that is blank or holds control characters.
    """
    try:
        with path.expanduser().open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ModelLoadError(f"The labels file {path} cannot be read: {error.strerror}.") from error
    if len(content) > _MAX_FILE_BYTES:
        raise ModelLoadError(f"The labels file {path} is larger than {_MAX_FILE_BYTES} bytes.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelLoadError(f"The labels file {path} is not UTF-8 (byte {error.start}).") from error
    labels = tuple(line.strip() for line in text.removesuffix("\n").split("\n"))
    if not 2 <= len(labels) <= MAX_LABELS:
        raise ModelLoadError(f"The labels file {path} has {len(labels)} lines; a classifier has 2 to {MAX_LABELS} classes.")
    for number, label in enumerate(labels, start=1):
        if not label or not label.isprintable():
            raise ModelLoadError(f"Line {number} of the labels file {path} is {'no plain text' if label else 'blank'}.")
    return labels
