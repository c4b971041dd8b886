"""A run tells what a reset costs, calibrates W_init where it is asked to, and logs norms without changing a bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import atlas
from atlas.checkpoint.manager import CheckpointManager
from atlas.config import RunConfig
from atlas.runs.build import build_data, build_model
from atlas.training.calibration import Calibrator
from atlas.training.step import TrainStep

Tiny = Callable[..., RunConfig]
SHORT = ["train.steps=4", "checkpoint.every=2", "calibration.rows=4"]
CALIBRATED = [*SHORT, "calibration=on", "calibration.tokens=256"]
KINDS = ("weight_norm", "update_norm", "momentum_norm", "write_ratio", "rate", "theta", "forget")


def calibration_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())["calibration"]
    assert found.pop("seconds") >= 0
    return found


def test_a_run_measures_the_reset_shock_of_its_trained_model(tiny: Tiny, left: Any, tmp_path: Path) -> None:
    config = tiny(*SHORT)
    run = atlas.train(config, tmp_path / "run")
    found = calibration_of(tmp_path / "run")
    model, _ = atlas.load(tmp_path / "run")
    step = TrainStep(config.train, torch.device("cpu"), torch.float32)
    expected = Calibrator(config.calibration, build_data(config), step, model, seed=0).measure(model)
    message = expected.pop("message")
    assert found == pytest.approx({"tokens": 0, "attempts": 0, **expected})
    assert run.warnings == []
    (event,) = left(tmp_path / "run").events("reset_shock")
    assert (event["step"], event["message"], event["reset_shock"]) == (4, message, found["reset_shock"])


def test_a_shock_above_the_threshold_is_a_warning(tiny: Tiny, tmp_path: Path) -> None:
    usual = atlas.train(tiny(*SHORT), tmp_path / "usual").calibration["reset_shock"]
    # Whatever the sign of the shock, one of the two thresholds lies below it.
    strict = [*SHORT, "calibration.threshold=1e-9"]
    run = atlas.train(tiny(*strict), tmp_path / "strict")
    told = [message for message in run.warnings if "a reset of the local memories changes the loss" in message]
    assert (len(told), run.calibration["passed"]) == ((1, False) if usual >= 1e-9 else (0, True))


def test_a_calibrated_run_starts_from_the_calibrated_weights(tiny: Tiny, left: Any, tmp_path: Path) -> None:
    config = tiny(*CALIBRATED, "checkpoint.keep=5")
    atlas.train(config, tmp_path / "run")
    payload, _ = CheckpointManager(tmp_path / "run" / "checkpoints", keep=2).load(
        tmp_path / "run" / "checkpoints" / "step-00000000"
    )
    model = build_model(config)
    step = TrainStep(config.train, torch.device("cpu"), torch.float32)
    record = Calibrator(config.calibration, build_data(config), step, model, seed=0).calibrate(model, 64)
    assert all(torch.equal(value, payload["model"][name]) for name, value in model.state_dict().items())
    first, last = left(tmp_path / "run").events("calibration", "reset_shock")
    assert (first["step"], first["tokens"], first["reset_shock"]) == (0, 256, record["reset_shock"])
    assert first["message"].startswith("W_init calibrated on 256 tokens (attempt 1): a reset of the local memories ")
    found = calibration_of(tmp_path / "run")
    assert (found["tokens"], found["attempts"], found["reset_shock_before"]) == (256, 1, record["reset_shock_before"])
    assert found["reset_shock"] == last["reset_shock"] != first["reset_shock"]


@pytest.mark.slow
def test_a_resumed_run_does_not_calibrate_again_and_still_tells(
    tiny: Tiny, left: Any, same_state: Any, interrupting: Any, tmp_path: Path
) -> None:
    atlas.train(tiny(*CALIBRATED), tmp_path / "whole")
    config = tiny(*CALIBRATED)
    config.logger, config.trust = interrupting(at=3), ["interrupting"]
    with pytest.raises(KeyboardInterrupt):
        atlas.train(config, tmp_path / "cut")
    atlas.train(tiny(*CALIBRATED, "resume=auto", "trust=[interrupting]"), tmp_path / "cut")
    assert same_state(left(tmp_path / "cut").state, left(tmp_path / "whole").state)
    assert calibration_of(tmp_path / "cut") == calibration_of(tmp_path / "whole")
    assert len(left(tmp_path / "cut").events("calibration", "reset_shock")) == 2


@pytest.mark.slow
def test_a_shock_that_an_earlier_start_measured_is_not_that_of_a_stopped_run(
    tiny: Tiny, interrupting: Any, tmp_path: Path
) -> None:
    assert atlas.train(tiny(*SHORT), tmp_path / "run").calibration
    longer = tiny(*SHORT, "train.steps=8", "resume=auto")
    longer.logger, longer.trust = interrupting(at=6), ["interrupting"]
    with pytest.raises(KeyboardInterrupt):
        atlas.train(longer, tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["step"], summary["calibration"]) == ("aborted", 6, {})


def test_switched_off_nothing_is_measured(tiny: Tiny, left: Any, tmp_path: Path) -> None:
    run = atlas.train(tiny(*SHORT, "calibration=off"), tmp_path / "run")
    assert (run.calibration, left(tmp_path / "run").events("calibration", "reset_shock")) == ({}, [])


def test_calibration_without_text_is_refused_before_anything_is_written(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(*CALIBRATED)
    config.data = atlas.compose(["data=recall"]).data
    config.train.sequence = 512
    with pytest.raises(
        atlas.ConfigError, match=r"^calibration.enabled=True: must be false with data that has no text$"
    ):
        atlas.train(config, tmp_path / "run")
    assert list((tmp_path / "run").glob("*")) == []


@pytest.mark.slow
def test_norms_and_measurements_change_nothing_of_a_run(tiny: Tiny, left: Any, same_state: Any, tmp_path: Path) -> None:
    usual = ["model.memory.rule=momentum", "train.steps=12", "checkpoint.every=12"]
    for name, every, calibration in (("each", 1, "measure"), ("seldom", 100, "off")):
        overrides = [*usual, f"telemetry.every={every}", f"calibration={calibration}"]
        assert atlas.train(tiny(*overrides), tmp_path / name).status == "completed"
    each, seldom = left(tmp_path / "each"), left(tmp_path / "seldom")
    assert same_state(each.state, seldom.state)
    assert (len(each.rows), len(seldom.rows)) == (12, 2)  # the second: where it is validated
    assert each.rows[-1] == seldom.rows[-1]
    names = {name for name in each.rows[0] if name.startswith("memory/")}
    assert names == {
        *(f"memory/layer0/{which}/{kind}" for which in ("global", "local0") for kind in KINDS),
        "memory/layer0/local0/query_norm",
        "memory/layer0/lambda",
        "memory/layer0/gate_mean",
        "memory/layer0/gate_sharpness",
        "memory/layer0/query_cosine",
        "memory/layer0/query_cosine_raw",
    }
    assert all(row[name] is not None for row in each.rows for name in names)
