"""How a client proves who it is to the OAuth endpoints: HTTP Basic or the form body (RFC 6749 section 2.3.1), one of them, strictly."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, unquote_plus

from security.errors import OAuthError

FORM_TYPE: Final = "application/x-www-form-urlencoded"
MAX_FORM_BYTES: Final = 8192
"""Room for any token or secret of ours, and little else: the endpoint reads it before it knows who sends it."""
MAX_FORM_FIELDS: Final = 16

_MAX_BASIC_BYTES: Final = 1024
_BROKEN_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")

RawHeaders = Iterable[tuple[bytes, bytes]]
"""Header names (lower case) and values, as ASGI has them."""


@dataclass(frozen=True, slots=True)
class ClientCredentials:
    """What a client presented. Nothing of it is checked yet."""

    client_id: str
    client_secret: str = field(repr=False)


def parse_basic(authorization: bytes) -> ClientCredentials:
    """Read an `Authorization: Basic ...` header (RFC 7617), whose two halves are form-encoded (RFC 6749 section 2.3.1).

    Raises:
        OAuthError: `invalid_client`: another scheme, no strict base64, no UTF-8 or no colon.
    """
    scheme, _, encoded = authorization.partition(b" ")
    if scheme.lower() != b"basic" or len(authorization) > _MAX_BASIC_BYTES:
        raise _no_basic()
    try:
        pair = _decode_base64(encoded.strip(b" ")).decode("utf-8")
        client_id, colon, client_secret = pair.partition(":")
        credentials = ClientCredentials(_form_decode(client_id), _form_decode(client_secret))
    except ValueError as error:
        raise _no_basic() from error
    if not colon or not credentials.client_id:
        raise _no_basic()
    return credentials


def parse_form(headers: RawHeaders, query: bytes, body: bytes) -> dict[str, str]:
    """Read the parameters of an OAuth request (RFC 6749 section 3.2): in the body only, each once; an empty one counts as absent.

    Raises:
        OAuthError: `invalid_request` in every other case; it repeats nothing of what was sent.
    """
    if query:
        raise OAuthError("invalid_request", "Parameters belong in the request body, not in the URL.")
    content_types = [value for name, value in headers if name == b"content-type"]
    if len(content_types) != 1 or content_types[0].partition(b";")[0].strip().lower() != FORM_TYPE.encode("ascii"):
        raise OAuthError("invalid_request", f"The request body must be {FORM_TYPE}.")
    if len(body) > MAX_FORM_BYTES:
        raise OAuthError("invalid_request", "The request body is too large.")
    try:
        text = _checked_escapes(body.decode("ascii"))
        fields = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MAX_FORM_FIELDS)
    except ValueError as error:
        raise OAuthError("invalid_request", "The request body is not a well-formed form.") from error
    form = dict(fields)
    if len(form) != len(fields):
        raise OAuthError("invalid_request", "A parameter is repeated.")
    return {name: value for name, value in form.items() if value}


def presented_credentials(headers: RawHeaders, form: Mapping[str, str]) -> ClientCredentials:
    """The one set of credentials that the client presents.

    Raises:
        OAuthError: `invalid_client` where there is none, `invalid_request` where there is more than one (RFC 6749 section 2.3).
    """
    authorizations = [value for name, value in headers if name == b"authorization"]
    if len(authorizations) > 1:
        raise OAuthError("invalid_request", "There is more than one Authorization header.")
    if authorizations:
        credentials = parse_basic(authorizations[0])
        if "client_secret" in form or form.get("client_id", credentials.client_id) != credentials.client_id:
            raise OAuthError("invalid_request", "Use HTTP Basic or the request body for the client's credentials, not both.")
        return credentials
    if "client_id" not in form or "client_secret" not in form:
        raise OAuthError("invalid_client", "Client authentication is needed.")
    return ClientCredentials(form["client_id"], form["client_secret"])


def required_parameter(form: Mapping[str, str], name: str) -> str:
    """A parameter that the request must have.

    Args:
        form: as `parse_form` returned it.
        name: one of our own words: it stands in the refusal.

    Raises:
        OAuthError: `invalid_request` where it is absent or empty.
    """
    if name not in form:
        raise OAuthError("invalid_request", f"The parameter {name} is missing.")
    return form[name]


def _decode_base64(encoded: bytes) -> bytes:
    octets = base64.b64decode(encoded, validate=True)
    # Python forgives surplus padding and unused bits.
    if base64.b64encode(octets) != encoded:
        raise ValueError("not canonical base64")
    return octets


def _form_decode(text: str) -> str:
    return unquote_plus(_checked_escapes(text), errors="strict")


def _checked_escapes(text: str) -> str:
    if _BROKEN_ESCAPE.search(text):
        raise ValueError("a broken percent escape")
    return text


def _no_basic() -> OAuthError:
    return OAuthError("invalid_client", "The Authorization header holds no well-formed Basic credentials.")
