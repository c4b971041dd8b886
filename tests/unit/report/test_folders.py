from __future__ import annotations

from pathlib import Path

import pytest

from atlas.config import ConfigError
from atlas.report.folders import names_of, select_runs


def test_a_sweep_gives_its_jobs_in_their_order(sweep: Path) -> None:
    found = select_runs([sweep])
    assert [run.name for run in found.runs] == ["0", "1", "2", "10"]
    assert (found.sweeps, found.title) == ([sweep], "sweep sweep")


def test_runs_and_sweeps_mix_and_no_run_counts_twice(sweep: Path) -> None:
    found = select_runs([sweep / "1", sweep, sweep / "1"])
    assert [run.name for run in found.runs] == ["1", "0", "2", "10"]
    assert found.title == "4 runs"


def test_names_have_as_many_parents_as_tell_them_apart(tmp_path: Path) -> None:
    assert names_of([tmp_path / "a" / "0", tmp_path / "a" / "1"]) == ["0", "1"]
    assert names_of([tmp_path / "a" / "0", tmp_path / "b" / "0"]) == ["a/0", "b/0"]


def test_folders_without_a_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^DIR=.*/nowhere: must be a folder that exists$"):
        select_runs([tmp_path / "nowhere"])
    with pytest.raises(ConfigError, match=r"must be the folder of a run \(config.yaml, summary.json\) or of a sweep$"):
        select_runs([tmp_path])
    (tmp_path / "multirun.yaml").touch()
    with pytest.raises(ConfigError, match=r"must be a sweep with at least one job; this one has none yet$"):
        select_runs([tmp_path])
    with pytest.raises(ConfigError, match=r"must be at least one folder of a run or a sweep$"):
        select_runs([])
