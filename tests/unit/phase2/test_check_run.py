"""G2-4 and G2-5 on recorded runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from experiments.phase2.check_run import judge_needles, judge_stability
from experiments.phase2.finding import CheckOutcome


def test_a_sound_run_passes_both(made: Any) -> None:
    stable, needles = judge_stability(made()), judge_needles(made())
    assert (stable.outcome, stable.detail) == (CheckOutcome.passed, "no NaN, no OOM")
    assert (needles.outcome, needles.detail) == (CheckOutcome.passed, "87.5% > 80%")
    assert needles.numbers["recall"] == {
        "outcome": "passed",
        "accuracy": 0.875,
        "control": 0.05,
        "chance": 0.0625,
        "key_blind": 0.4,
        "threshold": 0.8,
    }
    told = "recall: PASSED: 87.5% with memory, 5.0% without (chance 6.2%, key-blind 40.0%, wanted >= 80.0%)"
    assert told in needles.evidence


@pytest.mark.parametrize(
    ("given", "detail"),
    [
        ({"exit_status": -9}, "killed by the system, which does so when memory runs out"),
        ({"exit_status": 1}, "exit status 1 of a completed run"),
        ({"exit_status": -9, "status": "running"}, "killed by the system, which does so when memory runs out"),
        (
            {"exit_status": 1, "status": "failed", "reason": "OutOfMemoryError: CUDA out of memory", "step": 3},
            "failed at step 3: OutOfMemoryError: CUDA out of memory",
        ),
        ({"status": "aborted", "reason": "loss nan", "step": 41}, "aborted at step 41: loss nan"),
        ({"validation_loss": None}, "no finite validation loss at the end"),
        (
            {"events": [{"kind": "spike", "step": 7, "trigger": "non_finite"}], "rollbacks": 1},
            "not finite at step 8",
        ),
    ],
)
def test_a_run_that_was_not_stable_fails(given: dict[str, Any], detail: str, made: Any) -> None:
    finding = judge_stability(made(**given))
    assert (finding.outcome, finding.detail) == (CheckOutcome.failed, detail)


@pytest.mark.parametrize("key", ["loss", "perplexity", "grad_norm"])
def test_a_null_in_any_row_fails(key: str, made: Any) -> None:
    record = made()
    record.rows[4][key] = None
    assert judge_stability(record).detail == "not finite at step 500"


def test_too_few_steps_and_rows_that_end_early_fail(made: Any) -> None:
    record = made()
    assert judge_stability(replace(record, rows=record.rows[:-1])).detail == "metrics.jsonl has no row of the last step"
    assert judge_stability(replace(record, rows=[])).detail == "metrics.jsonl has no row of the last step"
    short = made(step=500)
    short = replace(short, rows=short.rows[:5])
    assert judge_stability(short).detail == "500 steps of the 1000 that are required"
    assert judge_stability(short, 500).outcome is CheckOutcome.passed
    assert judge_stability(replace(record, summary=None)).detail == "exit status 0, no summary.json"


@pytest.mark.parametrize(
    ("accuracies", "detail"),
    [
        ({"recall": 0.458}, "recall 45.8%, wanted > 80.0%, memory off 5.0%"),
        ({"recall": 0.8}, "recall 80.0%, wanted > 80.0%, memory off 5.0%"),
        ({"recall": None}, "recall not measured: the outputs are not finite"),
        ({"memory": 0.5}, "memory cosine 0.50, wanted > cosine 0.80, memory off cosine 0.05"),
    ],
)
def test_a_level_at_or_below_the_threshold_fails(
    accuracies: dict[str, float | None], detail: str, made: Any, results: Any
) -> None:
    finding = judge_needles(made(niah=results(**accuracies)))
    assert (finding.outcome, finding.detail) == (CheckOutcome.failed, detail)


def test_a_lower_threshold_of_the_probe_does_not_help(made: Any, results: Any) -> None:
    found = results(recall=0.5)
    found["recall"] |= {"threshold": 0.1, "outcome": "passed"}
    assert judge_needles(made(niah=found)).detail == "recall 50.0%, wanted > 80.0%, memory off 5.0%"


def test_a_control_that_knows_too_much_fails(made: Any, results: Any) -> None:
    found = results()
    found["recall"] |= {"outcome": "failed", "reason": "the control finds 60.0% without the memory: a leak"}
    assert judge_needles(made(niah=found)).detail == "recall failed: the control finds 60.0% without the memory: a leak"


def test_what_was_not_measured_at_the_end_does_not_pass(made: Any) -> None:
    assert judge_needles(made(niah={})).outcome is CheckOutcome.failed
    record = made()
    old = [event | {"step": 900} if event.get("level") == "recall" else event for event in record.events]
    assert judge_needles(replace(record, events=old)).detail == "recall not measured at the last step"
    assert judge_needles(made(status="aborted", reason="x", step=5)).detail == (
        "not measured: the run is aborted at step 5: x"
    )
