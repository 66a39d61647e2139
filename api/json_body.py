"""The JSON bodies of predictions, and what is said of those that are of another form or no JSON at all."""

from __future__ import annotations

import re
from typing import Final, TypeVar

import msgspec

from api.errors import InvalidRequest, MalformedBody

_INVALID_AT: Final = re.compile(r"\(byte ([0-9]+)\)$")
"""Where msgspec says that the JSON is malformed. Looking for a NaN everywhere would take 0.3 s for 10 MB of commas."""
_NON_FINITE: Final = (b"NaN", b"Infinity")
"""What JavaScript and Python write for numbers that JSON does not have (RFC 8259 section 6), behind their sign."""

_OUR_WORDS: Final = re.compile(
    r"(Expected `[a-z]+`, got `[a-z]+`|Object missing required field `[a-z]+`|Number out of range)( - at `\$\.[a-z]+(\[[0-9]+\])?`)?"
)
"""What msgspec says of a wrong form without a word of the caller's: of a member that is not known it tells the name."""


class PredictBody(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON form of `/predict`."""

    image: str


class BatchBody(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON form of `/predict/batch`."""

    images: list[str]


_Body = TypeVar("_Body")

_PREDICT_DECODER: Final = msgspec.json.Decoder(PredictBody)
_BATCH_DECODER: Final = msgspec.json.Decoder(BatchBody)
_ANY_DECODER: Final = msgspec.json.Decoder(msgspec.Raw)
"""Reads all of a body and builds nothing of it."""
_MAX_CHECKED_BYTES: Final = 1 << 20
"""Of a larger body that is of the wrong form nobody reads on: it would hold the event loop up for tens of milliseconds."""


def decode_image(body: bytes) -> str:
    """The picture of `{"image": "<base64>"}`.

    Raises:
        MalformedBody: the body is no JSON.
        InvalidRequest: it is JSON of another form.
    """
    return _decode(_PREDICT_DECODER, body, '{"image": "<base64>"}').image


def decode_images(body: bytes) -> list[str]:
    """The pictures of `{"images": ["<base64>", ...]}`.

    Raises:
        MalformedBody, InvalidRequest: as `decode_image`.
    """
    return _decode(_BATCH_DECODER, body, '{"images": ["<base64>", ...]}').images


def check_syntax(body: bytes) -> None:
    """Refuse what is no JSON, without building anything; what is larger than 1 MiB passes unread.

    Raises:
        MalformedBody: it is none.
        InvalidRequest: it has a NaN, or is nested so deeply that nobody reads on to find out what it is (RFC 8259 section 9).
    """
    if len(body) > _MAX_CHECKED_BYTES:
        return
    try:
        _ANY_DECODER.decode(body)
        body.decode()  # msgspec leaves what it skips unchecked
    except RecursionError as error:
        raise InvalidRequest("The JSON is nested too deeply.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _no_json(body, error) from error


def _decode(decoder: msgspec.json.Decoder[_Body], body: bytes, form: str) -> _Body:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        check_syntax(body)  # msgspec stops at the first thing that is of the wrong form: what follows may be no JSON
        told = str(error) if _OUR_WORDS.fullmatch(str(error)) else "It may have no other member"
        raise InvalidRequest(f"The JSON must be of the form {form}. {told}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _no_json(body, error) from error


def _no_json(body: bytes, error: Exception) -> InvalidRequest | MalformedBody:
    place = _INVALID_AT.search(str(error))
    if place and body.startswith(_NON_FINITE, int(place[1])):
        return InvalidRequest("JSON has no NaN and no Infinity.")
    return MalformedBody("The body is not valid JSON.")
