from __future__ import annotations

import json
import random
from math import sqrt
from pathlib import Path

import pytest

from atlas.training.rollback.threshold import (
    describe_suggestion,
    steep_readings,
    suggest_threshold,
    write_suggestion,
)


def test_quantiles_are_interpolated() -> None:
    found = suggest_threshold([3.0, 1.0, 2.0, 5.0])["quantiles"]
    assert [found[share] for share in ("0.0", "0.25", "0.5", "1.0")] == [1.0, 1.75, 2.5, 5.0]


def test_a_quiet_run_gets_the_floor_of_five_percent() -> None:
    draw = random.Random(0)
    found = suggest_threshold([draw.gauss(-0.01, 0.005) for _ in range(1000)])
    assert (found["verdict"], found["threshold"]) == ("stable", 0.05)


def test_the_threshold_is_the_99th_percentile_and_a_deviation() -> None:
    deltas = [-0.5] * 50 + [0.04, 0.06] * 25  # how fast the run learns does not count
    found = suggest_threshold(deltas)
    deviation = sqrt((0.04**2 + 0.06**2) / 2)
    assert found["percentile_99"] == 0.06
    assert found["deviation_above"] == pytest.approx(deviation)
    assert (found["verdict"], found["threshold"]) == ("unstable", None)
    found = suggest_threshold([delta / 2 for delta in deltas])
    assert (found["verdict"], found["threshold"]) == ("stable", pytest.approx(0.03 + deviation / 2))


def test_too_few_readings_suggest_nothing(tmp_path: Path) -> None:
    assert suggest_threshold([0.01] * 19)["verdict"] == "too few readings"
    assert write_suggestion(tmp_path, []) == (
        "no rollback threshold can be suggested: 0 readings after the warm-up are too few"
    )
    assert json.loads((tmp_path / "rollback_threshold.json").read_text())["quantiles"] == {}


def test_quarters_of_a_steep_descent_at_the_start_are_left_out(tmp_path: Path) -> None:
    deltas = [-0.2] * 10 + [-0.06] * 10 + [0.01] * 20
    assert steep_readings(deltas) == 20
    assert steep_readings([-0.05] * 40) == 0
    assert write_suggestion(tmp_path, deltas) == (
        "suggested rollback.threshold=0.050: without 20 readings of a steep descent, 99th percentile 1.00% + root mean"
        " square above the average 1.00% of ppl_delta, at least 5%"
    )
    written = json.loads((tmp_path / "rollback_threshold.json").read_text())
    assert (written["readings"], written["left_out"], written["deltas"]) == (20, 20, deltas)
    assert write_suggestion(tmp_path, deltas[:38]) == (
        "no rollback threshold can be suggested: 19 readings after the warm-up and the steep descent are too few"
    )


def test_the_suggestion_in_one_line() -> None:
    assert describe_suggestion(suggest_threshold([0.06] * 30) | {"left_out": 0}) == (
        "the run is too unstable for a rollback threshold: "
        "99th percentile 6.00% + root mean square above the average 6.00% of ppl_delta is above 10%"
    )
    assert describe_suggestion(suggest_threshold([0.01] * 30) | {"left_out": 0}) == (
        "suggested rollback.threshold=0.050: 99th percentile 1.00% + root mean square above the average 1.00% of"
        " ppl_delta, at least 5%"
    )
