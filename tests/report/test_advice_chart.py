"""The chart of an advice is an SVG of its own, the same for the same candidates."""

import math
from xml.etree import ElementTree as ET

import pytest

from streamcl.report.advice_chart import CandidatePoint, write_advice_chart

POINTS = [
    CandidatePoint(8.0, 55.0, 2.2, "42 px", "2: 1", on_front=True, is_chosen=False),
    CandidatePoint(30.0, 75.0, 1.9, "70 px", "9: 2,4,6,8", on_front=True, is_chosen=True),
    CandidatePoint(40.0, 70.0, 2.0, "70 px", "11: 10", on_front=False, is_chosen=False),
]


@pytest.mark.parametrize("limit", [20.0, math.inf])
@pytest.mark.parametrize("points", [POINTS, POINTS[:1]])
def test_it_names_the_front_and_the_same_candidates_give_the_same_bytes(tmp_path, points, limit):
    first, second = tmp_path / "one.svg", tmp_path / "two.svg"
    write_advice_chart(points, limit, first)
    write_advice_chart(points, limit, second)
    assert first.read_bytes() == second.read_bytes()
    text = "".join(ET.fromstring(first.read_text()).itertext())
    assert all((point.label in text) == point.on_front for point in points)
    assert ("limit" in text) == math.isfinite(limit)
    assert "42 px" in text
