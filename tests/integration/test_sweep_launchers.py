"""Sweeps whose jobs run beside each other: joblib, and submitit on this machine."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from atlas.config.lock import RunLock
from atlas.sweeps.workers import worker_processes
from atlas.telemetry.jsonl import read_jsonl
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
        by = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        assert [summary(sweep / job)["reason"] for job in ("0", "1")] == [f"stopped by {by}"] * 2
        assert "atlas: 2 of the jobs not started: the sweep was interrupted" in ended.err
        assert (sweep / "report" / "report.md").is_file()


def parent_of(process: int) -> int:
    found = re.search(r"^PPid:\s*(\d+)$", Path(f"/proc/{process}/status").read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None
    return int(found[1])


def gone(processes: Iterable[int]) -> bool:
    """Within 20 seconds; a process that nobody has waited for yet is gone as well."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if not any(alive(process) for process in processes):
            return True
        time.sleep(0.1)
    return False


def alive(process: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{process}/stat").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return False


def started(sweep: Path, *jobs: str) -> None:
    for job in jobs:
        wait_for(sweep / job / "metrics.jsonl")


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_its_own_job_only(small: list[str], tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={sweep}"]
    running = process("-m", *small, *launcher, "train.steps=100000,60,4,5")
    started(sweep, "0", "1")
    (victim,) = [worker for worker in worker_processes(sweep) if writes(worker, sweep / "0")]
    os.kill(victim, signal.SIGKILL)
    ended = finished(running)
    assert (ended.status, statuses(sweep, 4)) == (1, ["running", *["completed"] * 3])
    assert [row[2] for row in table(ended)] == ["killed", *["completed"] * 3]
    assert "atlas: job 0 was killed (signal 9)" in ended.err
    assert f"atlas: job 0 killed: its process ended without an error message; see {sweep}/0" in ended.err
    notices = [event.get("message") for event in read_jsonl(sweep / "1" / "events.jsonl")]
    assert not any("resumed" in str(message) for message in notices)  # it was never stopped


def writes(process: int, folder: Path) -> bool:
    files = Path(f"/proc/{process}/fd").iterdir()
    return any(file.resolve() == folder / "metrics.jsonl" for file in files)


@pytest.mark.slow
def test_a_killed_process_of_joblib_costs_no_job(small: list[str], tmp_path: Path) -> None:
    """It takes the others of joblib along; their jobs go on from their checkpoints."""
    sweep = tmp_path / "sweep"
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={sweep}"]
    running = process("-m", *small, *launcher, "train.steps=80,81,4")
    started(sweep, "0", "1")
    os.kill(parent_of(worker_processes(sweep)[0]), signal.SIGKILL)
    ended = finished(running)
    assert (ended.status, statuses(sweep, 3)) == (0, ["completed"] * 3)
    assert [row["step"] for row in read_jsonl(sweep / "0" / "metrics.jsonl")] == list(range(1, 81))


@pytest.mark.slow
def test_workers_end_with_a_sweep_that_is_killed_and_it_is_resumed(small: list[str], tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={sweep}"]
    running = process("-m", *small, *launcher, "train.steps=80,81,4")
    started(sweep, "0", "1")
    found = worker_processes(sweep)
    family = [*found, *map(parent_of, found)]
    os.kill(running.pid, signal.SIGKILL)
    resumed = finished(process("-m", f"sweep.resume={sweep}"))  # at once
    finished(running)
    assert gone(family)
    assert (resumed.status, statuses(sweep, 3)) == (0, ["completed"] * 3)
    assert resumed.err[0] == "atlas: 0 of 3 jobs are complete, 3 are left"
    assert [row[2] for row in table(resumed)] == ["completed"] * 3
    for job, steps in (("0", 80), ("1", 81)):
        assert [row["step"] for row in read_jsonl(sweep / job / "metrics.jsonl")] == list(range(1, steps + 1))


@pytest.mark.slow
def test_a_job_that_another_process_runs_is_left_alone(small: list[str], tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    stopped = command("-m", *small, "init_from=none,null", f"hydra.sweep.dir={sweep}")
    assert statuses(sweep, 2) == ["failed", "completed"]
    assert stopped.status == 1
    (sweep / "0" / "checkpoints").mkdir(exist_ok=True)
    lock = RunLock(sweep / "0" / "checkpoints")
    before = contents(sweep / "0")
    resumed = command("-m", f"sweep.resume={sweep}")
    lock.release()
    assert contents(sweep / "0") == before
    assert (resumed.status, [row[2] for row in table(resumed)]) == (1, ["running", "completed"])
    assert f"atlas: job 0 running: another process runs it; see {sweep}/0" in resumed.err


@pytest.mark.slow
def test_a_sweep_whose_workers_go_on_is_not_resumed(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atlas.sweeps.sweeper.ENDING_SECONDS", 0.5)
    sweep = tmp_path / "sweep"
    command("-m", *small, "train.steps=1,2", f"hydra.sweep.dir={sweep}")
    (sweep / ".workers").mkdir()
    worker = RunLock(sweep / ".workers", "0")
    resumed = command("-m", f"sweep.resume={sweep}")
    worker.release()
    allowed = f"a sweep of which no job is running; process {os.getpid()} on {socket.gethostname()} runs one"
    assert (resumed.status, resumed.err) == (2, [f"atlas: sweep.resume={sweep}: must be {allowed}"])


@pytest.mark.slow
def test_submitit_runs_each_job_in_a_process_of_its_own(small: list[str], tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    arguments = [*small, "init_from=none,null", "hydra/launcher=submitit_local", f"hydra.sweep.dir={sweep}"]
    ended = finished(process("-m", *arguments))
    assert (ended.status, statuses(sweep, 2)) == (1, ["failed", "completed"])
    assert {summary(sweep / str(number))["launcher"] for number in (0, 1)} == {"submitit_local"}
    assert [row[2] for row in table(ended)] == ["failed", "completed"]
