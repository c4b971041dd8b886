"""G2-7 on recorded rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from experiments.phase2.check_run import judge_ppl_delta
from experiments.phase2.finding import CheckOutcome


def test_rows_that_equal_the_series_written_out_pass(made: Any, readings: Any) -> None:
    finding = judge_ppl_delta(made(), readings)
    assert (finding.outcome, finding.evidence) == (CheckOutcome.passed, ("10 rows equal the series of 50 readings",))
    assert finding.numbers["largest_difference"] < 1e-12
    assert finding.numbers["last"] == readings[-1].delta


def test_every_missing_row_and_value_is_seen(made: Any, readings: Any) -> None:
    record = made()
    for row in record.rows:
        del row["ppl_delta"]
    assert judge_ppl_delta(record, readings).detail == "ppl_delta absent at step 100"
    record = made()
    record.rows[3]["ppl_delta"] = None
    assert judge_ppl_delta(record, readings).detail == "ppl_delta not finite at step 400"
    record = made()
    gap = replace(record, rows=[row for row in record.rows if row["step"] != 700])
    assert judge_ppl_delta(gap, readings).detail == "no row of step 700"
    empty = judge_ppl_delta(replace(record, rows=[]), readings)
    assert (empty.outcome, empty.detail) == (CheckOutcome.failed, "no rows to read: metrics.jsonl is empty")


@pytest.mark.parametrize("wrong", [1e-6, -0.5])
def test_a_value_that_is_not_the_trackers_fails(wrong: float, made: Any, readings: Any) -> None:
    record = made()
    record.rows[6]["ppl_delta"] += wrong
    finding = judge_ppl_delta(record, readings)
    assert (finding.outcome, finding.detail) == (
        CheckOutcome.failed,
        f"rows differ from the tracker's series by {abs(wrong):.1e}",
    )


def test_constant_rows_fail(made: Any, readings: Any) -> None:
    record = made()
    for row in record.rows:
        row["ppl_delta"] = 0.0
    assert judge_ppl_delta(record, readings).outcome is CheckOutcome.failed


def test_without_readings_nothing_is_proved(made: Any, readings: Any) -> None:
    assert judge_ppl_delta(made(), []).detail == "no readings in the last checkpoint to compare with"
    assert judge_ppl_delta(made(), readings[10:]).detail == "a row of step 100 before the first reading kept"


def test_after_a_spike_presence_is_what_is_checked(made: Any, readings: Any) -> None:
    spiked = made(events=[{"kind": "spike", "step": 300, "trigger": "perplexity"}])
    finding = judge_ppl_delta(spiked, readings)
    assert (finding.outcome, finding.evidence) == (
        CheckOutcome.passed,
        ("10 rows; not computed again, since the run had a spike",),
    )
    del spiked.rows[2]["ppl_delta"]
    assert judge_ppl_delta(spiked, readings).outcome is CheckOutcome.failed
