"""Random octets for the ids of requests and of spans: unpredictable, as the system makes them, and fetched many at a time."""

from __future__ import annotations

import os
from typing import Final

_FETCHED_OCTETS: Final = 4096
"""Some hundred requests' worth. A system call for each id took as long as a tenth of the gate."""


class RandomOctets:
    """Hands out `os.urandom`, no octet twice. Belongs to one thread."""

    def __init__(self) -> None:
        self._fetched = b""
        self._used = 0

    def take(self, count: int) -> bytes:
        """The next so many octets."""
        used = self._used + count
        if used > len(self._fetched):
            self._fetched, used = os.urandom(max(count, _FETCHED_OCTETS)), count
        self._used = used
        return self._fetched[used - count : used]


random_octets: Final = RandomOctets().take
"""For the thread of the event loop."""
