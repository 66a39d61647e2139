from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from benchmarks.chart import draw
from benchmarks.report import STUBBED

PUBLISHED = Path(__file__).parents[2] / "docs" / "performance.svg"


def test_no_text_touches_the_edge() -> None:
    row = {
        "stubbed": next(iter(STUBBED)),
        "picture": "small",
        "body": "raw",
        "connections": 16,
        "contender": "lensgate",
        "images_per_s": 100.0,
    }
    drawn = draw({"servers": [row], "references": []})
    for chart in (drawn, PUBLISHED.read_text()):
        texts = [element for element in ET.fromstring(chart).iter() if element.tag.endswith("text")]
        assert texts
        assert min(float(text.attrib["x"]) for text in texts) >= 16
