from __future__ import annotations

import json
import os
from math import inf, nan
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from atlas.config.lock import RunLock
from atlas.parallel.ranks import RankError
from atlas.runs.closing_table import closing_table
from atlas.runs.folder import record_failure
from atlas.runs.summary import RunSummary, read_summary
from atlas.telemetry.events import make_event
from atlas.telemetry.jsonl import read_jsonl
from tests.integration.sweep_commands import contents


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    summary = RunSummary(str(tmp_path), loss=nan, perplexity=inf, niah={"recall": {"accuracy": [1.0, nan]}})
    summary.write()
    written = json.loads((tmp_path / "summary.json").read_text())
    assert (written["loss"], written["perplexity"]) == (None, None)
    assert written["niah"] == {"recall": {"accuracy": [1.0, None]}}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_the_closing_table_names_the_levels_that_were_left_out() -> None:
    """`niah=quick` measures two levels of three: a missing line would read as a passed one."""
    verdicts = {level: {"verdict": "PASSED: cosine 0.90"} for level in ("accumulator", "memory")}
    rows = closing_table(RunSummary("run", niah=verdicts))
    assert [row for row in rows if row[0].startswith("niah")] == [
        ("niah accumulator", "PASSED: cosine 0.90"),
        ("niah memory", "PASSED: cosine 0.90"),
        ("niah recall", "NOT MEASURED: left out by niah.levels"),
    ]
    assert not [row for row in closing_table(RunSummary("run")) if row[0].startswith("niah")]


def test_the_closing_table_names_the_chunks_of_stage_2() -> None:
    chunks = {"first": [32, 8], "last": [5, 1]}
    rows = dict(closing_table(RunSummary("run", step=2700, local_chunks=chunks)))
    assert rows["local chunks"] == "[32, 8] at step 1, [5, 1] at step 2700"
    assert "local chunks" not in dict(closing_table(RunSummary("run")))


def test_a_summary_is_read_back(tmp_path: Path) -> None:
    assert read_summary(tmp_path) is None
    summary = RunSummary(str(tmp_path), status="completed", step=7, overhead={"watch": 0.01}, warnings=["late"])
    summary.write()
    assert read_summary(tmp_path) == summary
    (tmp_path / "summary.json").write_text("{")
    assert read_summary(tmp_path) is None


def test_a_failure_that_the_run_could_not_write_has_the_last_step_of_its_files(tmp_path: Path) -> None:
    """Rank 0 was killed after a rollback to step 4, when row 5 was written."""
    RunSummary(str(tmp_path), steps=9).write()
    rows = [(0, 4, 400), (0, 8, 800), (1, 5, 500)]
    metrics = [{"step": step, "segment": segment, "tokens": tokens} for segment, step, tokens in rows]
    happened = [("checkpoint", 8, {}), ("rollback", 4, {"segment": 1}), ("warning", 7, {})]
    events = [make_event(kind, step, more) for kind, step, more in happened]
    for name, lines in (("metrics.jsonl", metrics), ("events.jsonl", events)):
        (tmp_path / name).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for _ in range(2):  # one end, however often it is recorded
        record_failure(tmp_path, RankError("rank 0 was killed by SIGKILL"), OmegaConf.create())
    found = read_summary(tmp_path)
    assert found is not None
    assert (found.status, found.step, found.segment, found.tokens) == ("failed", 5, 1, 500)
    *_, end = read_jsonl(tmp_path / "events.jsonl")
    assert len(read_jsonl(tmp_path / "events.jsonl")) == 4
    told = [end[key] for key in ("kind", "step", "status", "reason")]
    assert told == ["end", 5, "failed", "rank 0 was killed by SIGKILL"]


@pytest.mark.parametrize(
    ("status", "why"), [("running", "another process writes it"), ("completed", "the run in it is complete")]
)
def test_a_failure_is_not_recorded_over_another_run(status: str, why: str, tmp_path: Path) -> None:
    RunSummary(str(tmp_path), status=status, step=7).write()
    (tmp_path / "checkpoints").mkdir()
    lock = RunLock(tmp_path / "checkpoints")
    if status == "completed":
        lock.release()
    before = contents(tmp_path)
    told = record_failure(tmp_path, MemoryError("no room"), OmegaConf.create())
    lock.release()
    assert (told, contents(tmp_path)) == (f"{tmp_path} is left as it is: {why}", before)


def test_a_start_from_an_older_checkpoint_undoes_the_position(tmp_path: Path) -> None:
    """`resume=RUN/checkpoints/step-00000010` of a run at step 40 in segment 1, killed before its next checkpoint."""
    summary = RunSummary(str(tmp_path), step=10, segment=0, tokens=1000)
    happened = [("start", 0, {}), ("checkpoint", 10, {}), ("rollback", 20, {"segment": 1}), ("checkpoint", 40, {})]
    events = [make_event(kind, step, more) for kind, step, more in [*happened, ("start", 10, {})]]
    (tmp_path / "events.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in events))
    row = {"step": 15, "segment": 0, "tokens": 1500}
    (tmp_path / "metrics.jsonl").write_text(f"{json.dumps(row)}\n")
    summary.take_last_step()
    assert (summary.step, summary.segment, summary.tokens) == (15, 0, 1500)


def test_a_summary_belongs_to_the_folder_in_which_it_lies(tmp_path: Path) -> None:
    """A run that was moved is written where it is now."""
    before, now = tmp_path / "before", tmp_path / "now"
    before.mkdir()
    RunSummary(str(before), step=3).write()
    before.rename(now)
    found = read_summary(now)
    assert found == RunSummary(str(now), step=3)


@pytest.mark.parametrize(
    "content",
    [
        {"validation_loss": "low"},
        {"niah": [1]},
        {"step": True},
        {"step": 1.5},
        {"reason": None},
        {"history": {}},
        {"unknown": 1},
        [1],
    ],
)
def test_values_of_other_types_are_no_summary(tmp_path: Path, content: object) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(content), encoding="utf-8")
    assert read_summary(tmp_path) is None


def test_what_cannot_be_read_in_full_is_no_summary(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("[" * 100_000, encoding="utf-8")
    assert read_summary(tmp_path) is None
    (tmp_path / "summary.json").unlink()
    os.mkfifo(tmp_path / "summary.json")
    assert read_summary(tmp_path) is None
