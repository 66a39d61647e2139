"""The files behind the metrics: a process that is killed at any moment, a disk that is full, files that are gone."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families

from api import metric_files
from api.metric_files import make_metric_files, remove_metric_files
from api.metrics import Metrics

_COUNT_FOR_EVER = """
import sys
from api.metric_files import share_metrics
folder = share_metrics(sys.argv[1], "api-0")
from api.metrics import Metrics
metrics = Metrics(folder)
metrics.answered("/", "GET", 200, 0.001)
print("counting", flush=True)
while True:
    for status in range(100, 500):  # new labels all the time: each is written to the file's end
        metrics.answered(f"/{sys.argv[2]}", "GET", status, 0.001)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    made = make_metric_files(["api-0"])
    assert made is not None
    yield made
    remove_metric_files(made)


def test_a_process_that_is_killed_at_any_moment_leaves_files_that_can_be_read_and_gone_on_with(folder: Path) -> None:
    former = 0.0
    for life in range(6):
        process = subprocess.Popen([sys.executable, "-c", _COUNT_FOR_EVER, str(folder), str(life)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        try:
            if life:  # the first is killed while it starts
                assert process.stdout.readline() == b"counting\n"
                for _ in range(life):
                    families = {family.name: family for family in text_string_to_metric_families(Metrics(folder).exposition().decode())}
                    assert "lensgate_requests" in families
        finally:  # it would count for ever
            process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
        process.stdout.close()
        now = sum(
            sample.value
            for family in text_string_to_metric_families(Metrics(folder).exposition().decode())
            for sample in family.samples
            if sample.name == "lensgate_requests_total"
        )
        assert now >= former
        former = now
    assert former > 0
    assert {path.name.removesuffix("_api-0.db"): path.stat().st_size for path in folder.iterdir()} == metric_files.SIZES_BYTES


def test_without_shared_memory_they_are_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_files, "_SHARED_MEMORY", tmp_path / "absent")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = make_metric_files(["api-0"])
    assert folder is not None
    assert folder.parent == tmp_path


def test_where_they_cannot_be_written_nothing_is_left_and_the_log_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    made: list[Path] = []

    def remove(folder: Path) -> None:
        made.append(folder)
        remove_metric_files(folder)

    monkeypatch.setattr(metric_files, "remove_metric_files", remove)
    with structlog.testing.capture_logs() as lines:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # a full disk, for the unprivileged
        try:
            assert make_metric_files(["engine-0", "api-0"]) is None
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [line["event"] for line in lines] == ["metrics_not_shared"]
    assert len(made) == 2
    assert not any(folder.exists() for folder in made)
