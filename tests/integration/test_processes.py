"""`device.processes=N`: the command starts the ranks itself."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

import atlas
from tests.integration.sweep_commands import command, finished, process
from tests.integration.test_ranks import troubled

pytestmark = pytest.mark.slow


def test_ranks_end_where_one_is_halted_and_where_the_command_that_started_them_is_killed(
    overrides: list[str], tmp_path: Path
) -> None:
    """Both at the same time, in step 5."""
    folders = [tmp_path / "halted", tmp_path / "killed"]
    troubles = [[*troubled("SIGSTOP@5"), "parallel.step_timeout_s=3"], troubled("^SIGKILL@5")]
    running = [
        process(*overrides, *trouble, "device.processes=2", f"hydra.run.dir={folder}")
        for trouble, folder in zip(troubles, folders, strict=True)
    ]
    halted, killed = map(finished, running)  # the output of the command ends with its ranks
    late = "rank 1 did not reach step 5 within parallel.step_timeout_s=3"
    assert halted.status == 1
    assert halted.err[-1] == f"atlas: the run failed: {late}; the traceback is in {tmp_path / 'halted' / 'train.log'}"
    assert killed.status == -signal.SIGKILL
    ends = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    gone = "stopped by the end of the process that started the ranks"
    assert [(end["status"], end["reason"]) for end in ends] == [("failed", late), ("aborted", gone)]


def test_each_job_of_a_sweep_has_two_ranks_and_a_signal_stops_both(
    overrides: list[str], tiny: Any, left: Any, same_state: Any, tmp_path: Path
) -> None:
    """Bitwise one process with two micro-batches. Job 1 is stopped in its step 3; resumed, rank 1 dies in step 4.

    Then as two tasks of a submitit job.
    """
    shape = ["train.steps=5", "train.batch_size=2", "calibration=off", "checkpoint.every=1"]
    target, _, on, trust = troubled("")
    jobs = [target, "+data.trouble='none@9','^SIGTERM@3 SIGKILL@4'", on, trust]
    sweep = tmp_path / "sweep"
    ended = command("-m", *overrides, *shape, *jobs, "device.processes=2", f"hydra.sweep.dir={sweep}")
    assert ended.status == 130
    assert [line for line in ended.err if line.startswith("atlas: job 1 ")] == [
        f"atlas: job 1 aborted: stopped by SIGTERM; see {sweep / '1'}"
    ]
    assert json.loads((sweep / "1" / "summary.json").read_text())["processes"] == 2
    assert left(sweep / "1").events("checkpoint")[-1]["step"] == 3
    resumed = command("-m", f"sweep.resume={sweep}", trust)
    assert resumed.status == 1
    gone = "rank 1 is gone at step 4 (its log: train.rank1.log)"
    assert f"atlas: job 1 failed: {gone}; see {sweep / '1'}" in resumed.err
    tasks = [
        "hydra/launcher=submitit_local",
        "hydra.launcher.tasks_per_node=2",
        f"hydra.sweep.dir={tmp_path / 'tasks'}",
    ]
    assert command("-m", *overrides, *shape, "seed=0", *tasks).status == 0
    assert json.loads((tmp_path / "tasks" / "0" / "summary.json").read_text())["processes"] == 2
    alone = atlas.train(tiny(*shape, "train.accumulate=2"), tmp_path / "alone")
    for job in (sweep / "0", tmp_path / "tasks" / "0"):
        assert same_state(left(job).state, left(Path(alone.folder)).state)
