"""A run that goes on under other settings: longer, at another learning rate, with more validation."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import atlas
from atlas.checkpoint.manager import CheckpointManager
from atlas.config import ConfigError
from atlas.config.composition import load_config
from atlas.report.health import health_cell
from atlas.report.run_record import read_run
from atlas.runs.build import build_data, build_model, build_optimizer
from atlas.runs.changes import Changes
from atlas.runs.resume import resumed_config
from atlas.training.gate_monitor import GateMonitor
from atlas.training.rollback.history import History
from atlas.training.state import TrainState
from tests.integration.test_resume import stop


def go_on(folder: Path, *overrides: str, logger: dict[str, Any] | None = None) -> Any:
    """`resume=FOLDER OVERRIDES`"""
    given = [f"resume={folder}", "trust=[interrupting]", *overrides]
    return atlas.train(replace(resumed_config(atlas.compose(given), given, folder), logger=logger or {}))


@pytest.mark.slow
def test_a_completed_run_trains_longer_as_one_series(
    tiny: Any, interrupting: Any, left: Any, same_state: Any, tmp_path: Path
) -> None:
    carry = ["model.memory.rule=momentum", "train.carry_memory=true"]
    atlas.train(tiny(*carry, "train.steps=10"), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    whole, cut = left(tmp_path / "whole"), left(tmp_path / "cut")
    first = whole.rows
    run = go_on(whole.folder, "train.steps=20")
    assert (run.status, run.step, run.steps) == ("completed", 20, 20)
    assert whole.rows[: len(first)] == first
    assert [row["step"] for row in whole.rows] == [5, 10, 15, 20]
    assert load_config(whole.folder / "config.yaml") == tiny(*carry, "train.steps=20")
    optimizer = build_optimizer(tiny("train.steps=20"), build_model(tiny()))
    assert [row["lr"] for row in whole.rows[2:]] == [optimizer.lr_at(15), optimizer.lr_at(20)]
    (event,) = whole.events("settings")
    assert (event["step"], event["changes"]) == (10, {"train.steps": ["10", "20"]})
    assert event["message"] == (
        "from step 11 on train.steps=20 instead of 10: the numbers differ from those of a run without the change; "
        f"the learning rate goes from 0.0002 to {optimizer.lr_at(11):.3g}, by the schedule of 20 steps"
    )
    with pytest.raises(KeyboardInterrupt):
        go_on(cut.folder, "train.steps=20", logger=interrupting(at=17))
    go_on(cut.folder)  # the change is in config.yaml: nothing to repeat
    assert cut.rows == whole.rows
    assert same_state(cut.state, whole.state)


@pytest.mark.parametrize(("end", "kept"), [(0.5, True), (0.0, False)])
def test_a_new_length_keeps_carried_memories_only_where_the_last_batch_is_the_same(
    tiny: Any, end: float, kept: bool
) -> None:
    """The recall share follows the schedule: under another length, other rows of the last batch were text."""
    short = tiny("train.carry_memory=true", "train.steps=10")
    recall = {"pairs": 4, "queries": 3, "sparse_queries": 3, "sparse_share": 0.0, "distance_min": 8}
    data = atlas.compose(["data=mixed", *(f"data.recall.{key}={value}" for key, value in recall.items())]).data
    shares = {"recall_share_start": 0.5, "recall_share_end": end, "recall_hold": 0.0, "recall_blend_end": 1.0}
    short = replace(short, data=data | {"paths": short.data["paths"]} | shares)
    longer = replace(short, train=replace(short.train, steps=20))
    model = build_model(short)
    state = TrainState(model, build_optimizer(short, model), GateMonitor(short.train.gate), History(short.rollback))
    state.step, state.carried = 10, [model.initial_state(1)]
    Changes.between(short, longer).apply(state, build_data(longer))
    assert bool(state.carried) is kept


@pytest.mark.slow
def test_a_rollback_finds_the_checkpoints_from_before_the_change(tiny: Any, left: Any, tmp_path: Path) -> None:
    atlas.train(tiny("train.steps=10"), tmp_path / "run")
    run = go_on(tmp_path / "run", "train.steps=20", "optim.lr=1e-3", "debug.inject=nan_loss@13")
    assert (run.status, run.rollbacks) == ("completed", 1)
    found = left(tmp_path / "run")
    assert [event["step"] for event in found.events("rollback")] == [10]
    again = go_on(tmp_path / "run", "train.steps=25")
    assert (again.status, again.segment, again.step) == ("completed", 1, 25)
    assert load_config(tmp_path / "run" / "config.yaml").debug.inject is None  # of one start


@pytest.mark.slow
def test_the_optimiser_takes_new_values_and_keeps_its_state(tiny: Any, interrupting: Any, tmp_path: Path) -> None:
    stop(tiny("train.steps=20"), tmp_path / "run", interrupting(at=12))
    given = ["optim.lr=1e-3", "optim.weight_decay=0.2", "optim.betas=[0.8,0.9]", "train.gradient_clip=0.5"]
    assert go_on(tmp_path / "run", *given).status == "completed"
    payload, _ = CheckpointManager(tmp_path / "run" / "checkpoints", keep=2).load()
    groups = payload["optimizer"]["optimizers"][0]["param_groups"]
    assert [(group["weight_decay"], tuple(group["betas"])) for group in groups] == [
        (0.2, (0.8, 0.9)),
        (0.0, (0.8, 0.9)),
    ]
    assert groups[0]["lr"] == pytest.approx(1e-4)  # the last step's
    assert {entry["step"].item() for entry in payload["optimizer"]["optimizers"][0]["state"].values()} == {20.0}


EXACT = ["train.validation_every=2", "train.validation_batches=2", "niah.every=7", "calibration.measure=false"]


@pytest.mark.slow
def test_more_validation_changes_nothing_of_the_training(
    tiny: Any, interrupting: Any, left: Any, same_state: Any, tmp_path: Path
) -> None:
    config = tiny("train.steps=20")
    whole = left(Path(atlas.train(config, tmp_path / "whole").folder))
    run = left(tmp_path / "run")
    stop(config, run.folder, interrupting(at=12))
    assert go_on(run.folder, *EXACT).status == "completed"
    states = [{key: part for key, part in one.state.items() if key != "watch"} for one in (run, whole)]
    assert same_state(*states)  # all but what watchers have recorded, validations among it
    (event,) = run.events("settings")
    assert event["message"] == (
        "from step 11 on train.validation_every=2 instead of 10, train.validation_batches=2 instead of 1, "
        "niah.every=7 instead of 1000, calibration.measure=False instead of True: training stays bitwise the same"
    )
    assert json.loads((run.folder / "summary.json").read_text())["config_hash"] != event["former_config_hash"]


@pytest.mark.slow
def test_a_change_that_is_repeated_is_told_once(tiny: Any, interrupting: Any, left: Any, tmp_path: Path) -> None:
    stop(tiny("train.steps=20"), tmp_path / "run", interrupting(at=5))
    with pytest.raises(KeyboardInterrupt):
        go_on(tmp_path / "run", "rollback.patience=2", logger=interrupting(at=15))
    go_on(tmp_path / "run", "rollback.patience=2", "telemetry.every=1")
    assert len(left(tmp_path / "run").events("settings")) == 1


def test_what_makes_no_sense_is_refused_before_any_work(tiny: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    atlas.train(tiny("train.steps=10", "train.carry_memory=true"), folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    for given, message in (
        (["train.steps=8"], r"^train\.steps=8: must be > 10, the step of the checkpoint that the run goes on from$"),
        (["niah.every=3"], r"^niah\.every=3: must be given with train\.steps > 10: the run in .* is complete$"),
        (
            ["train.steps=20", "train.accumulate=2"],
            r"^train\.accumulate=2 instead of 1: must be as in .*train\.carry_m",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            go_on(folder, *given)
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
def test_a_resumed_run_counts_what_both_starts_tell_once(tiny: Any, left: Any, tmp_path: Path) -> None:
    told = ["model.memory.momentum=0.9", "resume=auto"]
    for steps in (8, 16):
        summary = atlas.train(tiny(*told, f"train.steps={steps}"), tmp_path / "run")
    (message,) = summary.warnings
    assert message.startswith("model.memory.momentum=0.9 changes nothing")
    assert len(left(tmp_path / "run").events("warning")) == 2
    assert health_cell(read_run(tmp_path / "run", "run")).text == "1 warning"
