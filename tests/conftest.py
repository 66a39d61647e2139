"""What holds for every test: the event loop of the real processes, and no silent skip where nothing may be missing."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Generator, Iterator, Mapping

import pytest
import structlog
import uvloop


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run asynchronous tests on uvloop, as `lensgate serve` does."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With CI=true everything but a GPU can be had, so a test that is skipped for want of something has failed."""
    report = yield
    if os.environ.get("CI") == "true" and report.skipped and not hasattr(report, "wasxfail") and item.get_closest_marker("gpu") is None:
        report.outcome = "failed"
        report.longrepr = f"skipped under CI=true: {report.longrepr}"
    # Hostile text that a test logs may hold lone surrogates, which pytest-xdist cannot send from one process to another.
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """Logging as it was before a test that configures it."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()
    root.handlers, root.level = handlers, level
