"""`sweep.seeds=N`: every combination with N seeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.sweep_commands import command, statuses


@pytest.mark.slow
def test_every_combination_runs_with_every_seed(small: list[str], tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    arguments = ["-m", *small, "train.steps=1", "chunk_size.shard=16,32", "sweep.seeds=2", f"hydra.sweep.dir={sweep}"]
    assert command(*arguments).status == 0
    assert statuses(sweep, 4) == ["completed"] * 4
    jobs = json.loads((sweep / "sweep.json").read_text())["jobs"]
    swept = [[text for text in job["overrides"] if text.startswith(("seed=", "chunk_size.shard="))] for job in jobs]
    assert swept == [[f"seed={seed}", f"chunk_size.shard={shard}"] for seed in (0, 1) for shard in (16, 32)]
    report = (sweep / "report" / "report.md").read_text()
    assert "### Means over seeds" in report
    assert "| 2 of 2 |" in report
    assert command("-m", f"sweep.resume={sweep}").status == 0  # nothing is left


def test_seeds_beside_a_seed_are_refused(small: list[str], tmp_path: Path) -> None:
    place = f"hydra.sweep.dir={tmp_path / 'sweep'}"
    ended = command("-m", *small, "seed=4,5", "sweep.seeds=2", place)
    assert (ended.status, ended.err) == (2, ["atlas: sweep.seeds=2: must be left out, or given without seed=4,5"])
    ended = command("-m", *small, "sweep.seeds=0", place)
    assert (ended.status, ended.err) == (2, ["atlas: sweep.seeds=0: must be in [1, 10000]"])
    assert not (tmp_path / "sweep").exists()
    ended = command(*small, "sweep.seeds=2", f"hydra.run.dir={tmp_path / 'run'}")
    assert (ended.status, ended.err) == (
        2,
        ["atlas: sweep.seeds=2: must be given with -m: only a sweep has several jobs"],
    )
    assert not (tmp_path / "run").exists()
