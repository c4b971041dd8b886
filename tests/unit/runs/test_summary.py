from __future__ import annotations

import json
import os
from math import inf, nan
from pathlib import Path

import pytest

from atlas.runs.finish import closing_table
from atlas.runs.summary import RunSummary, read_summary


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


def test_a_summary_is_read_back(tmp_path: Path) -> None:
    assert read_summary(tmp_path) is None
    summary = RunSummary(str(tmp_path), status="completed", step=7, overhead={"watch": 0.01}, warnings=["late"])
    summary.write()
    assert read_summary(tmp_path) == summary
    (tmp_path / "summary.json").write_text("{")
    assert read_summary(tmp_path) is None


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
