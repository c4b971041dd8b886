from __future__ import annotations

import json
from math import inf, nan
from pathlib import Path

from atlas.runs.summary import RunSummary, read_summary


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    summary = RunSummary(str(tmp_path), loss=nan, perplexity=inf, niah={"recall": {"accuracy": [1.0, nan]}})
    summary.write()
    written = json.loads((tmp_path / "summary.json").read_text())
    assert (written["loss"], written["perplexity"]) == (None, None)
    assert written["niah"] == {"recall": {"accuracy": [1.0, None]}}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_a_summary_is_read_back(tmp_path: Path) -> None:
    assert read_summary(tmp_path) is None
    summary = RunSummary(str(tmp_path), status="completed", step=7, overhead={"watch": 0.01}, warnings=["late"])
    summary.write()
    assert read_summary(tmp_path) == summary
    (tmp_path / "summary.json").write_text("{")
    assert read_summary(tmp_path) is None
