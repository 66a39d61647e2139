"""What uvicorn writes, and when it reaches the socket."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import cast

import pytest

from security.wire_transport import CountingTransport


class Socket:
    """The inner transport: everything that one call hands to the kernel is one piece."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.pieces.append(data)

    def writelines(self, parts: Iterable[bytes]) -> None:
        assert all(parts), "asyncio of Python 3.12 tries for ever to send an empty part"
        self.pieces.append(b"".join(parts))

    def is_closing(self) -> bool:
        return False


@pytest.fixture
def socket() -> Socket:
    return Socket()


@pytest.fixture
def wire(socket: Socket) -> CountingTransport:
    return CountingTransport(cast("asyncio.Transport", socket), lambda: None)


def test_what_is_held_goes_out_in_one_piece_and_the_rest_at_once(wire: CountingTransport, socket: Socket) -> None:
    wire.hold()
    wire.write(b"head")
    assert socket.pieces == []
    wire.write(b"")
    wire.write(b"body")
    wire.let_go()
    wire.write(b"more")
    wire.let_go()
    assert socket.pieces == [b"headbody", b"more"]
    assert wire.written_bytes == len(b"headbodymore")


def test_the_end_sends_what_is_held_and_nothing_after_it(wire: CountingTransport, socket: Socket) -> None:
    wire.hold()
    wire.write(b"head")
    wire.end()
    wire.write(b"body")
    wire.let_go()
    assert socket.pieces == [b"head"]


def test_nothing_is_written_to_a_connection_that_is_gone(wire: CountingTransport, socket: Socket) -> None:
    wire.hold()
    wire.write(b"head")
    wire.release()
    wire.let_go()
    wire.write(b"body")
    assert socket.pieces == []
