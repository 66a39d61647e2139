"""How the wire guard's refusals look: as every other error does, though no request has reached the app."""

from __future__ import annotations

from collections.abc import Sequence

from api.errors import KINDS, Refusal
from api.middleware.boundary import encode_refusal
from api.middleware.context import COMMON_HEADERS, HSTS, request_id_from
from security.wire_guard import Answer, Render


def renderer(*, over_tls: bool) -> Render:
    """Make what the guard renders its answers with.

    Args:
        over_tls: True when clients come by HTTPS.
    """
    common = (*COMMON_HEADERS, HSTS) if over_tls else COMMON_HEADERS

    def render(code: str, detail: str, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> Answer:
        status = KINDS[code].status
        retry = {"Retry-After": "1"} if status == 503 else {}
        request_id = request_id_from(headers)
        own, body = encode_refusal(Refusal(status, code, detail, retry), target.decode("latin-1"), request_id)
        present = {name for name, _ in own}
        own += [header for header in common if header[0] not in present]
        return Answer(status, [*own, (b"x-request-id", request_id.encode())], body, request_id)

    return render
