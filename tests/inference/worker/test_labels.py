from __future__ import annotations

from pathlib import Path

import pytest

from inference.errors import ModelLoadError
from inference.worker.labels import MAX_LABELS, read_labels


@pytest.mark.parametrize(
    "content",
    ["cat\ndog\nÉclair", "cat\ndog\nÉclair\n", "cat\r\ndog\r\nÉclair\r\n", "\ufeffcat\n dog \nÉclair"],
    ids=["bare", "final newline", "Windows", "byte order mark and spaces"],
)
def test_a_label_a_line_is_read_in_order(content: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(content.encode())
    assert read_labels(path) == ("cat", "dog", "Éclair")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"cat\n\ndog\n", "Line 2 .* is blank"),
        (b"cat\ndog\n\n", "Line 3 .* is blank"),
        (b"cat\nd\x1b[31mog\n", "Line 2 .* is no plain text"),
        (b"cat\nd\xff\n", r"not UTF-8 \(byte 5\)"),
        (b"", "1 lines; a classifier has 2 to"),
        (b"cat\n", "1 lines; a classifier has 2 to"),
        (b"a\n" * (MAX_LABELS + 1), f"{MAX_LABELS + 1} lines"),
        (b"a" * (16 * 1024**2 + 1), "larger than"),
    ],
)
def test_a_bad_labels_file_is_refused_with_the_place(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=reason):
        read_labels(path)


def test_a_missing_labels_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"nowhere\.txt cannot be read: No such file"):
        read_labels(tmp_path / "nowhere.txt")
