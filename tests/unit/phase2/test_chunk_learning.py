"""What the sets learn in equal time: from sweep folders to the table beside the decision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atlas.config import ConfigError
from experiments.phase2.chunk_learning import EXPERIMENT
from experiments.phase2.chunk_runs import SETS
from experiments.phase2.decide import decide_sweeps
from tests.unit.phase2.test_evidence import BASE, Job, WriteSweep, chunk_jobs, merged, write_sweep

__all__ = ["write_sweep"]
READ = range(50, 701, 50)  # steps


def learning_jobs(*seeds: int, **changes: Any) -> list[Job]:
    """Every set over the seeds, 700 steps: loss 3 - step / 1000 + seed / 10, recall step / 1000."""
    jobs = []
    for seed in seeds:
        for sizes in SETS.values():
            own = {"chunk_size.local": list(sizes), "seed": seed, "train.steps": 700}
            job = Job(merged(BASE, own | changes), launcher="joblib")
            job.speeds, job.measurements = (
                (100.0,) * 700,
                [(step, 3 - step / 1000 + seed / 10, step / 1000) for step in READ],
            )
            jobs.append(job)
    return jobs


def test_loss_and_recall_are_read_at_equal_time_and_shown_with_their_spread(write_sweep: WriteSweep) -> None:
    timed = chunk_jobs()
    for job in timed:
        if job.settings["chunk_size"]["local"] == [8, 32, 64]:
            job.speeds = (110.0,) * 50  # Set C takes 660 steps while the others take 600
    learning = write_sweep(learning_jobs(0, 1, 2), EXPERIMENT, "learning")
    lock = write_sweep(timed, "chunk_size_lock")
    (folder,) = (records := decide_sweeps([learning, lock]))
    assert folder == lock  # beside the sweep that the decision cannot do without
    text = (lock / "decision.md").read_text(encoding="utf-8")
    assert "### Loss and recall after 24,576 seconds of training" in text  # 600 steps of 4096 tokens at 100 tokens/s
    for row in (
        "| Set A: {8,16,32,64} | 3 | 600 | 2.500 (2.400 to 2.600) | 60.0% (60.0% to 60.0%) |",
        "| Set C: {8,32,64} | 3 | 650 | 2.450 (2.350 to 2.550) | 65.0% (65.0% to 65.0%) |",
    ):
        assert row in text
    assert text.count(" runs on cpu (a processor, 1 threads)") == 2
    assert records[lock].decision.headline.startswith("best Set C 1.10x")
    assert (
        "Validation loss (nats per byte) and keyed recall after 24,576 seconds of training: Set A 2.500 and 60.0%;"
        " Set B 2.500 and 60.0%; Set C 2.450 and 65.0%."
    ) in records[lock].decision.advice


def test_losses_are_per_byte_whatever_the_tokens_are(write_sweep: WriteSweep) -> None:
    learning = learning_jobs(0, 1, 2)
    for job in learning:
        job.bytes_per_token = 4.0
    sweeps = [write_sweep(chunk_jobs(), "chunk_size_lock"), write_sweep(learning, EXPERIMENT, "learning")]
    advice = decide_sweeps(sweeps)[sweeps[0]].decision.advice
    assert "Validation loss (nats per byte) and keyed recall after 24,576 seconds of training: Set A 0.625" in advice


def test_a_run_that_ends_before_the_time_is_up_says_so(write_sweep: WriteSweep) -> None:
    timed = chunk_jobs()
    for job in timed:
        if job.settings["chunk_size"]["local"] == [8, 32, 64]:
            job.speeds = (130.0,) * 50  # 780 steps of Set C, which has 700
    lock, learning = write_sweep(timed, "chunk_size_lock"), write_sweep(learning_jobs(0, 1, 2), EXPERIMENT, "learning")
    decide_sweeps([lock, learning])
    assert "| Set C: {8,32,64} | 3 | 700 (the end) | 2.400 (" in (lock / "decision.md").read_text(encoding="utf-8")


def test_it_does_not_decide_alone(write_sweep: WriteSweep) -> None:
    learning = write_sweep(learning_jobs(0, 1, 2), EXPERIMENT, "learning")
    with pytest.raises(ConfigError) as error:
        decide_sweeps([learning])
    assert str(error.value) == f"SWEEP={learning}: must be beside a sweep of experiment=chunk_size_lock"


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        (learning_jobs(0, 1), r"^seed=\[0, 1\]: must be at least 3 different ones of Set A in "),
        (learning_jobs(0, 1, 2, **{"model.width": 64}), r"^.*learning model.width=64: must be None, as in .*sweep$"),
        (learning_jobs(0, 1, 2, **{"train.sequence": 256}), "^.*learning train.sequence=256: must be 512, as in "),
        ([Job(merged(BASE, {"chunk_size.local": [16]}))], r"^job 0 chunk_size.local=\[16\]: must be a set$"),
        ([Job(merged(BASE, {"chunk_size.local": [8, 32, 64]}))], "^job 0 steps=50: must be >= 600 in "),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(jobs: list[Job], message: str, write_sweep: WriteSweep) -> None:
    learning, lock = write_sweep(jobs, EXPERIMENT, "learning"), write_sweep(chunk_jobs(), "chunk_size_lock")
    with pytest.raises(ConfigError, match=message):
        decide_sweeps([lock, learning])


def test_two_sweeps_of_one_experiment_are_refused(write_sweep: WriteSweep) -> None:
    folders: list[Path] = [write_sweep(chunk_jobs(), "chunk_size_lock", name) for name in ("one", "two")]
    with pytest.raises(ConfigError, match=r"^SWEEP=chunk_size_lock chunk_size_lock: must be at most one sweep of "):
        decide_sweeps(folders)
