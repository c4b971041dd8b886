from __future__ import annotations

from pathlib import Path

import pytest

from atlas.report.document import Chart, Facts
from atlas.report.marks import common_range, range_of_runs
from atlas.report.memory_charts import memory_charts
from atlas.report.run_charts import run_charts
from atlas.report.run_record import read_run
from atlas.report.run_section import run_sections
from tests.unit.report.conftest import MakeRun, event, row


@pytest.fixture
def charts(rolled_back: Path) -> dict[str, Chart]:
    record = read_run(rolled_back, "0")
    return {chart.title: chart for chart in [*run_charts(record, limit=100), *memory_charts(record, limit=100)]}


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
    assert chart.traces[-1]["name"] == "limit of a spike"
    assert [(trace["name"], trace["y"]) for trace in chart.traces[-2:]] == [
        ("least limit 5.0%", [0.05, 0.05]),
        ("limit of a spike", [0.166]),
    ]
    low, high = chart.layout["yaxis"]["range"]
    assert low == pytest.approx(-0.01 - 0.05 * 0.2092)
    assert high == pytest.approx(0.1992 + 0.05 * 0.2092)
    assert chart.note == "Readings go from -1.0% to 50.0%."


def test_a_damaged_limit_is_left_out(make_run: MakeRun) -> None:
    told = [event("spike", step, message=f"(limit {limit}%)") for step, limit in ((1, "1.2.3"), (2, "12"), (3, "."))]
    rows = [row(step, ppl_delta=0.5) for step in (1, 2, 3)]
    charts = run_charts(read_run(make_run("run", rows, told), "run"), limit=100)
    (delta,) = (chart for chart in charts if chart.title == "Perplexity delta of the watched sequences")
    assert [trace["y"] for trace in delta.traces if trace["name"] == "limit of a spike"] == [[0.12]]


def test_names_are_escaped_where_they_are_drawn_and_once(make_run: MakeRun) -> None:
    run = make_run("run", [row(1, loss=3.0)], summary={"baseline_loss": 2.5, "baseline_name": "a <b> & c"})
    (loss,) = run_charts(read_run(run, "run"), limit=100)
    assert loss.traces[-1]["name"] == "a &lt;b&gt; &amp; c"
    runs = [{"name": name, "x": [1], "y": [value]} for name, value in (("a", 1.0), ("b", 1.1), ("c&amp;d", 90.0))]
    assert range_of_runs(runs)[1] == "Out of range, up to 90: c&d."  # the page escapes a note


def test_memories_share_a_chart_for_each_quantity(charts: dict[str, Chart]) -> None:
    lines = charts["Memory: weight norm"].traces
    assert [(line["name"], line["y"]) for line in lines] == [("layer0 local0", [1.5]), ("layer1 local0", [2.5])]


def test_what_the_memory_is_worth_is_a_result_and_a_chart_once_it_was_measured_twice(make_run: MakeRun) -> None:
    use = {"memory_use/on": 1.26, "memory_use/off": 3.84, "memory_use/frozen": 1.38}
    once = read_run(make_run("once", [row(1, loss=3.0), row(2, loss=2.0, **use)]), "once")
    told = "loss of the watched rows 1.2600 nats with it, 3.8400 with it off, 1.3800 if it writes nothing"
    facts = next(block for block in run_sections(once, "Run", "run", 100)[0].blocks if isinstance(block, Facts))
    assert dict(facts.pairs)["memory"].text == told
    assert [chart.title for chart in run_charts(once, limit=100)] == ["Loss"]
    twice = read_run(make_run("twice", [row(1, loss=3.0, **use), row(2, loss=2.0, **use)]), "twice")
    chart = {chart.title: chart for chart in run_charts(twice, limit=100)}["What the memory is worth"]
    assert [(trace["name"], trace["y"]) for trace in chart.traces] == [
        ("memory on", [1.26, 1.26]), ("memory off", [3.84, 3.84]), ("memory writes nothing", [1.38, 1.38]),
    ]  # fmt: skip


def test_a_range_leaves_out_the_rare_extreme_and_says_so() -> None:
    steps, values = list(range(1, 1001)), [1 + 0.001 * step for step in range(1, 1001)]
    assert common_range([{"x": steps, "y": values}]) == (None, "")
    limits, note = common_range([{"x": steps, "y": [*values[:-1], 90.0]}])
    assert limits == pytest.approx([1.001 - 0.06 * 0.998, 1.999 + 0.06 * 0.998], abs=1e-3)
    assert note == "Not all values fit: 90 at step 1,000 lies outside."


def test_memories_over_layers_and_steps_are_a_heat_map_without_undone_rows(make_run: MakeRun) -> None:
    places = [f"memory/layer{layer}/{which}/write_ratio" for layer in range(4) for which in ("global", "local0")]
    rows = [row(step, **{key: step + 10.0 * at for at, key in enumerate(places)}) for step in range(1, 5)]
    rows[1] |= {places[0]: None}
    rows += [row(3, 1, **dict.fromkeys(places, 7.0))]
    run = make_run("run", rows, [event("rollback", 2, from_step=4, segment=1)])
    (chart,) = memory_charts(read_run(run, "run"), limit=100)  # eight places are too many for lines
    assert chart.title == "Memory over layers: write ratio"
    (heat,) = chart.traces
    assert heat["x"] == [1, 2, 3]
    assert heat["y"][:2] == ["layer0 global", "layer0 local0"]
    assert heat["z"][:2] == [[1.0, None, 7.0], [11.0, 12.0, 7.0]]


def test_a_diverged_run_does_not_stretch_the_axis_of_the_others() -> None:
    falling = [{"name": name, "x": [1, 2, 3], "y": [5.0, 3.0, top]} for name, top in (("a", 2.0), ("b", 2.5))]
    assert range_of_runs(falling) == (None, "")
    limits, note = range_of_runs([*falling, {"name": "c", "x": [1, 2, 3], "y": [5.0, 900.0, 80_000.0]}])
    assert limits == pytest.approx([2.0 - 0.06 * 3, 5.0 + 0.06 * 3])
    assert note == "Out of range, up to 7.842e+04: c."
