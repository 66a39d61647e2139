from __future__ import annotations

import asyncio
import base64
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request

from api.body import decode_base64, read_picture, read_pictures
from api.errors import ApiError, InvalidRequest, MalformedBody
from api.multipart import parse_files
from security.errors import BodyTooLarge

_TYPES = ["application/json", "multipart/form-data; boundary=x", "image/png"]
_ALMOST = st.lists(
    st.sampled_from(
        [
            b"--x",
            b"--x--",
            b"\r\n",
            b'Content-Disposition: form-data; name="file"; filename="a"',
            b'{"image":',
            b'"',
            b"[",
            b"}",
            b"NaN",
            b",",
        ]
    )
    | st.binary(max_size=8)
).map(b"".join)


def _request(content_type: str, *pieces: bytes) -> Request:
    left = iter(pieces)
    more = len(pieces)

    async def receive() -> dict[str, Any]:
        nonlocal more
        more -= 1
        return {"type": "http.request", "body": next(left), "more_body": more > 0} if more >= 0 else {"type": "http.disconnect"}

    return Request({"type": "http", "method": "POST", "headers": [(b"content-type", content_type.encode())]}, receive)


@given(st.binary(), st.sampled_from(["", "data:image/png;base64,", "DATA:;BASE64,"]))
def test_base64_gives_back_what_was_encoded(data: bytes, head: str) -> None:
    assert decode_base64(head + base64.b64encode(data).decode(), max_bytes=len(data)) == data


@given(st.binary(min_size=1))
def test_base64_that_stands_for_too_much_is_refused_before_it_is_decoded(data: bytes) -> None:
    text = base64.b64encode(data).decode()
    with pytest.raises(BodyTooLarge):
        decode_base64(text, max_bytes=len(data) - 1)
    # Decoding this would be an InvalidRequest: the size is looked at first.
    with pytest.raises(BodyTooLarge):
        decode_base64("!" * len(text), max_bytes=len(data) - 3)


@given(st.text())
def test_any_text_is_base64_or_an_invalid_request(text: str) -> None:
    try:
        data = decode_base64(text, max_bytes=10_000)
    except InvalidRequest:
        return
    assert base64.b64encode(data).decode() == text or text.lower().startswith("data:")


@given(_ALMOST, st.sampled_from(_TYPES))
def test_any_body_is_read_or_refused_on_purpose(body: bytes, content_type: str) -> None:
    for read in (
        read_picture(_request(content_type, body), max_bytes=1000),
        read_pictures(_request(content_type, body), max_images=3, max_bytes=1000),
    ):
        try:
            pictures = asyncio.run(read)
        except (ApiError, BodyTooLarge):
            continue
        assert isinstance(pictures, bytes) or 1 <= len(pictures) <= 3


_HEAD = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n'


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(_HEAD + b"\r\nx\r\n--bx\r\n--b--\r\n", id="begins a line of a part"),
        pytest.param(_HEAD + b"\r\nx\r\n--b \r\n--b--\r\n", id="is padded"),
        pytest.param(_HEAD + b"--b--: is a header\r\n\r\nx\r\n--bx\r\n--b--\r\n", id="after a header that looks like the end"),
    ],
)
def test_a_boundary_that_the_parser_would_walk_byte_by_byte_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedBody, match="where no part ends"):
        parse_files(body, "multipart/form-data; boundary=b", max_files=5)


def test_headers_that_look_like_boundaries_are_counted_with_them() -> None:
    body = _HEAD + b"--b--: 1\r\n" * 4 + b"\r\nx\r\n--b--\r\n"
    with pytest.raises(InvalidRequest, match="more parts than are allowed"):
        parse_files(body, "multipart/form-data; boundary=b", max_files=2)


async def test_of_malformed_json_only_the_place_where_it_breaks_is_looked_at() -> None:
    """Not all of it, which may be 10 MB of commas."""
    with pytest.raises(MalformedBody):
        await read_picture(_request("application/json", b'{"image": "aGk="}, NaN'), max_bytes=1000)
    with pytest.raises(InvalidRequest, match="no NaN"):
        await read_picture(_request("application/json", b'{"image": -Infinity}'), max_bytes=1000)


@pytest.mark.parametrize("body", [b"[", b"[1,2", b'{"foo": bar}', b'{"image": 5', b"123abc", b"[" + b"1," * 200, b'{"foo": "\xff"}'])
async def test_what_is_no_json_is_malformed_whatever_it_begins_as(body: bytes) -> None:
    with pytest.raises(MalformedBody):
        await read_picture(_request("application/json", body), max_bytes=1000)
    with pytest.raises(MalformedBody):
        await read_pictures(_request("application/json", body), max_images=3, max_bytes=1000)


async def test_a_list_of_very_many_short_texts_is_refused_without_building_it() -> None:
    body = b'{"images": ["a"' + b',"b"' * 250_000 + b"]}"
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match="more pictures than are allowed"):
            await read_pictures(_request("application/json", body), max_images=3, max_bytes=1000)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2 * len(body)


@given(st.lists(st.binary(max_size=20), min_size=1), st.sampled_from(_TYPES))
async def test_a_body_may_come_in_any_pieces(pieces: list[bytes], content_type: str) -> None:
    async def read(*pieces: bytes) -> object:
        try:
            return await read_picture(_request(content_type, *pieces), max_bytes=1000)
        except ApiError as refusal:
            return str(refusal)

    assert await read(*pieces) == await read(b"".join(pieces))


@given(st.lists(st.sampled_from([1, 4095, 4096, 65_536, 70_000]), min_size=1, max_size=40))
async def test_large_and_small_pieces_stay_in_order(sizes: list[int]) -> None:
    pieces = [bytes([number]) * size for number, size in enumerate(sizes)]
    assert await read_picture(_request("image/png", *pieces), max_bytes=10**7) == b"".join(pieces)


async def test_a_body_in_tiny_pieces_takes_about_the_memory_of_its_bytes() -> None:
    request = _request("image/png", *[b"%02d" % (number % 90) for number in range(100_000)])
    tracemalloc.start()
    try:
        body = await read_picture(request, max_bytes=10**6)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(body) == 200_000
    assert peak_bytes < 3 * 200_000


async def test_a_client_that_leaves_during_its_upload_is_a_disconnect() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    request = Request({"type": "http", "method": "POST", "headers": [(b"content-type", b"image/png")]}, receive)
    with pytest.raises(ClientDisconnect):
        await read_picture(request, max_bytes=10)


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=4))
def test_multipart_gives_back_every_file_in_order(files: list[bytes]) -> None:
    boundary = b"Zx9-Zx9-Zx9-Zx9-Zx9"
    head = b'\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    body = b"".join(b"--" + boundary + head + data + b"\r\n" for data in files) + b"--" + boundary + b"--\r\n"

    assert parse_files(body, f"multipart/form-data; boundary={boundary.decode()}", max_files=4) == files


def test_a_part_with_very_many_headers_is_malformed() -> None:
    body = b"--x\r\n" + b"A: b\r\n" * 100_000
    with pytest.raises(MalformedBody):
        parse_files(body, "multipart/form-data; boundary=x", max_files=1)


def test_a_boundary_that_is_too_long_is_malformed() -> None:
    with pytest.raises(MalformedBody):
        parse_files(b"--x", "multipart/form-data; boundary=" + "x" * 10_000, max_files=1)
