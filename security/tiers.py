"""The tiers: how much a client may ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import structlog
from pydantic import BaseModel, ConfigDict, Field, field_validator

from security.client_records import STANDARD_TIER, check_tier
from security.errors import RegistryError
from security.rate_limits import Quota, parse_limit

IMAGES: Final = "images"

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class TierSettings(BaseModel):
    """One tier of the setting `TIERS`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: str = Field(description="How many pictures a client may send, such as 600/minute.")
    in_flight: int = Field(ge=1, le=10_000, description="How many requests of one client a worker serves at once.")

    @field_validator("images")
    @classmethod
    def _is_a_limit(cls, value: str) -> str:
        parse_limit(value)
        return value


def check_tiers(tiers: Mapping[str, TierSettings]) -> None:
    """Refuse tiers that clients cannot have, or without the one that they have by default.

    Raises:
        ValueError: says what is wrong.
    """
    if STANDARD_TIER not in tiers:
        raise ValueError(f"must have the tier {STANDARD_TIER}")
    try:
        for name in tiers:
            check_tier(name)
    except RegistryError as error:
        raise ValueError(str(error)) from error


@dataclass(frozen=True, slots=True)
class Tier:
    """What a client of one tier may ask for."""

    name: str
    quota: Quota
    in_flight: int


class Tiers:
    """Every tier there is.

    A client may have a tier that there is no more, or that was never there: it then has the strictest of each limit, under that name, so
    that a mistake opens nothing and shuts nobody out. The log says so once.

    Args:
        settings: the setting `TIERS`, checked.
    """

    def __init__(self, settings: Mapping[str, TierSettings]) -> None:
        self._tiers = {name: Tier(name, Quota(IMAGES, parse_limit(tier.images)), tier.in_flight) for name, tier in settings.items()}
        slowest = min(self._tiers.values(), key=lambda tier: tier.quota.amount / tier.quota.window_s)
        self._strictest = Tier("strictest", slowest.quota, min(tier.in_flight for tier in self._tiers.values()))
        self._unknown: set[str] = set()

    def get(self, name: str) -> Tier:
        """The tier of that name, or the strictest there is."""
        tier = self._tiers.get(name)
        if tier is not None:
            return tier
        if name not in self._unknown:
            self._unknown.add(name)
            _log.error("tier_unknown", tier=name, effect="its clients have the strictest limits of all tiers", known=sorted(self._tiers))
        return self._strictest
