from __future__ import annotations

from configparser import RawConfigParser
from pathlib import Path

from api.http_settings import HttpSettings

UNIT = Path(__file__).parents[2] / "deploy" / "lensgate.service"


def test_systemd_leaves_the_service_the_time_to_end_in_order() -> None:
    unit = RawConfigParser()
    unit.read(UNIT)
    service = unit["Service"]
    assert float(service["TimeoutStopSec"]) > HttpSettings().grace_s
    assert (service["KillMode"], service["Restart"]) == ("mixed", "on-failure")
