"""Times of day, as the command line tells them to people."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_time(at_s: float) -> str:
    """Seconds since the epoch as RFC 3339, in UTC, to the second."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
