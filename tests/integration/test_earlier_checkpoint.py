"""A run whose later checkpoints could not be saved, or are gone: who reads it is told that the model is untrained."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest

import atlas
from atlas import generate

TOLD = "reads step 0 of a run that made 4 steps: it has no later checkpoint"


def test_an_untrained_model_of_a_trained_run_is_told(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(atlas.train(atlas.compose(small), tmp_path / "run").folder)
    atlas.load(folder)  # a warning is an error here
    for name in ("step-00000002", "step-00000004"):
        shutil.rmtree(folder / "checkpoints" / name)
    with pytest.warns(UserWarning, match=f"^{TOLD}$"):
        atlas.load(folder)
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert generate.main([str(folder), "prompt=a", "tokens=1"]) == 0
    assert capsys.readouterr().err.splitlines() == [f"atlas: {TOLD}"]
    atlas.load(folder / "checkpoints" / "step-00000000")  # asked for by its name
