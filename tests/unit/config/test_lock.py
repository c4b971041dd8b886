"""Whether a process holds the lock of a folder, and whether the one that wrote it is gone."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from atlas.config.lock import LockedError, RunLock, is_abandoned, is_held
from atlas.runs.evaluation_record import read_evaluations, record_evaluation
from atlas.runs.probe_record import read_probings, record_probing
from atlas.runs.summary import RunSummary, read_summary
from atlas.telemetry.run_files import RunFiles


def locked_by_another(folder: Path) -> int:
    """A process that holds the lock until it is killed."""
    process = os.fork()
    if process == 0:
        lock = RunLock(folder)
        (folder / "locked").write_text(str(lock.holds))
        time.sleep(60)
        os._exit(0)
    while not (folder / "locked").exists():
        time.sleep(0.001)
    return process


def test_a_killed_run_is_called_killed_and_one_that_goes_on_running(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    RunSummary(str(tmp_path)).write()
    statuses = [RunFiles(tmp_path).status]
    process = locked_by_another(folder)
    statuses.append(RunFiles(tmp_path).status)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    statuses.append(RunFiles(tmp_path).status)
    assert statuses == ["running", "running", "killed"]  # without a lock nothing is known
    summary = read_summary(tmp_path)
    assert summary is not None
    assert summary.status == "killed"
    summary.status = "completed"
    summary.write()
    assert RunFiles(tmp_path).status == "completed"


@pytest.mark.parametrize(("text", "abandoned"), [("process 1 on elsewhere", False), ("", False)])
def test_a_process_of_another_machine_may_live(tmp_path: Path, text: str, abandoned: bool) -> None:
    (tmp_path / ".lock").write_text(text)
    assert is_abandoned(tmp_path) is abandoned


def test_one_that_looks_at_a_lock_is_no_holder_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for another one that looks, nor for a run that starts at that moment."""
    RunLock(tmp_path).release()
    with (tmp_path / ".lock").open("rb") as looked_at:
        fcntl.flock(looked_at, fcntl.LOCK_SH)
        assert not is_held(tmp_path)
        assert is_abandoned(tmp_path)
        monkeypatch.setattr("atlas.config.lock.time.sleep", lambda _: fcntl.flock(looked_at, fcntl.LOCK_UN))
        lock = RunLock(tmp_path)
    assert is_held(tmp_path)
    monkeypatch.undo()
    with pytest.raises(LockedError, match=f"process {os.getpid()} on "):
        RunLock(tmp_path)
    lock.release()
    assert not is_held(tmp_path)


@pytest.mark.parametrize("record", ["evaluation", "probing"])
def test_answers_that_come_at_the_same_time_are_all_kept(record: str, tmp_path: Path) -> None:
    """Of several `evaluate`s, or `niah`s, of one run."""
    path, together = tmp_path / "answers.json", Barrier(8)

    def answer(number: int) -> None:
        together.wait()
        if record == "evaluation":
            record_evaluation(path, {"checkpoint": str(number), "texts": [], "settings": {"bytes": 1}})
        else:
            record_probing(path, {"checkpoint": str(number), "results": []})

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(answer, range(8)))
    found = read_evaluations(path) if record == "evaluation" else read_probings(path)
    assert sorted(one["checkpoint"] for one in found) == list("01234567")
    assert [file.name for file in tmp_path.iterdir()] == ["answers.json"]
