"""A run whose newest checkpoint is older than the one it has told of, or that has none left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from atlas.config import ConfigError
from atlas.runs.start import gone, refuse_lost_checkpoints
from atlas.runs.summary import RunSummary
from atlas.training.rollback.journal import JournalEntry

SAVED, BACK = ("checkpoint", 100), ("rollback", 50)


@pytest.mark.parametrize(
    ("events", "step", "told"),
    [
        ([("checkpoint", 50), SAVED], 100, []),
        ([("checkpoint", 50), SAVED, ("end", 130)], 100, []),
        ([SAVED, BACK], 50, []),
        ([SAVED, BACK, ("checkpoint", 75)], 75, []),
        ([SAVED, ("start", 50)], 50, []),  # of resume=RUN/checkpoints/step-00000050
        ([("start", 0), ("checkpoint", 50), SAVED, ("start", 50), ("checkpoint", 75)], 75, []),
        ([], 50, []),
        (
            [("checkpoint", 50), SAVED],
            50,
            ["the checkpoint of step 100, of which events.jsonl tells, is gone: the run goes back to step 50"],
        ),
    ],
)
def test_a_checkpoint_that_is_gone_is_told(
    events: Sequence[tuple[str, int]], step: int, told: list[str], tmp_path: Path
) -> None:
    lines = [json.dumps({"kind": kind, "step": at}) for kind, at in events]
    (tmp_path / "events.jsonl").write_text("".join(f"{line}\n" for line in lines))
    assert gone(tmp_path, step) == told


def test_so_is_one_after_a_rollback_of_which_the_run_has_told(tmp_path: Path) -> None:
    """The checkpoint that a rollback restored is left, those that came after it are gone."""
    events = [{"kind": "rollback", "step": 50, "segment": 1}, {"kind": "checkpoint", "step": 100}]
    (tmp_path / "events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))
    journal = JournalEntry(step=50, segment=1, rollbacks=1, skipped=0, lr_scale=1.0, restarted=False)
    (told,) = gone(tmp_path, 50, journal)
    assert told.startswith("the checkpoint of step 100, of which events.jsonl tells, is gone")
    (told,) = gone(tmp_path, 50, replace(journal, segment=2))
    assert told.startswith("goes on after the rollback to step 50")


@pytest.mark.parametrize(("told", "status"), [("", "running"), ("checkpoint", "running"), ("", "completed")])
def test_only_a_run_without_results_starts_anew(told: str, status: str, tmp_path: Path) -> None:
    RunSummary(str(tmp_path), status=status).write()
    (tmp_path / "events.jsonl").write_text(f'{{"kind": "{told}", "step": 0}}\n')
    if status == "completed":
        with pytest.raises(ConfigError, match=r"holds none, but the run is complete$"):
            refuse_lost_checkpoints(tmp_path / "checkpoints")
    else:
        refuse_lost_checkpoints(tmp_path / "checkpoints")
