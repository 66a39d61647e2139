"""`lensgate weights fetch`: the download that `serve` would do, ahead of time and with a bar."""

from __future__ import annotations

from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from inference.settings import InferenceSettings


def fetch_weights(settings: InferenceSettings) -> Path:
    """Have the configured weights on this machine, and return where. Blocks, and shows the progress on the terminal.

    Raises:
        ModelLoadError: they cannot be had; the message says what to do.
    """
    # Brings torch along, which only this command and the engine need.
    from inference.worker.weights import fetch_weights as fetch

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(f"{settings.model} {settings.weights}", total=None)
        return fetch(settings, progress=lambda received_bytes, total_bytes: bar.update(task, completed=received_bytes, total=total_bytes))
