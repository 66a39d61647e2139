"""From a request's body to the bytes of its pictures: raw, JSON with base64, or multipart."""

from __future__ import annotations

import binascii
from typing import Final

import pybase64
from starlette.requests import Request

from api.errors import InvalidRequest, MalformedBody, UnsupportedMediaType
from api.json_body import check_syntax, decode_image, decode_images
from api.multipart import PART_NAME, TooManyParts, parse_files
from security.errors import BodyTooLarge

RAW_TYPES: Final = ("image/jpeg", "image/png", "image/webp")
"""The bytes decide what a picture is; the declared type only says that the body is one."""
JSON_TYPE: Final = "application/json"
MULTIPART_TYPE: Final = "multipart/form-data"

_MAX_DATA_URL_HEADER: Final = 256
"""`data:image/jpeg;base64` and room for parameters."""

_SMALL_BYTES: Final = 4096
"""A shorter piece of a body is joined with its neighbours while it waits for the rest, until they have `_JOINED_BYTES`."""
_JOINED_BYTES: Final = 65_536


async def read_picture(request: Request, *, max_bytes: int) -> bytes:
    """The one picture of a request, still encoded.

    Args:
        request: its body is at most what the body limit lets through.
        max_bytes: the most bytes that base64 may stand for.

    Raises:
        UnsupportedMediaType: the content type is none of ours, or there is no body.
        MalformedBody: the body is no JSON, or no multipart with exactly one part `file`.
        InvalidRequest: the JSON is not `{"image": "<base64>"}`.
        BodyTooLarge: as the body limit says, or the base64 stands for more than `max_bytes`.
        ClientDisconnect: the client left before the body was complete.
    """
    kind = _media_type(request, (*RAW_TYPES, JSON_TYPE, MULTIPART_TYPE))
    body = await _read(request)
    if kind == JSON_TYPE:
        return decode_base64(decode_image(body), max_bytes=max_bytes)
    if kind == MULTIPART_TYPE:
        return _only_file(body, request.headers["content-type"])
    return body


async def read_pictures(request: Request, *, max_images: int, max_bytes: int) -> list[bytes | Exception]:
    """The pictures of a batch, still encoded, in order. One whose base64 is wrong is its error instead, so that it fails alone.

    Raises:
        UnsupportedMediaType, MalformedBody, BodyTooLarge, ClientDisconnect: as `read_picture`.
        InvalidRequest: the JSON is not `{"images": ["<base64>", ...]}`, or there is no picture, or there are more than `max_images`.
    """
    kind = _media_type(request, (JSON_TYPE, MULTIPART_TYPE))
    body = await _read(request)
    if kind == MULTIPART_TYPE:
        pictures: list[bytes | Exception] = list(parse_files(body, request.headers["content-type"], max_files=max_images))
    else:
        # Counted before parsing: millions of one-letter strings would take fifteen times their size. A data: URL has one comma of its own.
        if body.count(b",") > 2 * max_images:
            check_syntax(body)
            raise InvalidRequest(f"There are more pictures than are allowed in one request: {max_images}.")
        pictures = [_decode_alone(text, max_bytes) for text in decode_images(body)]
    if not pictures:
        raise InvalidRequest("There is no picture in the request.")
    if len(pictures) > max_images:
        raise InvalidRequest(f"There are more pictures than are allowed in one request: {max_images}.")
    return pictures


def decode_base64(text: str, *, max_bytes: int) -> bytes:
    """The bytes of strict base64 (RFC 4648 section 4: padded, no white space), with or without the head of a data: URL (RFC 2397).

    Raises:
        InvalidRequest: it is not base64.
        BodyTooLarge: it stands for more than `max_bytes`; found out before anything is decoded.
    """
    if text[:5].lower() == "data:":
        head, comma, rest = text.partition(",") if "," in text[:_MAX_DATA_URL_HEADER] else (text, "", "")
        if not comma or not head.lower().endswith(";base64"):
            raise InvalidRequest("A data: URL must be of the form data:image/jpeg;base64,...")
        text = rest
    if len(text) // 4 * 3 - text[-2:].count("=") > max_bytes:
        raise BodyTooLarge(max_bytes, "picture")
    try:
        return pybase64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest("A picture is not valid base64.") from error


def _only_file(body: bytes, content_type: str) -> bytes:
    try:
        files = parse_files(body, content_type, max_files=1)
    except TooManyParts:
        files = []
    if not files:
        raise MalformedBody(f'The multipart body must have exactly one part "{PART_NAME}".')
    return files[0]


def _decode_alone(text: str, max_bytes: int) -> bytes | Exception:
    try:
        return decode_base64(text, max_bytes=max_bytes)
    except InvalidRequest as error:
        return error


def _media_type(request: Request, allowed: tuple[str, ...]) -> str:
    declared = request.headers.getlist("content-type")
    kind = declared[0].partition(";")[0].strip().lower() if len(declared) == 1 else ""
    if kind not in allowed:
        raise UnsupportedMediaType(f"The content type must be one of {', '.join(allowed)}.")
    return kind


async def _read(request: Request) -> bytes:
    pieces: list[bytes] = []
    small = bytearray()
    async for piece in request.stream():
        # Starlette keeps each piece for itself: those of two bytes take 28 times as much memory as that.
        if len(piece) < _SMALL_BYTES and len(small) < _JOINED_BYTES:
            small += piece
            continue
        if small:
            pieces.append(bytes(small))
            small.clear()
        pieces.append(piece)
    body = b"".join([*pieces, bytes(small)] if small else pieces)
    if not body:
        raise UnsupportedMediaType("The body is empty.")
    return body
