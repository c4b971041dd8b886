"""Injected faults and real ones of the disk: each is noticed, told and survived."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import atlas
from atlas.config import ConfigError
from atlas.runs.summary import read_summary
from atlas.telemetry.sinks import Sink

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


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody makes room on these disks."""
    monkeypatch.setattr("atlas.telemetry.room.ROOM_SECONDS", 0.1)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


@pytest.mark.slow
def test_a_full_disk_costs_no_older_checkpoint_and_stops_a_run_that_it_cannot_keep(
    tiny: Any, left: Any, same_state: Any, small_disk: Path, tmp_path: Path
) -> None:
    config = tiny("checkpoint.every=3", "checkpoint.keep=9")
    summary = atlas.train(config, small_disk / "run")
    run = left(small_disk / "run")
    assert summary.status == "aborted"
    assert summary.reason.endswith("No space left on device (3 failed in a row)")
    assert [message.partition("; ")[2] for message in summary.warnings] == [
        "2 more failures in a row stop the run, and so does one at its last step",
        "1 more failure stops the run, and so does one at its last step",
    ]
    saved = [event["step"] for event in run.events("checkpoint")]
    assert saved == list(range(0, saved[-1] + 1, 3))
    assert summary.step == saved[-1] + 9
    remount(small_disk, "size=8m")  # the user makes room
    assert atlas.train(replace(config, resume="auto"), run.folder).status == "completed"
    assert [event["message"] for event in run.events("notice")] == [f"resumed from step-{saved[-1]:08d}"]
    whole = left(Path(atlas.train(config, tmp_path / "whole").folder))
    assert same_state(run.state, whole.state)


class FullFrom(Sink):
    """A logger that fills the disk at a step, for some seconds or for good."""

    def __init__(self, disk: Path, at: int, seconds: float | None) -> None:
        self.filling, self.at, self.seconds = disk / "filling", at, seconds

    def progress(self, step: int, values: Mapping[str, Any]) -> None:
        if step == self.at and not self.filling.exists():
            with suppress(OSError), self.filling.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            if self.seconds is not None:
                threading.Timer(self.seconds, self.filling.unlink).start()


@pytest.fixture
def filling(monkeypatch: pytest.MonkeyPatch, small_disk: Path) -> Callable[[int, float | None], dict[str, Any]]:
    module = ModuleType("filling")
    vars(module)["logger"] = lambda *, at, seconds: FullFrom(small_disk, at, seconds)
    monkeypatch.setitem(sys.modules, "filling", module)
    return lambda at, seconds: {"_target_": "filling.logger", "at": at, "seconds": seconds}


QUIET = ["checkpoint.every=1000", "telemetry.every=1", "train.steps=40"]  # rows are what is written meanwhile


@pytest.mark.slow
def test_room_that_comes_back_costs_neither_a_row_nor_the_run(
    tiny: Any, left: Any, small_disk: Path, filling: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atlas.telemetry.room.ROOM_SECONDS", 6.0)
    summary = atlas.train(replace(tiny(*QUIET), logger=filling(20, 0.5)), small_disk / "run")
    run = left(small_disk / "run")
    assert [row["step"] for row in run.rows] == list(range(1, 41))
    written = read_summary(run.folder)
    assert written is not None
    assert (summary.status, written.status, written.step) == ("completed", "completed", 40)
    told = capsys.readouterr()
    assert "metrics.jsonl cannot be written (No space left on device): its rows wait in memory" in told.out
    assert "Traceback" not in told.out + told.err


def test_a_disk_that_stays_full_ends_in_one_line_and_no_traceback(
    tiny: Any, small_disk: Path, filling: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = atlas.train(replace(tiny(*QUIET), logger=filling(20, None)), small_disk / "run")
    assert summary.status == "aborted"
    assert "step 40 could not be saved in" in summary.reason
    told = capsys.readouterr()
    assert "  status           aborted\n" in told.out
    lines = told.err.splitlines()
    assert len(lines) == 2
    assert re.fullmatch(
        r"warning: .*/metrics\.jsonl cannot be written: No space left on device; \d\d rows are lost; "
        "this run is aborted",
        lines[0],
    )
    assert lines[1] == f"warning: {small_disk}/run: No space left on device; this run is aborted"


@pytest.mark.slow
def test_rows_without_room_in_memory_end_the_run_with_a_last_save(
    tiny: Any, left: Any, small_disk: Path, filling: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The checkpoints lie on another disk, which has room."""
    monkeypatch.setattr("atlas.telemetry.jsonl.MOST_WAITING_BYTES", 5000)
    run, elsewhere = small_disk / "run", tmp_path / "elsewhere"
    run.mkdir()
    elsewhere.mkdir()
    (run / "checkpoints").symlink_to(elsewhere)
    summary = atlas.train(replace(tiny(*QUIET), logger=filling(20, None)), run)
    assert summary.status == "aborted"
    assert "metrics.jsonl cannot be written: No space left on device; " in summary.reason
    assert sorted(path.name for path in elsewhere.glob("step-*")) == ["step-00000000", f"step-{summary.step:08d}"]
    assert summary.step < 40


class Removing(Sink):
    """A logger that removes the run's folder at a step."""

    def __init__(self, folder: str, at: int) -> None:
        self.folder, self.at = folder, at

    def progress(self, step: int, values: Mapping[str, Any]) -> None:
        if step == self.at:
            shutil.rmtree(self.folder)


@pytest.mark.slow
def test_a_run_folder_that_is_removed_is_written_anew_and_can_be_continued(
    tiny: Any, left: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("removing")
    vars(module)["logger"] = lambda *, folder, at: Removing(folder, at)
    monkeypatch.setitem(sys.modules, "removing", module)
    folder = tmp_path / "run"
    logger = {"_target_": "removing.logger", "folder": str(folder), "at": 12}
    config = replace(tiny("trust=[removing]"), logger=logger)
    assert atlas.train(config, folder).status == "completed"
    run = left(folder)
    assert [row["step"] for row in run.rows][-4:] == [15, 20, 25, 30]
    assert [event["watch"] for event in run.events("watch")] == ["files"]
    assert len(run.events("warning")) == 2
    assert sorted(path.name for path in (folder / "checkpoints").glob("step-*")) == ["step-00000020", "step-00000030"]
    assert atlas.train(replace(tiny("trust=[removing]"), resume="auto"), folder).status == "completed"


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
