from __future__ import annotations

import numpy as np

from atlas.report.metric_columns import to_columns


def test_rows_become_columns_without_what_no_row_measured() -> None:
    rows = to_columns(
        [{"step": 1, "segment": 0, "loss": 2.0, "lr": None, "odd": "text"}, {"step": 2, "loss": None}], []
    )
    assert rows.step.tolist() == [1, 2]
    assert set(rows.values) == {"loss"}
    np.testing.assert_array_equal(rows.values["loss"], [2.0, np.nan])
    assert (rows.last("loss"), rows.last("lr")) == (2.0, None)


def test_of_two_rows_of_one_step_the_later_one_counts() -> None:
    rows = to_columns([{"step": 1, "segment": 0, "a": 1.0}, {"step": 1, "segment": 0, "a": 1.0, "b": 2.0}], [])
    assert (len(rows), rows.values["b"].tolist()) == (1, [2.0])


def test_rows_after_the_restored_step_are_undone() -> None:
    lines = [{"step": step, "segment": 0, "loss": 1.0} for step in (10, 20, 23)]
    lines += [{"step": 30, "segment": 1, "loss": 0.5}]
    told = to_columns(lines, [{"step": 20, "segment": 1}])  # a row every 10 steps: only the event knows of step 20
    assert told.undone.tolist() == [False, False, True, False]
    untold = to_columns([*lines[:3], {"step": 21, "segment": 1, "loss": 0.5}], [])  # events.jsonl is lost
    assert untold.undone.tolist() == [False, False, True, False]


def test_a_second_rollback_undoes_both_segments_before_it() -> None:
    steps = [(1, 0), (2, 0), (3, 0), (2, 1), (3, 1), (2, 2)]
    rows = to_columns([{"step": step, "segment": segment, "loss": 1.0} for step, segment in steps], [])
    assert rows.undone.tolist() == [False, True, True, True, True, False]
