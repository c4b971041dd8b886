"""The rule of protocol 4.3 on tables of runs, and from a sweep folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from atlas.config import ConfigError
from atlas.training.rollback.threshold import suggest_threshold
from experiments.phase2.decide import PROTOCOLS
from experiments.phase2.decision import make_record, read_record
from experiments.phase2.rollback_threshold import ObservedRun, decide, tables
from experiments.phase2.sweeps import read_sweep
from tests.unit.phase2.test_committed import EVIDENCE
from tests.unit.phase2.test_evidence import BASE, Job, WriteSweep, merged, write_sweep

__all__ = ["write_sweep"]
PROTOCOL = next(one for one in PROTOCOLS if one.name == "rollback_threshold")


def runs(highest: float, count: int = 3, readings: int = 100) -> list[ObservedRun]:
    """Perplexities that fall by 1 % a reading, but for two readings above their average."""
    deltas = [-0.01] * (readings - 2) + [highest] * 2
    return [ObservedRun(seed, seed, 1000, deltas) for seed in range(count)]


def committed() -> list[ObservedRun]:
    return list(read_record(EVIDENCE / "rollback_threshold.json", [PROTOCOL]).evidence)


@pytest.mark.parametrize(
    ("highest", "line", "advice", "passed"),
    [
        (
            0.02,
            "LOCKED (rollback.threshold=0.050, measured 4.0%, the least is 5%)",
            "Roll back at rollback.threshold=0.050 (measured 4.0%, the least is 5%).",
            True,
        ),
        (
            0.04,
            "LOCKED (rollback.threshold=0.080, measured 8.0%)",
            "Roll back at rollback.threshold=0.080 (measured 8.0%).",
            True,
        ),
        (
            0.06,
            "STOP (unstable: 12.0% > 10%)",
            "No rollback threshold is locked: calm runs are unstable: 12.0% > 10%.",
            False,
        ),
    ],
)
def test_each_outcome(highest: float, line: str, advice: str, passed: bool) -> None:
    decision = decide(runs(highest))  # the 99th percentile and the deviation above the average are both `highest`
    assert (decision.line, decision.advice, decision.passed) == (line, advice, passed)


def test_the_readings_of_all_runs_count_together() -> None:
    calm, unstable = runs(0.0), [replace(runs(0.30)[0], seed=3)]
    decision = decide([*calm, *unstable])  # 2 of 400 readings: below the 99th percentile, and in the deviation
    assert decision.line == "STOP (unstable: 30.0% > 10%)"
    rows = tables([*calm, *unstable])[0].rows
    assert [row[0] for row in rows] == ["0", "1", "2", "3", "all"]
    assert rows[-1][2:] == ["400", "0", "-1.00%", "-1.00%", "-1.00%", "+0.00%", "+30.00%", "+30.00%", "+30.00%"]


def test_the_steep_descent_of_the_committed_runs_is_left_out_and_told() -> None:
    evidence = committed()
    decision = decide(evidence)
    assert (
        " Left out is the steep descent at the start: seed 0 11 of 45 readings, median -8.40%; seed 1 11 of 46"
        " readings, median -7.31%; seed 2 11 of 45 readings, median -8.72%. The median of the readings that count"
        " is -2.02%."
    ) in decision.reason
    pooled = suggest_threshold([delta for run in evidence for delta in run.deltas[11:]])
    assert f"99th percentile of ppl_delta is {pooled['percentile_99']:.2%}" in decision.reason
    distribution, steepness = tables(evidence)
    assert [row[2:4] for row in distribution.rows] == [["34", "11"], ["35", "11"], ["34", "11"], ["103", "33"]]
    assert list(steepness.rows[0]) == ["0", "-8.40%", "-2.55%", "-2.42%", "-0.93%"]


def test_runs_that_still_fall_decide_nothing() -> None:
    """The committed runs as if they had ended after 540 steps."""
    decision = decide(early := [replace(run, deltas=run.deltas[:22]) for run in committed()])
    assert decision.line == "NOT DECIDED (still falling: seeds 0, 1, 2)"
    assert decision.reason == (
        "The perplexity falls steeply: seed 0 11 of 22 readings, median -8.40%; seed 1 16 of 22 readings, median"
        " -6.04%; seed 2 11 of 22 readings, median -8.72%. Readings left: 11, 6, 11; needed: 20."
    )
    assert decision.advice == (
        "No rollback threshold is locked: still falling: seeds 0, 1, 2. Longer runs decide (train.steps)."
    )
    assert decision.passed is False
    assert tables(early)[0].rows[0][-1] == "-"
    everything = [replace(run, deltas=[-0.2] * 20) for run in committed()]
    assert decide(everything).line == "NOT DECIDED (still falling: seeds 0, 1, 2)"
    assert tables(everything)[0].rows[0][2:] == ["0", "20", *"-----", "+0.00%", "-"]


@pytest.mark.parametrize(
    ("evidence", "message"),
    [
        (runs(0.0, count=2), "seed=[0, 1]: must be at least 3 different values"),
        ([*runs(0.0), *runs(0.0, count=1)], "seed=[0, 0, 1, 2]: must be another one for each run"),
        (runs(0.0, readings=19), "job 0 readings=19: must be >= 20 after the warm-up"),
    ],
)
def test_too_few_runs_are_refused(evidence: list[ObservedRun], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        decide(evidence)
    assert str(error.value) == message


def observed(folder: Path, jobs: int) -> None:
    for number in range(jobs):
        name = "rollback_threshold.json" if number else "rollback_calibration.json"  # the latter in older runs
        (folder / str(number) / name).write_text(json.dumps({"deltas": runs(0.04)[0].deltas}))


def job(seed: int, **changes: Any) -> Job:
    return Job(merged(BASE, {"seed": seed, "rollback.observe": True, **changes}), launcher="joblib")


def test_a_sweep_becomes_evidence_even_from_jobs_side_by_side(write_sweep: WriteSweep) -> None:
    folder = write_sweep([job(seed) for seed in range(3)], "rollback_threshold")
    observed(folder, 3)
    record = make_record([read_sweep(folder)], PROTOCOL)
    assert record.decision.line == "LOCKED (rollback.threshold=0.080, measured 8.0%)"
    assert [(run.seed, run.steps, len(run.deltas)) for run in record.evidence] == [
        (0, 50, 100),
        (1, 50, 100),
        (2, 50, 100),
    ]


def test_runs_that_roll_back_or_differ_are_refused(write_sweep: WriteSweep) -> None:
    folder = write_sweep([job(seed, **{"rollback.observe": False}) for seed in range(3)], "rollback_threshold")
    with pytest.raises(
        ConfigError, match=r"^rollback.observe=False: must be true: a rollback changes what is measured$"
    ):
        make_record([read_sweep(folder)], PROTOCOL)


def test_runs_that_differ_in_more_than_the_seed_are_refused(write_sweep: WriteSweep) -> None:
    folder = write_sweep([job(0), job(1), job(2, **{"optim.lr": 0.1})], "rollback_threshold")
    with pytest.raises(ConfigError, match=r"^job 2 optim.lr=0.1: must be 0.002, as in job 0$"):
        make_record([read_sweep(folder)], PROTOCOL)


def test_a_run_without_its_distribution_is_refused(write_sweep: WriteSweep) -> None:
    folder = write_sweep([job(seed) for seed in range(3)], "rollback_threshold")
    with pytest.raises(ConfigError, match=r"^SWEEP=.*: must be a sweep whose files can be read \(FileNotFoundError: "):
        make_record([read_sweep(folder)], PROTOCOL)
