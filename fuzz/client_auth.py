"""How a client proves who it is: a form and a Basic header, strictly, without an echo of what was sent.

The first byte says what the rest is: `A` an Authorization header's value, `B` what its base64 stands for, `F` a form body, each in an
otherwise good request; else it is all of one, `content type NUL query NUL authorization NUL body`, where an empty header is none.
"""

from __future__ import annotations

import base64
from urllib.parse import quote_plus, urlencode

from security.client_auth import FORM_TYPE, MAX_FORM_BYTES, MAX_FORM_FIELDS, ClientCredentials, parse_form, presented_credentials
from security.errors import OAuthError

_CODES = frozenset({"invalid_request", "invalid_client"})
_MAX_SENTENCES = 16
_GRANT = b"grant_type=client_credentials"

_sentences: set[str] = set()


def one_input(data: bytes) -> None:
    """Read the request as the token endpoint does, and what was understood once more from its canonical spelling."""
    content_type, query, authorization, body = _request(data[:1], data[1:])
    headers = [(name, value) for name, value in ((b"content-type", content_type), (b"authorization", authorization)) if value]
    try:
        form = parse_form(headers, query, body)
        assert 0 <= len(form) <= MAX_FORM_FIELDS
        assert len(body) <= MAX_FORM_BYTES
        assert not query
        assert all(form.values())
        canonical = urlencode(form).encode()
        if len(canonical) <= MAX_FORM_BYTES:
            assert parse_form([(b"content-type", FORM_TYPE.encode())], b"", canonical) == form
        credentials = presented_credentials(headers, form)
    except OAuthError as error:
        assert error.code in _CODES
        # A handful of fixed sentences: nothing that was sent is in them.
        _sentences.add(str(error))
        assert len(_sentences) <= _MAX_SENTENCES, _sentences
        return
    _check(credentials, authorization, form)


def _request(mode: bytes, rest: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    if mode == b"A":
        return FORM_TYPE.encode(), b"", rest, _GRANT
    if mode == b"B":
        return FORM_TYPE.encode(), b"", b"Basic " + base64.b64encode(rest), _GRANT
    if mode == b"F":
        return FORM_TYPE.encode(), b"", b"", rest
    content_type, query, authorization, body = (rest.split(b"\0", 3) + [b""] * 3)[:4]
    return content_type, query, authorization, body


def _check(credentials: ClientCredentials, authorization: bytes, form: dict[str, str]) -> None:
    assert credentials.client_id
    if not authorization:
        assert (credentials.client_id, credentials.client_secret) == (form["client_id"], form["client_secret"])
        return
    assert "client_secret" not in form
    pair = f"{quote_plus(credentials.client_id)}:{quote_plus(credentials.client_secret)}"
    canonical = b"Basic " + base64.b64encode(pair.encode())
    if len(canonical) <= 1024:
        assert presented_credentials([(b"authorization", canonical)], {}) == credentials
