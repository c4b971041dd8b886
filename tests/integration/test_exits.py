"""`sys.exit()` in code of the user's: the run fails with the place of it, and so does the command."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from joblib.externals.loky import get_reusable_executor

from atlas import niah
from tests.integration.conftest import Left
from tests.integration.sweep_commands import command, statuses, summary, table

LEAVES = """
import sys

def metric(model, step):
    if step == 2:
        sys.exit(0)
    return {}

def level(subject):
    sys.exit(0)
"""
TRUST = "trust=[mine_leaves]"


@pytest.fixture
def leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module whose functions leave."""
    path = tmp_path / "mine_leaves.py"
    path.write_text(LEAVES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine_leaves", raising=False)
    return path


@pytest.fixture
def given(small: list[str]) -> list[str]:
    return [*small, "telemetry.every=1", TRUST]


def told(path: Path) -> str:
    return f"SystemExit(0) at {path}:6 in metric: raise an error to end a run"


def test_a_run_fails_with_the_place(
    given: list[str], leaves: Path, tmp_path: Path, left: Callable[[Path], Left]
) -> None:
    folder = tmp_path / "run"
    ended = command(*given, "telemetry.metrics=[mine_leaves.metric]", f"hydra.run.dir={folder}")
    assert ended.status == 1
    log = folder / "train.log"
    assert ended.err[-1] == f"atlas: the run failed: {told(leaves)}; the traceback is in {log}"
    assert (summary(folder)["status"], summary(folder)["reason"]) == ("failed", told(leaves))
    (error, end) = left(folder).events("error", "end")
    assert (error["kind"], error["message"], end["status"], end["reason"]) == (
        "error",
        told(leaves),
        "failed",
        told(leaves),
    )
    assert "mine_leaves.py" in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_the_other_jobs_of_a_sweep_are_run(launcher: str, given: list[str], leaves: Path, tmp_path: Path) -> None:
    get_reusable_executor().shutdown()  # workers of an earlier test do not find the module
    sweep = tmp_path / "sweep"
    metrics = "telemetry.metrics=[mine_leaves.metric],[]"
    ended = command("-m", *given, metrics, f"hydra/launcher={launcher}", f"hydra.sweep.dir={sweep}")
    assert (ended.status, statuses(sweep, 2)) == (1, ["failed", "completed"])
    assert [row[2] for row in table(ended)] == ["failed", "completed"]
    assert any(line.startswith(f"atlas: job 0 failed: {told(leaves)}") for line in ended.err)
    assert (sweep / "report" / "index.html").exists()


def test_a_command_that_reads_a_run_fails_too(
    untrained: Path, leaves: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert niah.main([str(untrained), "niah.levels=[mine_leaves.level]", "trust=mine_leaves"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == f"atlas: SystemExit(0) at {leaves}:10 in level: raise an error to end a run"
