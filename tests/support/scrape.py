"""Reads `/metrics` as Prometheus does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from support.service import Service


class Scrape:
    """One answer of `/metrics`."""

    def __init__(self, answer: httpx.Response) -> None:
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/plain; version=")
        self.text = answer.text
        self.families = {family.name: family for family in text_string_to_metric_families(self.text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of all samples of this name with these labels."""
        return sum(sample.value for sample in self.samples if sample.name == name and labels.items() <= sample.labels.items())

    def labels(self, name: str, label: str) -> set[str]:
        """Every value that a label has in samples of this name."""
        return {sample.labels[label] for sample in self.samples if sample.name == name}


def scraper(service: Service) -> Callable[[], Scrape]:
    """Scrapes a service with a token of its own."""
    token = service.token(service.create_client("prometheus", "metrics"))
    return lambda: Scrape(service.get("/metrics", token))


def answered(service: Service, *answers: httpx.Response, timeout_s: float = 30) -> None:
    """Wait until these requests are over for the service too: a client has its answer before it is counted."""
    for answer in answers:
        service.wait_for("request", request_id=answer.headers["x-request-id"], timeout_s=timeout_s)


def metric_folder(process: psutil.Process) -> Path:
    """Where a worker or an engine keeps its metrics."""
    mapped: list[Any] = process.memory_maps()
    (folder,) = {Path(one.path).parent for one in mapped if "lensgate-metrics-" in one.path}
    return folder
