"""Those whom the gate is there for: each kind with the answers that it may get. No answer at all is as good."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any, Final

from soak.credentials import Credentials
from soak.ledger import Ledger
from soak.pictures import Photograph
from soak.wire import Connection, NotSent, Unanswered, request_head
from support.pictures import NOT_PICTURES, foreign_pictures, huge_headers, without_image_data

_MAX_BODY_BYTES: Final = 10_485_760
"""The default of LENSGATE_HTTP__MAX_BODY_BYTES."""
_ANYBODYS: Final = frozenset({429, 503, 504})
"""What anyone may be told by a limit, a full queue or an engine that is being restarted."""
_FLOOD: Final = 20


class Hostile:
    """One of each kind, one attack after the other.

    Args:
        port: the service's.
        credentials: of a client with a live registration, and of one with a tier of very little.
        pictures: good ones, to be sent badly.
        ledger: where answers are written down.
        random: what they do next.
    """

    def __init__(
        self,
        port: int,
        credentials: Credentials,
        little: Credentials,
        pictures: Sequence[Photograph],
        ledger: Ledger,
        *,
        random: Random,
    ) -> None:
        self._port = port
        self._credentials = credentials
        self._little = little
        self._pictures = pictures
        self._ledger = ledger
        self._random = random
        self._tokens: dict[str, str] = {}
        png = next(picture.data for picture in pictures if picture.content_type == "image/png")
        self._broken = [*NOT_PICTURES.values(), *foreign_pictures().values(), *huge_headers(60_000, 60_000).values()]
        self._broken += [png[: len(png) // 2], without_image_data(png)]

    def attacks(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """Every kind, by name."""
        return {
            "broken pictures": self._broken_picture,
            "oversized bodies": self._oversized,
            "slow heads": self._slow_head,
            "slow bodies": self._slow_body,
            "forged tokens": self._forged_token,
            "wrong secrets": self._wrong_secret,
            "floods": self._flood,
            "vanishing clients": self._vanish,
        }

    async def run(self, kind: str) -> None:
        """Attack in one way until cancelled."""
        attack = self.attacks()[kind]
        while True:
            with contextlib.suppress(NotSent, Unanswered):  # the service owes them nothing
                await attack()
            await asyncio.sleep(self._random.uniform(0.1, 0.8))

    async def _ask(self, kind: str, statuses: frozenset[int], connection: Connection, head: str, body: bytes = b"") -> int:
        """Send it, and complain about an answer that such a request must never get."""
        began_s = time.monotonic()
        self._ledger.requests[kind] += 1
        with contextlib.closing(connection):
            await connection.open()
            # The answer may come, and the connection be closed, before all of it is out.
            with contextlib.suppress(NotSent):
                await connection.send(head.encode("latin-1") + body)
            answer = await connection.answer()
        self._ledger.answered(kind, answer.status, began_s)
        if answer.status not in statuses | _ANYBODYS:
            self._ledger.wrong.add(f"{kind}: {answer.status} {answer.body[:200]!r}")
        return answer.status

    def _connection(self, number: int) -> Connection:
        return Connection(self._port, f"127.0.2.{number}")

    async def _token(self, credentials: Credentials, connection: Connection) -> str:
        """A live token, asked for again only once it has been refused."""
        if credentials.client_id not in self._tokens:
            basic = b64encode(f"{credentials.client_id}:{credentials.secret}".encode()).decode()
            body = b"grant_type=client_credentials"
            lines = f"Authorization: Basic {basic}", "Content-Type: application/x-www-form-urlencoded"
            with contextlib.closing(connection):
                answer = await connection.ask(request_head("POST", "/oauth2/token", *lines, body_bytes=len(body)), body)
            if answer.status != 200:
                raise NotSent(str(answer.status))
            self._tokens[credentials.client_id] = json.loads(answer.body)["access_token"]
        return self._tokens[credentials.client_id]

    async def _with_token(self, kind: str, statuses: frozenset[int], number: int, body: bytes, *, declared: int | None = None) -> None:
        connection = self._connection(number)
        token = await self._token(self._credentials, connection)
        size = len(body) if declared is None else declared
        head = request_head("POST", "/predict", f"Authorization: Bearer {token}", "Content-Type: image/png", body_bytes=size)
        if await self._ask(kind, statuses | {401}, connection, head, body) == 401:  # it has expired
            self._tokens.pop(self._credentials.client_id, None)

    async def _broken_picture(self) -> None:
        await self._with_token("broken pictures", frozenset({413, 415, 422}), 1, self._random.choice(self._broken))

    async def _oversized(self) -> None:
        await self._with_token("oversized bodies", frozenset({413}), 2, bytes(1 << 20), declared=_MAX_BODY_BYTES + 1)

    async def _slow_head(self) -> None:
        connection = self._connection(3)
        await self._drip("slow heads", connection, b"", b"POST /predict HTTP/1.1\r\nHost: lensgate\r\nX: " + b"a" * 100)

    async def _slow_body(self) -> None:
        connection = self._connection(4)
        token = await self._token(self._credentials, connection)
        head = request_head("POST", "/predict", f"Authorization: Bearer {token}", "Content-Type: image/png", body_bytes=100_000)
        await self._drip("slow bodies", connection, head.encode(), bytes(200))

    async def _drip(self, kind: str, connection: Connection, first: bytes, rest: bytes) -> None:
        began_s = time.monotonic()
        self._ledger.requests[kind] += 1
        with contextlib.closing(connection):
            await connection.open()
            await connection.send(first)

            async def drip() -> None:
                for byte in rest:
                    with contextlib.suppress(NotSent):
                        await connection.send(bytes([byte]))
                    await asyncio.sleep(0.1)

            dripping = asyncio.create_task(drip())
            try:
                answer = await connection.answer()
            finally:
                dripping.cancel()
                await asyncio.gather(dripping, return_exceptions=True)
        self._ledger.answered(kind, answer.status, began_s)
        if answer.status == 401:
            self._tokens.pop(self._credentials.client_id, None)
        elif answer.status not in {408} | _ANYBODYS:
            self._ledger.wrong.add(f"{kind}: {answer.status} {answer.body[:200]!r}")

    async def _forged_token(self) -> None:
        connection = self._connection(5)
        token = await self._token(self._credentials, connection)
        header, payload, signature = token.split(".")
        claims: dict[str, Any] = {"iss": "x", "sub": "x", "client_id": "x", "scope": "predict", "exp": 9_999_999_999}
        forged = self._random.choice(
            [
                f"{_segment({'alg': 'none', 'typ': 'at+jwt'})}.{payload}.",
                f"{header}.{_segment(claims)}.{signature}",
                f"{header}.{payload}.{signature[:-6]}AAAAAA",
                "x" * self._random.randint(1, 5000),
                f"{header}.{payload}",
            ]
        )
        body = self._random.choice(self._pictures).data
        head = request_head("POST", "/predict", f"Authorization: Bearer {forged}", "Content-Type: image/png", body_bytes=len(body))
        await self._ask("forged tokens", frozenset({401}), connection, head, body)

    async def _wrong_secret(self) -> None:
        basic = b64encode(f"{self._credentials.client_id}:lgs_{self._random.random()}".encode()).decode()
        body = b"grant_type=client_credentials"
        lines = f"Authorization: Basic {basic}", "Content-Type: application/x-www-form-urlencoded"
        head = request_head("POST", "/oauth2/token", *lines, body_bytes=len(body))
        await self._ask("wrong secrets", frozenset({401}), self._connection(6), head, body)

    async def _flood(self) -> None:
        token = await self._token(self._little, self._connection(7))
        picture = self._random.choice(self._pictures)
        lines = f"Authorization: Bearer {token}", f"Content-Type: {picture.content_type}"
        head = request_head("POST", "/predict", *lines, body_bytes=len(picture.data))
        statuses = await asyncio.gather(
            *(self._ask("floods", frozenset({200, 401}), self._connection(7), head, picture.data) for _ in range(_FLOOD)),
            return_exceptions=True,
        )
        if 401 in statuses:
            self._tokens.pop(self._little.client_id, None)
        await asyncio.sleep(2)

    async def _vanish(self) -> None:
        """In the head, in the body, while it is decoded, queued or run, or while the answer is written."""
        connection = self._connection(8)
        token = await self._token(self._credentials, connection)
        picture = self._random.choice(self._pictures)
        lines = f"Authorization: Bearer {token}", f"Content-Type: {picture.content_type}"
        request = request_head("POST", "/predict", *lines, body_bytes=len(picture.data)).encode() + picture.data
        self._ledger.requests["vanishing clients"] += 1
        await connection.open()
        if self._random.random() < 0.5:
            await connection.send(request[: self._random.randrange(len(request))])
        else:
            await connection.send(request)
            await asyncio.sleep(self._random.uniform(0, 0.1))
        if self._random.random() < 0.5:
            connection.reset()
        else:
            connection.close()
        if self._random.random() < 0.05:
            self._tokens.pop(self._credentials.client_id, None)


def _segment(content: dict[str, Any]) -> str:
    return urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()
