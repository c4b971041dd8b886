"""Parts with a mistake in them, in a run: what must hold in every run does not, and the run tells of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import atlas
from atlas.telemetry.run_files import RunFiles

pytestmark = pytest.mark.slow

OPTIM, DATA, METRICS = "optim._target_=experiments.silent.", "data._target_=experiments.silent.", "telemetry.metrics="
CASES = {
    "side_effects,unsaved,rows_again": (
        f"{OPTIM}wrong_state.smoothing_not_saved",
        f"{DATA}wrong_limits.FirstBatches",
        f"{METRICS}[experiments.silent.wrong_metric.quantised_stays]",
        "train.steps=40",
    ),
    "recomputed,mixed_parts": (
        f"{OPTIM}wrong_limits.gradients_overwritten",
        f"{DATA}wrong_limits.TrainedOnAll",
        "data.validation_share=0.4",
        "train.accumulate=4",
        "train.steps=30",
    ),
    "reach": (f"{OPTIM}wrong_limits.positions_ignored", "train.steps=10"),
    "": (
        f"{OPTIM}wrong_state.smoothing_saved",
        f"{DATA}wrong_data.Sound",
        f"{METRICS}[experiments.silent.wrong_metric.quantised]",
        "train.accumulate=4",
        "train.steps=20",
    ),
}


@pytest.mark.parametrize("told", CASES)
def test_what_holds_in_every_sound_run(told: str, tiny: Any, tmp_path: Path) -> None:
    watched = ("side_effects", "unsaved", "rows_again", "recomputed", "head", "reach", "other_text", "mixed_parts")
    summary = atlas.train(
        tiny(*CASES[told], "trust=[experiments.silent]", "train.validation_every=20"), tmp_path / "run"
    )
    assert {one["watch"] for one in summary.watch} & set(watched) == set(filter(None, told.split(",")))


def test_a_text_that_the_files_no_longer_hold_and_a_loss_of_other_logits(tiny: Any, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    for number, found in enumerate((set(), {"other_text", "head"})):
        lines = (f"{'later' if number else 'first'} {(row * 7919 + 37 * number) ** 3} words" for row in range(900))
        file.write_text("\n".join(lines), encoding="utf-8")
        optim = f"{OPTIM}{'wrong_limits.logits_scaled_for_the_loss' if number else 'wrong_optim.sound'}"
        source = f"{DATA}wrong_data.CachedByName", f"data.paths=[{file}]"
        config = tiny(optim, *source, "trust=[experiments.silent]", "train.steps=10")
        summary = atlas.train(config, tmp_path / f"run{number}")
        assert {one["watch"] for one in summary.watch} & {"other_text", "head"} == found


def test_a_step_that_cannot_be_taken_twice_ends_no_run_and_is_told(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_once(*_: object) -> None:
        raise OSError("the port is in use")

    monkeypatch.setattr("atlas.runs.run._model_and_optimizer", only_once)
    summary = atlas.train(tiny("train.steps=20"), tmp_path / "run")
    assert (summary.status, summary.watch) == ("completed", [])
    told = "the step cannot be taken a second time, so unsaved and recomputed say nothing: OSError: the port is in use"
    assert [event["message"] for event in RunFiles(tmp_path / "run").of_kind("notice")].count(told) == 1
