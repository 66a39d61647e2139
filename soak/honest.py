"""Client apps as they should be: they renew their tokens in time, keep to their limits, come back when told to, and check every answer."""

from __future__ import annotations

import asyncio
import json
import time
from base64 import b64encode
from collections.abc import Sequence
from itertools import count
from random import Random
from typing import Any, Final

from soak.credentials import Credentials
from soak.gate import TOKEN_TTL_S
from soak.ledger import Ledger
from soak.pictures import Photograph
from soak.wire import Answer, Connection, NotSent, Unanswered, request_head

HONEST: Final = "honest"
_RENEW_AT: Final = 0.7
"""Of a token's life."""
_LONGEST_PAUSE_S: Final = 1.0
"""However long `Retry-After` asks for: a soak wants the service to be asked."""
_BATCH: Final = 3
_BOUNDARY: Final = "----soak"
_BUSY: Final = frozenset({503, 504})
"""What an honest client may be answered besides 200: the service is full, or a part of it is being restarted."""
_CODES: Final = {503: {"overloaded", "not_ready"}, 504: {"deadline_exceeded"}}
_numbers = count(1)


class Honest:
    """One client app, one request after the other.

    Args:
        port: the service's.
        address: the app's own.
        credentials: who it is.
        pictures: what it asks about.
        ledger: where it writes down what it got.
        keep_alive: whether it uses a connection more than once.
        random: what it does next.
    """

    def __init__(
        self,
        port: int,
        address: str,
        credentials: Credentials,
        pictures: Sequence[Photograph],
        ledger: Ledger,
        *,
        keep_alive: bool,
        random: Random,
    ) -> None:
        self._connection = Connection(port, address)
        self._credentials = credentials
        self._pictures = pictures
        self._ledger = ledger
        self._keep_alive = keep_alive
        self._random = random
        self._token = ""
        self._renew_s = 0.0

    async def run(self, stop: asyncio.Event, *, pause_s: float = 0.15) -> None:
        """Ask until `stop`, with pauses of `pause_s` on average."""
        forms = (self._raw, self._raw, self._multipart, self._base64, self._batch)
        while not stop.is_set():
            if time.monotonic() >= self._renew_s:
                await self._renew()
            else:
                await self._random.choice(forms)()
            await asyncio.sleep(self._random.expovariate(1 / pause_s))
        self._connection.close()

    async def learn(self) -> None:
        """Ask about each picture once while nothing else happens, and remember the answers."""
        while not self._token:
            await self._renew()
        for picture in self._pictures:
            answer = await self._ask(picture.content_type, picture.data)
            if answer is None or answer.status != 200:
                raise RuntimeError(f"the quiet service does not serve {picture.name}: {answer}")
            found = json.loads(answer.body)
            if complaint := picture.complaint(found):
                raise RuntimeError(complaint)
            picture.expected = found

    async def _renew(self) -> None:
        basic = b64encode(f"{self._credentials.client_id}:{self._credentials.secret}".encode()).decode()
        body = b"grant_type=client_credentials"
        lines = [f"Authorization: Basic {basic}", "Content-Type: application/x-www-form-urlencoded"]
        asked_s = time.monotonic()
        answer = await self._exchange("/oauth2/token", lines, body)
        if answer is not None and answer.status == 200:
            self._token = json.loads(answer.body)["access_token"]
            self._renew_s = asked_s + TOKEN_TTL_S * _RENEW_AT

    async def _raw(self) -> None:
        picture = self._pick()
        await self._one(picture, picture.content_type, picture.data)

    async def _multipart(self) -> None:
        picture = self._pick()
        await self._one(picture, f"multipart/form-data; boundary={_BOUNDARY}", _multipart([picture]))

    async def _base64(self) -> None:
        picture = self._pick()
        await self._one(picture, "application/json", json.dumps({"image": picture.base64}).encode())

    async def _batch(self) -> None:
        pictures = [self._pick() for _ in range(_BATCH)]
        if self._random.random() < 0.5:
            kind, body = f"multipart/form-data; boundary={_BOUNDARY}", _multipart(pictures)
        else:
            kind, body = "application/json", json.dumps({"images": [picture.base64 for picture in pictures]}).encode()
        answer = await self._ask(kind, body, target="/predict/batch")
        if answer is None or answer.status != 200:
            return
        results = json.loads(answer.body)["results"]
        if len(results) != len(pictures):
            self._ledger.wrong.add(f"{len(results)} results for {len(pictures)} pictures")
            return
        for picture, result in zip(pictures, results, strict=True):
            if "error" not in result:
                self._check(picture, result)
            elif result["error"]["status"] not in _BUSY:
                self._ledger.wrong.add(f"{picture.name} in a batch: {result['error']}")

    async def _one(self, picture: Photograph, kind: str, body: bytes) -> None:
        began_s = time.monotonic()
        answer = await self._ask(kind, body)
        if answer is not None and answer.status == 200 and self._check(picture, json.loads(answer.body)):
            self._ledger.served(time.monotonic() - began_s, began_s)

    def _check(self, picture: Photograph, found: dict[str, Any]) -> bool:
        try:
            complaint = picture.complaint(found)
        except (LookupError, TypeError) as error:
            complaint = f"{picture.name}: not of the right form: {error!r}"
        if complaint:
            self._ledger.wrong.add(complaint)
            return False
        self._ledger.images += 1
        return True

    def _pick(self) -> Photograph:
        return self._random.choice(self._pictures)

    async def _ask(self, kind: str, body: bytes, target: str = "/predict") -> Answer | None:
        return await self._exchange(target, [f"Authorization: Bearer {self._token}", f"Content-Type: {kind}"], body)

    async def _exchange(self, target: str, lines: Sequence[str], body: bytes) -> Answer | None:
        """The answer, checked for its form and written down; None where there was none."""
        request_id = f"honest-{next(_numbers)}"
        lines = [*lines, f"X-Request-ID: {request_id}", *([] if self._keep_alive else ["Connection: close"])]
        while True:
            began_s = time.monotonic()
            try:
                answer = await self._connection.ask(request_head("POST", target, *lines, body_bytes=len(body)), body)
            except NotSent:
                self._ledger.not_sent[HONEST] += 1
                await asyncio.sleep(self._random.uniform(0.01, 0.1))
                continue
            except Unanswered as error:
                self._ledger.requests[HONEST] += 1
                waited_s = time.monotonic() - began_s
                self._ledger.unanswered(self._connection.endpoint, f"{target} {request_id} after {waited_s:.1f} s: {error}")
                return None
            break
        self._ledger.requests[HONEST] += 1
        self._ledger.answered(HONEST, answer.status, began_s)
        if complaint := _complaint(answer, request_id, oauth=target.startswith("/oauth2/")):
            self._ledger.wrong.add(f"{target} {request_id}: {complaint}")
        if answer.status in _BUSY:
            await asyncio.sleep(min(_LONGEST_PAUSE_S, float(answer.headers.get("retry-after", "1"))))
        return answer


def _complaint(answer: Answer, request_id: str, *, oauth: bool) -> str | None:
    """What is wrong with the form of an answer, or with there being such an answer to an honest client."""
    if answer.headers.get("x-request-id") != request_id:
        return f"it is the answer to {answer.headers.get('x-request-id')}"
    try:
        body = json.loads(answer.body)
    except ValueError:
        return f"{answer.status} with a body that is no JSON"
    if answer.status == 200:
        return None
    if answer.status not in _BUSY:
        return f"{answer.status} {body}"
    if answer.status == 503 and not answer.headers.get("retry-after", "").isdigit():
        return "503 without Retry-After"
    code, codes = (body.get("error"), {"temporarily_unavailable"}) if oauth else (body.get("code"), _CODES[answer.status])
    return None if code in codes else f"{answer.status} {body}"


def _multipart(pictures: Sequence[Photograph]) -> bytes:
    disposition = 'Content-Disposition: form-data; name="file"; filename="picture"'
    parts = [
        f"--{_BOUNDARY}\r\n{disposition}\r\nContent-Type: {picture.content_type}\r\n\r\n".encode() + picture.data + b"\r\n"
        for picture in pictures
    ]
    return b"".join(parts) + f"--{_BOUNDARY}--\r\n".encode()
