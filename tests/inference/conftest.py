from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.echo_engine import EchoModel, Stand


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncIterator[Stand]:
    stand = Stand(tmp_path / "engine.sock", EchoModel())
    await stand.start()
    yield stand
    await stand.stop()
