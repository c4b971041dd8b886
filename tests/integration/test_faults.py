"""Injected faults and real ones of the disk: each is noticed, told and survived."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import atlas
from atlas.config import ConfigError

STEPS = 160
FAULT_AT = 101
FAULTS = {
    "bad_batch": "perplexity",
    "lr_burst": "perplexity",
    "weights": "perplexity",
    "nan_loss": "non_finite",
    "nan_gradient": "non_finite",
    "nan_memory": "non_finite",
}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "trigger"), FAULTS.items())
def test_every_fault_is_detected_rolled_back_and_overcome(
    kind: str, trigger: str, tiny: Any, left: Any, tmp_path: Path
) -> None:
    config = tiny(
        f"debug.inject={kind}@{FAULT_AT}",
        f"train.steps={STEPS}",
        "telemetry.every=1",
        "rollback.warmup=40",
        "optim.lr=1e-2",
    )
    summary = atlas.train(config, tmp_path / "run")
    run = left(tmp_path / "run")
    assert (summary.status, summary.rollbacks) == ("completed", 1)
    (spike,) = run.events("spike")
    assert spike["trigger"] == trigger
    before = [row for row in run.rows if row["segment"] == 0 and row["step"] < FAULT_AT]
    # Random targets do their damage bit by bit: it has to show first.
    watch = config.rollback
    allowed = 20 if kind == "bad_batch" else watch.watch_every + (watch.patience - 1) * watch.suspect_every
    assert spike["step"] - (FAULT_AT - 1) <= allowed
    (rollback,) = run.events("rollback")
    assert rollback["step"] < FAULT_AT
    assert summary.loss is not None
    assert summary.loss < sum(row["loss"] for row in before[-10:]) / 10
    assert summary.validation_loss is not None
    assert summary.validation_loss < next(row["validation/loss"] for row in before if row["step"] == FAULT_AT - 1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 1.2 MB: the tiny run's first checkpoints fit, then it is full."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("needs the mount command")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def test_a_full_disk_costs_no_older_checkpoint_and_stops_a_run_that_it_cannot_keep(
    tiny: Any, left: Any, same_state: Any, small_disk: Path, tmp_path: Path
) -> None:
    config = tiny("checkpoint.every=3", "checkpoint.keep=9")
    summary = atlas.train(config, small_disk / "run")
    run = left(small_disk / "run")
    assert summary.status == "aborted"
    assert summary.reason.endswith("No space left on device (3 failed in a row)")
    assert [message.partition("; ")[2] for message in summary.warnings] == [
        "2 more failures in a row stop the run",
        "1 more failures in a row stop the run",
    ]
    saved = [event["step"] for event in run.events("checkpoint")]
    assert saved == list(range(0, saved[-1] + 1, 3))
    assert summary.step == saved[-1] + 9
    remount(small_disk, "size=8m")  # the user makes room
    assert atlas.train(replace(config, resume="auto"), run.folder).status == "completed"
    assert [event["message"] for event in run.events("notice")] == [f"resumed from step-{saved[-1]:08d}"]
    whole = left(Path(atlas.train(config, tmp_path / "whole").folder))
    assert same_state(run.state, whole.state)


def test_a_read_only_folder_is_refused_before_any_work(tiny: Any, left: Any, small_disk: Path) -> None:
    config = tiny("train.steps=4")
    atlas.train(config, small_disk / "run")
    before = left(small_disk / "run").rows
    remount(small_disk, "ro")
    for folder in ("run", "new"):
        with pytest.raises(ConfigError, match=r"must be a folder that can be written .Read-only file system"):
            atlas.train(replace(config, resume="auto"), small_disk / folder)
    assert left(small_disk / "run").rows == before


def test_a_disk_without_room_for_one_checkpoint_is_told_at_once(tiny: Any, small_disk: Path) -> None:
    (small_disk / "filling").write_bytes(bytes(1_150_000))
    summary = atlas.train(tiny(), small_disk / "run")
    assert (summary.status, summary.step) == ("aborted", 0)
    assert "step 0 could not be saved in " in summary.reason
