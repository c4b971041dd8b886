"""Sweeps whose jobs run beside each other: joblib, and submitit on this machine."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.integration.sweep_commands import (
    REFUSED,
    SIX,
    command,
    contents,
    finished,
    process,
    statuses,
    summary,
    table,
    wait_for,
)


@pytest.fixture
def no_threads_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.slow
@pytest.mark.usefixtures("no_threads_of_ours")
def test_joblib_runs_jobs_beside_each_other_and_resumes(small: list[str], tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    arguments = [*small, *SIX, "device.threads=0", "logger=wandb", "logger.mode=offline"]
    given = [text for text in arguments if text != "logger=none"]
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={sweep}"]
    ended = finished(process("-m", *given, *launcher))
    assert (ended.status, statuses(sweep, 6)) == (1, [*["completed"] * 5, "failed"])
    assert ended.err[0] == "atlas: jobs run at the same time: their timings are no evidence"
    assert ended.err[-1] == f"atlas: 5 of 6 jobs completed; see {sweep}"
    assert [row[2] for row in table(ended)] == [*["completed"] * 5, "failed"]
    assert REFUSED in (sweep / "report" / "report.md").read_text(encoding="utf-8")
    assert {summary(sweep / str(number))["launcher"] for number in range(6)} == {"joblib"}
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    devices = [summary(sweep / str(number))["device"] for number in range(5)]
    assert {device.split(", ")[1] for device in devices} == {f"{threads} threads"}
    identities = {(sweep / str(number) / "wandb_id").read_text(encoding="utf-8") for number in range(5)}
    assert len(identities) == 5
    before = {number: contents(sweep / str(number)) for number in range(5)}
    resumed = command("-m", f"sweep.resume={sweep}", "hydra/launcher=basic")
    assert (resumed.status, resumed.err[0]) == (1, "atlas: 5 of 6 jobs are complete, 1 are left")
    assert {number: contents(sweep / str(number)) for number in range(5)} == before


@pytest.mark.slow
def test_joblib_stops_in_good_order(small: list[str], tmp_path: Path) -> None:
    """By Ctrl-C in a terminal, which reaches every process of the sweep, and by SIGTERM, which reaches the first."""
    for number, stop in ((signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)):
        sweep = tmp_path / number.name
        launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={sweep}"]
        running = process("-m", *small, *launcher, "train.steps=100000", "telemetry.every=1", "seed=0,1,2,3")
        for job in ("0", "1"):
            wait_for(sweep / job / "metrics.jsonl")
        stop(running.pid, number)
        ended = finished(running)
        assert (ended.status, statuses(sweep, 4)) == (130, ["aborted", "aborted", None, None])
        assert "atlas: 2 of the jobs not started: the sweep was interrupted" in ended.err
        assert (sweep / "report" / "report.md").is_file()


@pytest.mark.slow
def test_joblib_goes_on_after_a_worker_was_killed(small: list[str], tmp_path: Path) -> None:
    """joblib gives up the job beside the one that was killed as well; those after them are run."""
    sweep = tmp_path / "sweep"
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={sweep}"]
    running = process("-m", *small, *launcher, "train.steps=100000,100001,4,5")
    for job in ("0", "1"):
        wait_for(sweep / job / "metrics.jsonl")
    worker = int((sweep / ".workers" / "0").read_text(encoding="utf-8").split()[0])
    os.kill(worker, signal.SIGKILL)
    ended = finished(running)
    assert (ended.status, statuses(sweep, 4)) == (1, ["running", "running", "completed", "completed"])
    assert [row[2] for row in table(ended)] == ["killed", "killed", "completed", "completed"]
    assert f"atlas: job 1 killed: its process ended without a word; see {sweep}/1" in ended.err


@pytest.mark.slow
def test_submitit_runs_each_job_in_a_process_of_its_own(small: list[str], tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    arguments = [*small, "checkpoint.keep=1,2", "hydra/launcher=submitit_local", f"hydra.sweep.dir={sweep}"]
    ended = finished(process("-m", *arguments))
    assert (ended.status, statuses(sweep, 2)) == (1, ["failed", "completed"])
    assert {summary(sweep / str(number))["launcher"] for number in (0, 1)} == {"submitit_local"}
    assert [row[2] for row in table(ended)] == ["failed", "completed"]
