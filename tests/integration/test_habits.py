"""Early stop, and an average of the weights beside them."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import atlas
from atlas.config import ConfigError, RunConfig

pytestmark = pytest.mark.slow
REASON = r"early stop: 2 validations without a lower loss \(lowest \d\.\d{4} at step (\d+); train\.patience=2\)"
Tiny = Callable[..., RunConfig]
SHORT = ["train.validation_every=2", "telemetry.every=1", "checkpoint.every=4", "calibration=off"]
NOT_LEARNING = [*SHORT, "train.steps=20", "optim.lr=1e-12", "train.patience=2"]


def test_a_run_ends_where_the_validation_loss_no_longer_falls(
    tiny: Tiny, tmp_path: Path, left: Callable[..., Any]
) -> None:
    settings = [*NOT_LEARNING, "niah.enabled=true", "niah.levels=[accumulator]"]
    run = atlas.train(tiny(*settings), tmp_path)
    found = re.fullmatch(REASON, run.reason)
    assert found is not None
    assert (run.status, run.step) == ("completed", int(found[1]) + 4)  # two validations later
    assert run.niah["accumulator"]["outcome"] in ("passed", "failed")  # probed as at the last step
    assert left(tmp_path).state["position"]["step"] == run.step  # and saved
    again = atlas.train(tiny(*settings, "resume=auto"), tmp_path)
    assert (again.step, again.reason) == (run.step, run.reason)  # nothing is left to do
    needed = r"train\.steps=30: must be given with a larger train\.patience \(0 = no early stop\)"
    with pytest.raises(ConfigError, match=rf"^{needed}: the run in .* is complete \({REASON}\)$"):
        atlas.train(tiny(*settings, "train.steps=30", "resume=auto"), tmp_path)
    more = atlas.train(tiny(*settings, "train.patience=0", "resume=auto"), tmp_path)
    assert (more.step, more.reason) == (20, "")


def test_the_checkpoint_of_an_early_stop_is_saved_after_its_reading_is_settled(
    tiny: Tiny, tmp_path: Path, left: Callable[..., Any]
) -> None:
    every = ["train.validation_every=20", "rollback.watch_every=20", "checkpoint.every=20", "train.patience=1"]
    rate = ["optim.lr=0.15", "optim.schedule=constant", "optim.warmup=0", "calibration=off", "train.steps=200"]
    run = atlas.train(tiny(*every, *rate, "rollback.warmup=0", "rollback.threshold=0.0001"), tmp_path)
    assert (run.status, run.step) == ("completed", 40)
    newest = left(tmp_path).state["history"]["readings"][-1]
    assert (newest["step"], newest["delta"] > 0.0001, newest["bad"]) == (40, True, False)  # it was chance
    saved = json.loads((tmp_path / "checkpoints" / "step-00000040" / "manifest.json").read_text())
    assert saved["healthy"] is True


def test_damage_at_the_step_of_an_early_stop_marks_its_checkpoint(tiny: Tiny, tmp_path: Path) -> None:
    """As at the last step, which always has a reading."""
    every = ["train.validation_every=8", "checkpoint.every=8", "rollback.watch_every=20", "train.patience=1"]
    run = atlas.train(tiny(*every, "debug.inject=lr_burst@24:3000", "train.steps=40"), tmp_path)
    assert (run.status, run.step, [found["watch"] for found in run.watch]) == ("completed", 24, ["last_steps"])
    with pytest.warns(UserWarning, match="^step-00000024 is not healthy: .*; step-00000016 is taken instead$"):
        atlas.load(tmp_path)


def test_a_former_last_step_counts_for_the_early_stop(tiny: Tiny, tmp_path: Path) -> None:
    """A run that is made longer stops as one that was so long from the start, with a constant learning rate."""
    settings = [*NOT_LEARNING, "optim.schedule=constant", "optim.warmup=0"]
    whole = atlas.train(tiny(*settings), tmp_path / "whole")
    first = atlas.train(tiny(*settings, f"train.steps={whole.step - 2}"), tmp_path / "parts")
    assert (first.step, first.reason) == (whole.step - 2, "")
    parts = atlas.train(tiny(*settings, "resume=auto"), tmp_path / "parts")
    assert parts.step == whole.step
    assert re.fullmatch(REASON, parts.reason)
    at_the_end = atlas.train(tiny(*settings, f"train.steps={whole.step}"), tmp_path / "end")
    assert (at_the_end.step, at_the_end.reason) == (whole.step, "")


def test_an_average_is_validated_beside_the_weights_and_changes_none(
    tiny: Tiny, tmp_path: Path, left: Callable[..., Any], same_state: Callable[[Any, Any], bool]
) -> None:
    runs = {}
    for name, more in (("with", ["train.ema=0.5"]), ("without", [])):
        atlas.train(tiny(*SHORT, "train.steps=8", *more), tmp_path / name)
        runs[name] = left(tmp_path / name)
    assert same_state(runs["with"].state["model"], runs["without"].state["model"])
    rows = runs["with"].rows
    assert all(("validation/loss_ema" in row) == ("validation/loss" in row) for row in rows)
    model, _ = atlas.load(tmp_path / "with", weights="averaged")
    assert same_state(dict(model.state_dict()), dict(runs["with"].state["average"]))
    with pytest.raises(ConfigError, match=r"^weights=ema: must be one of trained, averaged$"):
        atlas.load(tmp_path / "with", weights="ema")
    with pytest.raises(ConfigError, match=r"^weights=averaged: must be trained, for a run without train.ema$"):
        atlas.load(tmp_path / "without", weights="averaged")


def test_a_resumed_average_is_that_of_a_run_that_never_stopped(
    tiny: Tiny,
    tmp_path: Path,
    left: Callable[..., Any],
    same_state: Callable[[Any, Any], bool],
    interrupting: Callable[..., dict[str, Any]],
) -> None:
    settings = [*SHORT, "train.steps=8", "train.ema=0.9", "train.patience=3", "trust=[interrupting]"]
    atlas.train(tiny(*settings), tmp_path / "whole")
    stopped = tiny(*settings)
    stopped.logger = interrupting(at=6)
    with pytest.raises(KeyboardInterrupt):
        atlas.train(stopped, tmp_path / "parts")
    atlas.train(tiny(*settings, "resume=auto"), tmp_path / "parts")
    whole, parts = left(tmp_path / "whole").state, left(tmp_path / "parts").state
    assert same_state(whole["average"], parts["average"])
    assert whole["early_stop"] == parts["early_stop"]
    assert not torch.equal(whole["average"]["embedding.weight"], whole["model"]["embedding.weight"])


def test_a_validation_that_a_signal_makes_repeated_counts_once(
    tiny: Tiny, tmp_path: Path, left: Callable[..., Any], signalling: Callable[..., dict[str, Any]]
) -> None:
    settings = [*SHORT, "train.steps=6", "train.patience=1", "telemetry.samples=1", "trust=[signalling]"]
    whole = atlas.train(tiny(*settings), tmp_path / "whole")
    stopped = tiny(*settings)
    stopped.logger = signalling(signal.SIGTERM, at=2, key="validation/loss")  # the samples of step 2 are not drawn
    with pytest.raises(KeyboardInterrupt):
        atlas.train(stopped, tmp_path / "parts")
    assert left(tmp_path / "parts").events("sample") == []
    parts = atlas.train(tiny(*settings, "resume=auto"), tmp_path / "parts")
    assert (parts.status, parts.step, parts.reason) == (whole.status, whole.step, whole.reason) == ("completed", 6, "")
    assert left(tmp_path / "parts").rows == left(tmp_path / "whole").rows
    texts = [[one["text"] for one in left(tmp_path / name).events("sample")] for name in ("parts", "whole")]
    assert texts[0] == texts[1]


def test_samples_are_what_the_model_of_their_step_generates_and_change_no_bit(
    tiny: Tiny, tmp_path: Path, text: Path, left: Callable[..., Any], same_state: Callable[[Any, Any], bool]
) -> None:
    runs = {}
    for name, more in (("with", ["telemetry.samples=6", "telemetry.sample_tokens=20"]), ("without", [])):
        atlas.train(tiny(*SHORT, "train.steps=4", *more), tmp_path / name)
        runs[name] = left(tmp_path / name)
    assert same_state(runs["with"].state, runs["without"].state)
    assert runs["with"].rows == runs["without"].rows
    assert runs["without"].events("sample") == []
    samples = runs["with"].events("sample")
    assert [(one["step"], one["number"]) for one in samples] == [(step, n) for step in (2, 4) for n in range(6)]
    assert all(first["prompt"] == later["prompt"] for first, later in zip(samples[:6], samples[6:], strict=True))
    model, _ = atlas.load(tmp_path / "with")
    for one in samples[6:]:
        assert len(one["prompt"]) == 20
        assert one["prompt"] in text.read_text()
        assert one["text"] == atlas.generate(model, one["prompt"], tokens=20)
