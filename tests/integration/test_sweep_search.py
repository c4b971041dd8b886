"""`hydra/sweeper=optuna`: jobs chosen by the results of those before them, also after a resume."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from atlas.sweeps import launchers
from tests.integration.sweep_commands import command

SEARCH = ["-m", "hydra/sweeper=optuna", "optim.lr=tag(log,interval(1e-4,1e-2))", "optim.warmup=1,2", "train.steps=2"]


def jobs(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "sweep.json").read_text())["jobs"]
    return found


@pytest.mark.slow
def test_a_search_that_goes_on_chooses_what_one_that_never_stopped_does(small: list[str], tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="the extra optuna is not installed")
    settings = [text for text in small if not text.startswith(("optim.warmup", "train.steps"))]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    ended = command(*SEARCH, *settings, "hydra.sweeper.trials=4", f"hydra.sweep.dir={whole}")
    assert (ended.status, ended.err[-1]) == (0, f"atlas: 4 of 4 jobs completed; see {whole}")
    overrides = [dict(text.split("=", 1) for text in job["overrides"]) for job in jobs(whole)]
    rates = [float(one["optim.lr"]) for one in overrides]
    assert len(set(rates)) == 4
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert {one["optim.warmup"] for one in overrides} <= {"1", "2"}
    assert command(*SEARCH, *settings, "hydra.sweeper.trials=2", f"hydra.sweep.dir={parts}").status == 0
    assert jobs(parts) == jobs(whole)[:2]
    assert command("-m", f"sweep.resume={parts}", "hydra.sweeper.trials=4").status == 0
    assert jobs(parts) == jobs(whole)
    refused = command(*SEARCH, *settings, "optim.lr=interval(2,1)", f"hydra.sweep.dir={tmp_path / 'none'}")
    assert refused.err == ["atlas: optim.lr=interval(2,1): must be interval(LOW,HIGH) with LOW < HIGH"]
    nowhere = [*SEARCH, *settings, f"hydra.sweep.dir={tmp_path / 'none'}"]
    for wrong, told in (
        ("train.steps=-1", "train.steps=-1: must be >= 1"),
        ("optim.warmup=1,-1", "optim.warmup=-1: must be an integer in [0, inf)"),
        (
            "hydra.sweeper.metric=validation_los",
            "hydra.sweeper.metric=validation_los: must be a number of summary.json",
        ),
    ):
        assert command(*nowhere, wrong).err[0].startswith(f"atlas: {told}")
    assert not (tmp_path / "none").exists()


def test_without_optuna_it_is_refused_and_intervals_name_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ended = command("-m", "optim.lr=interval(1e-4,1e-2)", f"hydra.sweep.dir={tmp_path / 'none'}")
    allowed = "values, as a,b or range(a,b), or given with hydra/sweeper=optuna"
    assert (ended.status, ended.err) == (2, [f"atlas: optim.lr=interval(1e-4,1e-2): must be {allowed}"])
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setattr(launchers, "find_spec", lambda name: None)
    ended = command("-m", "hydra/sweeper=optuna", "optim.lr=interval(1e-4,1e-2)")
    how = 'pip install -c constraints.txt -e ".[optuna]" in a checkout'
    assert ended.err == [f"atlas: hydra/sweeper=optuna: must be installed: {how}"]
