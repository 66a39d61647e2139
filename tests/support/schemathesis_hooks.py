"""What schemathesis cannot know from the document: what a picture is. Loaded by its command line (`SCHEMATHESIS_HOOKS`)."""

from __future__ import annotations

import base64

import schemathesis
from hypothesis import strategies as st
from schemathesis.transport.serialization import Binary

from support.pictures import encode, gradient

_PICTURES = [encode(gradient(40, 30), kind) for kind in ("PNG", "JPEG", "WEBP")]
_BYTES = st.one_of(st.sampled_from(_PICTURES), st.binary(min_size=1, max_size=2000))

schemathesis.openapi.format("binary", _BYTES.map(Binary))
schemathesis.openapi.format(
    "byte", st.one_of(st.sampled_from(_PICTURES), st.binary(min_size=1)).map(lambda data: base64.b64encode(data).decode())
)
for _kind in ("image/png", "image/jpeg", "image/webp"):
    schemathesis.openapi.media_type(_kind, _BYTES)


@schemathesis.hook
def map_body(context: schemathesis.HookContext, body: object) -> object:
    """Leave out one half of a client's credentials in a form: with the Basic header that is sent it is only ever refused."""
    assert context.operation is not None
    if not context.operation.path.startswith("/oauth2/") or not isinstance(body, dict) or {"client_id", "client_secret"} <= body.keys():
        return body
    return {name: value for name, value in body.items() if name not in {"client_id", "client_secret"} or not isinstance(value, str)}
