"""What every answer of the real service says beside its body, and what none says: those of the wire guard, the layers and the routes."""

from __future__ import annotations

from typing import Final

import pytest

from support.raw_http import RawAnswer, RawConnection
from support.service import Service

ANSWERS: Final = {
    "a probe": (b"GET /livez HTTP/1.1\r\nHost: gate\r\n\r\n", 200),
    "the page": (b"GET /docs HTTP/1.1\r\nHost: gate\r\n\r\n", 200),
    "the document": (b"GET /openapi.json HTTP/1.1\r\nHost: gate\r\n\r\n", 200),
    "no token": (b"GET /models HTTP/1.1\r\nHost: gate\r\n\r\n", 401),
    "no client": (b"POST /oauth2/token HTTP/1.1\r\nHost: gate\r\nContent-Length: 0\r\n\r\n", 400),
    "another method": (b"PUT /livez HTTP/1.1\r\nHost: gate\r\nContent-Length: 0\r\n\r\n", 405),
    "a large body": (b"POST /oauth2/token HTTP/1.1\r\nHost: gate\r\nContent-Length: 99999999\r\n\r\n", 413),
    "a long target, by the wire guard": (b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: gate\r\n\r\n", 414),
    "a large head, by the wire guard": (b"GET / HTTP/1.1\r\nHost: gate\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", 431),
    "no Host, by the wire guard": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "no HTTP, by the wire guard": (b"hello\r\n\r\n", 400),
}


def answer_to(service: Service, request: bytes) -> RawAnswer:
    with RawConnection(service.url) as connection:
        connection.push(len(request), piece=request)
        return connection.answer()


@pytest.mark.parametrize("name", ANSWERS)
def test_every_answer_has_the_common_headers_and_names_no_software(service: Service, name: str) -> None:
    request, status = ANSWERS[name]
    answer = answer_to(service, request)
    assert answer.status == status
    assert answer.header("x-content-type-options") == "nosniff"
    assert answer.header("referrer-policy") == "no-referrer"
    assert answer.header("cache-control") == "no-store"
    assert not {"server", "x-powered-by", "via"} & set(answer.headers)
    assert "strict-transport-security" not in answer.headers  # over plain HTTP browsers must ignore it (RFC 6797 section 7.2)
