"""Multipart bodies: what one encoder writes comes back byte for byte, and a body that was cut off never passes for a whole one."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.errors import ApiError, InvalidRequest
from api.multipart import parse_files

_BOUNDARY = st.text(st.sampled_from("ABCxyz0189'()+_-./:=?"), min_size=1, max_size=70)  # RFC 2046 section 5.1.1
_NEARLY_BOUNDARIES = st.sampled_from([b"\r\n", b"\r\n--", b"--", b"\r", b"-", b"\0", b"\r\n\r\n"])
_FILES = st.lists(st.lists(_NEARLY_BOUNDARIES | st.binary(max_size=6), max_size=6).map(b"".join), max_size=5)
_CONTENT_TYPES = st.lists(
    st.sampled_from([b"multipart/form-data", b";", b"boundary", b"=", b"b", b'"', b"\\", b"*", b"0", b"utf-8''", b"%C4%80", b"\xff", b" "])
    | st.binary(max_size=3),
    max_size=12,
).map(lambda parts: b"".join(parts).decode("latin-1"))  # as ASGI's headers are read
_NAMES = st.sampled_from(["a.jpg", "ä.png", "", "a b", "..", "a;b=c", "x" * 300])


def _encode(files: list[bytes], boundary: str, name: str) -> bytes:
    head = f'Content-Disposition: form-data; name="file"; filename="{name}"\r\nContent-Type: image/jpeg\r\n\r\n'.encode()
    parts = [b"--" + boundary.encode() + b"\r\n" + head + data + b"\r\n" for data in files]
    return b"".join(parts) + b"--" + boundary.encode() + b"--\r\n"


def _contains(files: list[bytes], boundary: str) -> bool:
    return any(b"\r\n--" + boundary.encode() in b"\r\n" + data + b"\r\n" for data in files)


def _type(boundary: str) -> str:
    return f'multipart/form-data; boundary="{boundary}"'


@given(_FILES, _BOUNDARY, _NAMES)
def test_files_come_back_as_they_were_sent_in_their_order(files: list[bytes], boundary: str, name: str) -> None:
    if files and not _contains(files, boundary):
        assert parse_files(_encode(files, boundary, name), _type(boundary), max_files=5) == files


@given(_FILES, _BOUNDARY, st.data())
def test_a_body_that_was_cut_off_is_refused(files: list[bytes], boundary: str, data: st.DataObject) -> None:
    if files and not _contains(files, boundary):
        body = _encode(files, boundary, "a.jpg")
        cut = data.draw(st.integers(0, len(body) - len("--\r\n") - 1))
        with pytest.raises(ApiError):
            parse_files(body[:cut], _type(boundary), max_files=5)


@given(st.integers(1, 8), st.integers(1, 8))
def test_no_more_parts_are_read_than_are_allowed(count: int, max_files: int) -> None:
    body = _encode([b"x"] * count, "boundary", "a.jpg")
    if count <= max_files:
        assert len(parse_files(body, _type("boundary"), max_files=max_files)) == count
    else:
        with pytest.raises(InvalidRequest, match=f"allowed here: {max_files}"):
            parse_files(body, _type("boundary"), max_files=max_files)


@given(_CONTENT_TYPES)
def test_any_content_type_is_refused_in_words_or_understood(content_type: str) -> None:
    with suppress(ApiError):
        assert parse_files(_encode([b"x"], "b", "a.jpg"), content_type, max_files=5) == [b"x"]
