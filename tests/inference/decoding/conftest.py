from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest

from support.decoders import decoders_of


@pytest.fixture(autouse=True)
def no_decoder_is_left() -> Iterator[None]:
    """Whatever a test does to a pool, its processes end with it."""
    before = decoders_of(psutil.Process())  # of other tests' services
    yield
    assert decoders_of(psutil.Process()) == before
