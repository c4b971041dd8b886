"""A run of which a checkpoint is read that is older than the last step: no word, or how many steps it made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from atlas.config.lock import RunLock
from atlas.runs.start import earlier
from atlas.runs.summary import RunSummary

TOLD = ["reads step {} of a run that made 80 steps: it has no later checkpoint"]


def leave(folder: Path, status: str, step: int, rows: Sequence[int]) -> None:
    if status:
        RunSummary(str(folder), status=status, step=step).write()
    lines = [json.dumps({"step": row, "segment": 0, "tokens": row}) for row in rows]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize(
    ("status", "step", "rows", "read", "told"),
    [
        ("completed", 80, [40, 80], 80, []),
        ("completed", 80, [40, 80], 50, TOLD),
        ("failed", 80, [40], 0, TOLD),
        ("aborted", 60, [40, 80], 60, []),  # an earlier start went further, and was undone
        ("running", 0, [40, 80], 50, TOLD),  # killed between two saves
        ("", 0, [40, 80], 0, TOLD),
        ("running", 0, [], 0, []),
        ("", 0, [], 7, []),
    ],
)
def test_the_steps_that_are_missing_are_told(
    status: str, step: int, rows: Sequence[int], read: int, told: Sequence[str], tmp_path: Path
) -> None:
    leave(tmp_path, status, step, rows)
    assert earlier(tmp_path, read) == [line.format(read) for line in told]


@pytest.mark.parametrize(("read", "told"), [(50, []), (0, TOLD)])
def test_of_a_run_that_goes_on_only_an_untrained_model_is_told(read: int, told: Sequence[str], tmp_path: Path) -> None:
    leave(tmp_path, "running", 0, [40, 80])
    (tmp_path / "checkpoints").mkdir()
    lock = RunLock(tmp_path / "checkpoints")
    try:
        assert earlier(tmp_path, read) == [line.format(read) for line in told]
    finally:
        lock.release()
