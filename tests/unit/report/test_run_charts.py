from __future__ import annotations

from pathlib import Path

import pytest

from atlas.report.document import Chart
from atlas.report.marks import common_range
from atlas.report.run_charts import run_charts
from atlas.report.run_record import read_run


@pytest.fixture
def charts(rolled_back: Path) -> dict[str, Chart]:
    return {chart.title: chart for chart in run_charts(read_run(rolled_back, "0"), limit=100)}


def test_what_was_recorded_has_a_chart(charts: dict[str, Chart]) -> None:
    assert list(charts) == ["Loss", "Perplexity delta of the watched sequences", "Memory: weight norm"]


def test_what_a_rollback_undid_is_drawn_apart(charts: dict[str, Chart]) -> None:
    live, undone = charts["Loss"].traces[:2]
    assert (live["x"], undone["x"]) == ([*range(1, 11)], [6, 7, 8])
    assert (live["y"][-1], undone["y"][-1]) == (2.0, 40.0)
    assert (undone["meta"], undone["opacity"]) == ("undone", 0.45)
    (band,) = charts["Loss"].layout["shapes"]
    assert (band["x0"], band["x1"]) == (5, 8)
    assert [label["text"] for label in charts["Loss"].layout["annotations"]] == ["rollback to 5, segment 1"]


def test_validation_and_baseline_stand_beside_the_training_loss(charts: dict[str, Chart]) -> None:
    assert [(trace["name"], trace["y"][-1]) for trace in charts["Loss"].traces[2:]] == [
        ("validation", 2.1),
        ("bigram baseline", 2.5),
    ]


def test_the_delta_is_shown_around_its_threshold(charts: dict[str, Chart]) -> None:
    chart = charts["Perplexity delta of the watched sequences"]
    assert chart.traces[-1]["name"] == "threshold 5.0%"
    assert chart.traces[-1]["y"] == [0.05, 0.05]
    low, high = chart.layout["yaxis"]["range"]
    assert low == pytest.approx(-0.01 - 0.05 * 0.16)
    assert high == pytest.approx(0.15 + 0.05 * 0.16)
    assert chart.note == "Readings go from -1.0% to 50.0%; a double click shows all of them."


def test_memories_share_a_chart_for_each_quantity(charts: dict[str, Chart]) -> None:
    lines = charts["Memory: weight norm"].traces
    assert [(line["name"], line["y"]) for line in lines] == [("layer0 local0", [1.5]), ("layer1 local0", [2.5])]


def test_a_range_leaves_out_the_rare_extreme_and_says_so() -> None:
    steps, values = list(range(1, 1001)), [1 + 0.001 * step for step in range(1, 1001)]
    assert common_range([{"x": steps, "y": values}]) == (None, "")
    limits, note = common_range([{"x": steps, "y": [*values[:-1], 90.0]}])
    assert limits == pytest.approx([1.001 - 0.06 * 0.998, 1.999 + 0.06 * 0.998], abs=1e-3)
    assert note == "Not all values fit: 90 at step 1,000 lies outside. A double click shows everything."
