"""What deploy/observability says of the rest of the house is true: metrics, runbook, mounted files, the image's label."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import pytest

from support.prometheus import RULE_FILES, SHIPPED

ROOT: Final = SHIPPED.parents[2]
BOARDS: Final = ("service.json", "logs.json")
METRIC: Final = re.compile(r"\b(lensgate_[a-z_]+)")


def board(name: str) -> Any:  # noqa: ANN401 # Grafana's JSON
    return json.loads((SHIPPED.parent / "grafana" / "dashboards" / name).read_text())


def queries(name: str) -> list[str]:
    return [query["expr"] for panel in board(name)["panels"] for query in panel.get("targets", ())]


def test_every_metric_of_rules_and_panels_is_one_that_the_service_has() -> None:
    documented = set(re.findall(r"^\| `(lensgate_\w+)`", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE))
    used = {name for text in queries("service.json") for name in METRIC.findall(text)}
    used |= {name for file in RULE_FILES for name in METRIC.findall((SHIPPED / file).read_text())}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in used} <= documented


def test_every_alert_says_what_it_means_and_has_its_chapter() -> None:
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    alerts = re.split(r"- alert: ", (SHIPPED / "alerts.yml").read_text())[1:]
    names = [alert.split("\n", 1)[0] for alert in alerts]
    assert names == headings, "in the same order"
    for name, alert in zip(names, alerts, strict=True):
        assert re.search(r"severity: (page|ticket)\n", alert), name
        assert re.search(r"summary: .{10}", alert), name
        assert re.search(r"description: .{10}", alert), name
        assert f'runbook_url: "docs/operations.md#{name.lower()}"' in alert


@pytest.mark.parametrize("name", BOARDS)
def test_a_dashboard_can_be_shown(name: str) -> None:
    shown = board(name)
    variables = {variable["name"] for variable in shown["templating"]["list"]}
    panels = shown["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for query in queries(name):
        assert set(re.findall(r"\$(?!__)\{?(\w+)", query)) <= variables, query
    for panel in panels:
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert [query["refId"] for query in panel["targets"]] == ["A", "B", "C", "D"][: len(panel["targets"])]
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels), "Grafana's width"


def test_the_dashboards_are_known_by_different_names_and_link_to_each_other() -> None:
    uids = [board(name)["uid"] for name in BOARDS]
    links = [link["url"] for name in BOARDS for link in board(name)["links"]]
    assert sorted(links) == sorted(f"/d/{uid}" for uid in uids)
    assert len(set(uids)) == len(BOARDS)


def test_what_the_compose_file_mounts_is_there() -> None:
    mounted = re.findall(r"- \./([\w/]+):", (SHIPPED.parent / "compose.yaml").read_text())
    assert len(mounted) == 4
    assert all((SHIPPED.parent / path).is_dir() and list((SHIPPED.parent / path).iterdir()) for path in mounted)
    (dashboards,) = re.findall(r"path: (\S+)", (SHIPPED.parent / "grafana/provisioning/dashboards/lensgate.yaml").read_text())
    assert f"./grafana/dashboards:{dashboards}:ro" in (SHIPPED.parent / "compose.yaml").read_text()


def test_the_collector_of_logs_knows_our_image_and_names_the_stream_as_the_panels_do() -> None:
    collector = (SHIPPED.parent / "alloy" / "config.alloy").read_text()
    (label,) = re.findall(r'"(org\.opencontainers\.image\.title)=(\w+)"', collector)
    assert '{}="{}"'.format(*label) in Path(ROOT / "Dockerfile").read_text()
    (stream,) = set(re.findall(r'"service_name" = "(\w+)"', collector))
    assert all(f'{{service_name="{stream}"}}' in query for query in queries("logs.json"))
