"""What the demo prints."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from security.client_records import CreatedClient

CONTENT_TYPES: Final = {".png": "image/png", ".jpg": "image/jpeg"}
_BAR_WIDTH: Final = 32
_LABEL_WIDTH: Final = 28


def show_step(console: Console, what: str, since_s: float) -> None:
    """One finished step and the seconds since `since_s` on the monotonic clock."""
    console.print(f"[green]✓[/green] {what} [dim]({time.monotonic() - since_s:.1f} s)[/dim]", highlight=False)


def show_prediction(console: Console, name: str, prediction: dict[str, Any], server_timing: str, total_s: float) -> None:
    """The classes of one photograph as bars, and the time that each step took."""
    console.print(f"\n[bold]{name}[/bold]")
    for score in prediction["predictions"]:
        bar = "█" * max(1, round(score["confidence"] * _BAR_WIDTH))
        label = score["label"][:_LABEL_WIDTH]
        console.print(f"  {label:<{_LABEL_WIDTH}} [cyan]{bar:<{_BAR_WIDTH}}[/cyan] {score['confidence']:6.1%}", highlight=False)
    steps = " · ".join(f"{step} {milliseconds} ms" for step, milliseconds in _steps(server_timing))
    console.print(f"  [dim]{steps} · the whole call {total_s * 1e3:.1f} ms[/dim]", highlight=False)


def show_curl(console: Console, base_url: str, client: CreatedClient, photograph: Path) -> None:
    """The commands that repeat it by hand, each on one line, so that it can be copied into a shell."""
    token = (
        f"TOKEN=$(curl -s -u {client.client_id}:{client.client_secret} -d grant_type=client_credentials {base_url}/oauth2/token"
        " | python3 -c 'import json, sys; print(json.load(sys.stdin)[\"access_token\"])')"
    )
    predict = (
        f'curl -s -H "Authorization: Bearer $TOKEN" -H "Content-Type: {CONTENT_TYPES[photograph.suffix]}" '
        f"--data-binary @{shlex.quote(str(photograph))} {base_url}/predict"
    )
    console.print("\n[bold]The same by hand:[/bold]")
    for line in (token, predict):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print(f"\nThe API's pages: {base_url}/docs", highlight=False)


def _steps(server_timing: str) -> Iterator[tuple[str, str]]:
    for step in server_timing.split(","):
        name, _, duration = step.strip().partition(";dur=")
        yield name, duration
