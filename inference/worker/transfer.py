"""One HTTP transfer of one file into a `.part` file beside its goal, taken up where an earlier one broke off (RFC 9110, section 14)."""

from __future__ import annotations

import http.client
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import IO

Progress = Callable[[int, int | None], None]
"""Called with the bytes that lie on the disk so far and the file's size in bytes, None where the server does not tell it."""

_CHUNK_BYTES = 256 * 1024
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
# Answers after which the same request may well succeed: RFC 9110 and, for 425 and 429, RFC 8470 and RFC 6585.
_PASSING_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})


class TransferError(Exception):
    """The transfer ended before the file was whole; `passing` says whether another attempt may end better."""

    def __init__(self, message: str, *, passing: bool) -> None:
        super().__init__(message)
        self.passing = passing


class NoContact(TransferError):
    """No server answered in time: no network, a name that does not resolve, a closed port."""

    def __init__(self, message: str) -> None:
        super().__init__(message, passing=True)


class _SameSchemeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects (ten at most, as urllib does), yet never from https to something else."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and following.type != req.type:
            fp.close()
            raise TransferError(f"the server redirects from {req.type} to {following.type}", passing=False)
        return following


def transfer(
    url: str, part: Path, *, connect_timeout_s: float, read_timeout_s: float, deadline: float, max_bytes: int, progress: Progress
) -> None:
    """Bring `part` to its full length. What is in it already is asked for no second time where the server knows ranges.

    Args:
        url: an http or https address; the environment's proxies are honoured.
        part: the file to fill; kept when the transfer breaks, so that the next one goes on from it.
        connect_timeout_s: the most seconds from now to the answer's headers, name look-up, all addresses, TLS and redirects together.
        read_timeout_s: the most seconds between two pieces of the body.
        deadline: the `time.monotonic()` at which the transfer is given up.
        max_bytes: the longest file that is accepted.
        progress: told after every piece.

    Raises:
        NoContact: nothing answered.
        TransferError: the server refused, broke off, or sent too much.
        OSError: `part` could not be written.
    """
    held_bytes = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "lensgate", "Accept-Encoding": "identity"}
    if held_bytes:
        headers["Range"] = f"bytes={held_bytes}-"
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - `fetch` has checked the scheme, and the opener knows no other
    with _open(request, connect_timeout_s, read_timeout_s, part) as response:
        start, total = _extent(response)
        if start not in (0, held_bytes):
            part.unlink()
            raise TransferError("the server sent another range than the one asked for", passing=True)
        _receive(response, part, start=start, total=total, deadline=deadline, max_bytes=max_bytes, progress=progress)


def _opener() -> urllib.request.OpenerDirector:
    """Build an opener for http and https alone: `urlopen`'s would also read `file:` and `ftp:` addresses."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _SameSchemeRedirects(),
    ):
        opener.add_handler(handler)
    return opener


def _open(request: urllib.request.Request, connect_timeout_s: float, read_timeout_s: float, part: Path) -> http.client.HTTPResponse:
    """Send the request and wait for the headers, in a thread: no socket timeout bounds a name look-up or a row of dead addresses."""
    answer: Future[http.client.HTTPResponse] = Future()

    def ask() -> None:
        try:
            answer.set_result(_opener().open(request, timeout=read_timeout_s))
        except (OSError, ValueError, http.client.HTTPException, TransferError) as error:
            answer.set_exception(error)

    threading.Thread(target=ask, name="lensgate-download", daemon=True).start()
    try:
        return answer.result(timeout=connect_timeout_s)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink(missing_ok=True)
            raise TransferError("the server does not have the rest of the file that an earlier download began", passing=True) from None
        raise TransferError(f"the server answered {error.code} {error.reason}", passing=error.code in _PASSING_STATUSES) from None
    except urllib.error.URLError as error:
        raise NoContact(f"no connection ({error.reason})") from None
    except TimeoutError:
        answer.add_done_callback(_close_unwanted)
        raise NoContact(f"no answer within {connect_timeout_s:g} s") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise NoContact(f"no usable answer ({type(error).__name__}: {error})") from None


def _close_unwanted(answer: Future[http.client.HTTPResponse]) -> None:
    if answer.exception() is None:
        answer.result().close()


def _extent(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """Return where the body begins in the file, and how long the file is where the server says so."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        content_range = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if content_range is None:
            raise TransferError("the server sent a part of the file without saying which", passing=False)
        return int(content_range[1]), None if content_range[2] == "*" else int(content_range[2])
    if response.status != http.HTTPStatus.OK:
        raise TransferError(f"the server answered {response.status}", passing=False)
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _receive(
    response: http.client.HTTPResponse, part: Path, *, start: int, total: int | None, deadline: float, max_bytes: int, progress: Progress
) -> None:
    """Append the body to `part` from byte `start` on."""
    received_bytes = start
    if total is not None and total > max_bytes:
        raise TransferError(f"the file is {total} bytes long, more than the {max_bytes} that are allowed", passing=False)
    with part.open("r+b" if start else "wb") as file:
        file.seek(start)
        progress(received_bytes, total)
        while received_bytes != total:
            if time.monotonic() > deadline:
                raise TransferError("the download took too long", passing=False)
            try:
                # `read1` returns what has come; `read` would wait for a whole chunk, past any deadline, when a byte comes now and then.
                chunk = response.read1(_CHUNK_BYTES)
            except (OSError, http.client.HTTPException) as error:
                raise TransferError(f"the connection broke after {received_bytes} bytes ({type(error).__name__})", passing=True) from None
            if not chunk:
                break
            received_bytes += len(chunk)
            if received_bytes > max_bytes:
                part.unlink()
                raise TransferError(f"the file is longer than the {max_bytes} bytes that are allowed", passing=False)
            file.write(chunk)
            progress(received_bytes, total)
    if total is not None and received_bytes != total:
        raise TransferError(f"the connection broke after {received_bytes} of {total} bytes", passing=True)
