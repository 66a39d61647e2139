"""What a rate limit is, and what taking from it tells: whether it was let through, what is left, and when to come back."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import ceil, floor
from typing import Final, NamedTuple
from urllib.parse import urlsplit

STATE_KEY: Final = "rate_limits"
"""Where the verdicts on a request stand, the most telling first: `scope["state"]["rate_limits"]`, a list of `Verdict`."""

MEMORY: Final = "memory://"
"""The storage that is memory which all workers of this service share."""

_ROUNDING_S: Final = 0.001
_MAX_WINDOW_S: Final = 86_400
_SECONDS: Final = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
_LIMIT: Final = re.compile(r"([0-9]{1,9}) ?(?:/| per ) ?(?:([0-9]{1,5}) ?)?(second|minute|hour|day)s?")


class Limit(NamedTuple):
    """So many units in a window."""

    amount: int
    window_s: int


def parse_limit(text: str) -> Limit:
    """Read a limit in the notation of the library `limits`: `600/minute`, `10 per 5 minutes`; at least 1, in at most a day.

    The library itself is not asked: every command reads the settings, and importing it takes longer than most commands.

    Raises:
        ValueError: it is none, or out of these bounds.
    """
    match = _LIMIT.fullmatch(text.strip())
    if match is None:
        raise ValueError("must be a limit such as 600/minute")
    amount, window_s = int(match[1]), int(match[2] or 1) * _SECONDS[match[3]]
    if amount < 1 or not 1 <= window_s <= _MAX_WINDOW_S:
        raise ValueError("must allow at least one, in a window of at most a day")
    return Limit(amount, window_s)


def check_storage_url(url: str) -> None:
    """Refuse what is neither `memory://` nor the URL of a Redis.

    Raises:
        ValueError: says what is wrong, and nothing of the URL, which may hold a password.
    """
    if url == MEMORY:
        return
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"redis", "rediss"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # its message repeats the port, or a password with a slash in it
        usable = False
    if not usable:
        raise ValueError(f"must be {MEMORY} or the URL of a Redis, redis://host:6379/0 or rediss://...")


class Window(NamedTuple):
    """The two counters of a sliding window, as every storage of `limits` tells them."""

    previous_count: int
    previous_ttl_s: float
    """For how long the previous window still weighs: 0 to one window."""
    current_count: int
    current_ttl_s: float
    """How long the current count lives: one to two windows, because it becomes the previous one. 0 where there is none."""


@dataclass(frozen=True)
class Quota:
    """A named limit on how many units may be taken in a window, for each of any number of keys."""

    name: str
    """What `RateLimit-Policy` calls it."""
    limit: Limit
    prefix: str = field(init=False)
    """What its keys begin with: another amount or window is another bucket."""
    policy: bytes = field(init=False)
    """Its item of the header `RateLimit-Policy`."""

    def __post_init__(self) -> None:
        amount, window_s = self.limit
        object.__setattr__(self, "prefix", f"{self.name}/{amount}/{window_s}/")
        object.__setattr__(self, "policy", f'"{self.name}";q={amount};w={window_s}'.encode("ascii"))

    @property
    def amount(self) -> int:
        """Units in a window."""
        return self.limit.amount

    @property
    def window_s(self) -> int:
        """The window, in seconds."""
        return self.limit.window_s


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one attempt to take units from a quota."""

    quota: Quota
    admitted: bool
    remaining: int
    """Units that could be taken now."""
    reset_s: int
    """Seconds until more units are there than now: until the window turns, or, of a refusal, `retry_after_s`. At least 1."""
    retry_after_s: int
    """Seconds until what was refused could be let through; at least 1, or 0 when it was let through."""


def judge(quota: Quota, window: Window, *, admitted: bool, cost: int) -> Verdict:
    """Read a window after `cost` units were taken from it, or refused."""
    width_s = quota.window_s
    weighted = window.previous_count * window.previous_ttl_s / width_s + window.current_count
    turns_in_s = min(max(0.0, window.current_ttl_s - width_s), width_s) or width_s
    remaining = max(0, quota.amount - floor(weighted))
    if admitted:
        return Verdict(quota, True, remaining, max(1, ceil(turns_in_s)), 0)
    wait_s = max(1, floor(_until_free_s(quota, window, cost, turns_in_s) + _ROUNDING_S) + 1)  # at that very moment it is still refused
    return Verdict(quota, False, remaining, wait_s, wait_s)


def _until_free_s(quota: Quota, window: Window, cost: int, turns_in_s: float) -> float:
    """Seconds until `cost` units fit. What can never fit is told to wait for an empty window."""
    width_s = quota.window_s
    room = quota.amount - min(cost, quota.amount) + 1  # `limits` admits while the weighted count, rounded down, leaves room
    if window.current_count < room:
        if window.previous_count == 0:
            return 0.0
        return window.previous_ttl_s - (room - window.current_count) * width_s / window.previous_count
    return turns_in_s + max(0.0, width_s - room * width_s / window.current_count)


def rate_limit_headers(verdicts: list[Verdict]) -> list[tuple[bytes, bytes]]:
    """`RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers): structured lists, one item a quota."""
    return [
        (b"ratelimit-policy", b", ".join([verdict.quota.policy for verdict in verdicts])),
        (
            b"ratelimit",
            ", ".join([f'"{verdict.quota.name}";r={verdict.remaining};t={verdict.reset_s}' for verdict in verdicts]).encode("ascii"),
        ),
    ]
