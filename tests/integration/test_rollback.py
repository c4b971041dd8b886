"""What a rollback restores, when it gives up, and what happens without it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import atlas
from atlas.config.composition import save_config
from atlas.probes.result import judge


def segment(rows: list[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    return [row for row in rows if row["segment"] == number]


def without_segment(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "segment"} for row in rows]


@pytest.mark.parametrize("carry", ["true", pytest.param("false", marks=pytest.mark.slow)])
def test_a_rollback_that_changes_nothing_goes_on_bitwise(
    carry: str, tiny: Any, left: Any, same_state: Any, tmp_path: Path
) -> None:
    settings = [f"train.carry_memory={carry}", "rollback.action=lower_lr", "rollback.lr_factor=1", "telemetry.every=1"]
    whole = left(Path(atlas.train(tiny(*settings), tmp_path / "whole").folder))
    back = left(Path(atlas.train(tiny(*settings, "debug.inject=nan_gradient@18"), tmp_path / "back").folder))
    (rollback,) = back.events("rollback")
    assert (rollback["step"], rollback["from_step"], rollback["trigger"]) == (10, 17, "non_finite")
    assert without_segment(segment(back.rows, 1)) == without_segment(whole.rows[10:])
    ended, expected = back.state, whole.state
    assert (ended["position"]["segment"], ended["position"]["rollbacks"]) == (1, 1)
    assert ended["position"] | {"segment": 0, "rollbacks": 0} == expected["position"]
    assert all(same_state(ended[key], expected[key]) for key in expected if key != "position")


def test_skipped_batches_are_left_out_and_their_number_survives(tiny: Any, left: Any, tmp_path: Path) -> None:
    run = left(Path(atlas.train(tiny("debug.inject=nan_loss@18"), tmp_path / "run").folder))
    assert run.events("rollback")[0]["change"] == "8 batches left out"  # 11 to 18
    assert run.state["position"] == {"step": 30, "tokens": 7680, "segment": 1, "rollbacks": 1, "skipped": 8}


@pytest.mark.slow
def test_lowering_the_learning_rate_adds_up(tiny: Any, left: Any, tmp_path: Path) -> None:
    config = tiny("rollback.action=lower_lr", "debug.inject=nan_memory@18:always", "rollback.limit=2")
    run = left(Path(atlas.train(config, tmp_path / "run").folder))
    changes = [event["change"] for event in run.events("rollback")]
    assert changes == ["learning rate times 0.5", "learning rate times 0.25"]
    rates = {row["segment"]: row["lr"] for row in run.rows if row["step"] == 15}
    assert rates == {0: rates[0], 1: rates[0] / 2, 2: rates[0] / 4}


def test_a_spike_that_comes_back_every_time_ends_in_a_clean_abort(tiny: Any, left: Any, tmp_path: Path) -> None:
    summary = atlas.train(tiny("debug.inject=nan_loss@18:always"), tmp_path / "run")
    assert (summary.status, summary.rollbacks, summary.segment) == ("aborted", 3, 3)
    assert summary.reason == "loss nan, gradient norm nan at step 18, after 3 rollbacks (rollback.limit=3)"
    told = [(event["kind"], event["step"]) for event in summary.history]
    assert told == [*[("spike", 17), ("rollback", 10)] * 3, ("spike", 17)]
    run = left(tmp_path / "run")
    (end,) = run.events("end")
    assert (end["status"], end["reason"]) == ("aborted", summary.reason)
    assert json.loads((run.folder / "summary.json").read_text())["history"] == summary.history


@pytest.mark.slow
def test_what_was_undone_is_never_chosen_again(tiny: Any, left: Any, tmp_path: Path) -> None:
    config = tiny("debug.inject=weights@21:3:always", "checkpoint.every=1", "checkpoint.keep=2", "train.steps=60")
    summary = atlas.train(config, tmp_path / "run")
    assert (summary.status, summary.rollbacks) == ("aborted", 3)
    rollbacks = left(tmp_path / "run").events("rollback")
    assert [event["step"] for event in rollbacks] == [20, 20, 20]  # the last good reading, though 2 newer ones are kept
    assert len(list((tmp_path / "run" / "checkpoints").glob("retired-*"))) >= 3


@pytest.mark.slow
def test_dead_gates_are_a_trigger_where_configured(tiny: Any, tmp_path: Path) -> None:
    # Only gates that are all 0 or 1, half of them each, have a standard deviation of 0.5.
    dying = [
        "train.gate.monitor=abort",
        "train.gate.monitor_start=12",
        "train.gate.std_min=0.499",
    ]
    summary = atlas.train(tiny(*dying), tmp_path / "abort")
    assert (summary.status, summary.rollbacks) == ("aborted", 0)
    assert summary.reason.endswith("at step 12 is below train.gate.std_min=0.499")
    summary = atlas.train(tiny(*dying, "rollback.triggers=[gate]"), tmp_path / "trigger")
    assert (summary.status, summary.rollbacks) == ("aborted", 3)
    assert {event["trigger"] for event in summary.history} == {"gate"}
    summary = atlas.train(tiny(*dying[1:], "train.gate.monitor=warn"), tmp_path / "warn")
    assert (summary.status, len(summary.warnings)) == ("completed", 1)


@pytest.mark.slow
def test_a_memory_that_stops_to_work_is_a_trigger_where_configured(tiny: Any, left: Any, tmp_path: Path) -> None:
    probing = ["niah=default", "niah.enabled=true", "niah.levels=[memory]", "niah.every=5", "niah.samples=4"]
    broken = [*probing, "niah.threshold=0.5", "rollback.triggers=[niah]", "debug.inject=weights@18:3"]
    summary = atlas.train(tiny(*broken, "checkpoint.keep=2", "checkpoint.every=2"), tmp_path / "run")
    assert (summary.status, summary.rollbacks, summary.niah["memory"]["outcome"]) == ("completed", 1, "passed")
    run = left(tmp_path / "run")
    (rollback,) = run.events("rollback")
    # Passed at step 15, failed at 20: the checkpoint of step 14 was kept although newer ones had been good.
    assert (rollback["trigger"], rollback["step"], rollback["from_step"]) == ("niah", 14, 20)
    assert "niah memory has collapsed: passed at step 15, now FAILED: cosine 0.34" in rollback["reason"]
    passed = [event["passed"] for event in run.events("probe")]
    assert passed == [True, True, True, False, True, True, True, True]


def collapses(subject: Any) -> Any:
    """A level that a memory passes before step 40, and never after."""
    accuracy = 0.9 if subject.step < 40 else 0.1
    return judge(step=subject.step, level="falling.collapses", threshold=0.8, accuracy=accuracy, control=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [["train.steps=40"], ["train.steps=60", "train.patience=1"]])
def test_a_memory_that_stops_to_work_where_the_run_ends_is_a_trigger_too(
    ending: list[str], tiny: Any, left: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "falling", ModuleType("falling"))
    vars(sys.modules["falling"])["collapses"] = collapses
    probing = ["niah.enabled=true", "niah.levels=[falling.collapses]", "niah.every=30", "trust=[falling]"]
    rising = ["train.validation_every=20", "optim.lr=0.15", "optim.schedule=constant", "optim.warmup=0"]
    settings = [*probing, *rising, "rollback.triggers=[niah]", "rollback.limit=1", "calibration=off", *ending]
    summary = atlas.train(tiny(*settings), tmp_path / "run")
    assert (summary.status, summary.rollbacks) == ("aborted", 1)
    run = left(tmp_path / "run")
    assert [(one["trigger"], one["step"], one["from_step"]) for one in run.events("rollback")] == [("niah", 30, 40)]


@pytest.mark.slow
def test_a_memory_that_never_worked_has_not_collapsed(tiny: Any, tmp_path: Path) -> None:
    never = ["niah=default", "niah.enabled=true", "niah.levels=[memory]", "niah.every=10", "niah.threshold=1"]
    summary = atlas.train(tiny(*never, "rollback.triggers=[niah]"), tmp_path / "run")
    assert (summary.status, summary.rollbacks, summary.niah["memory"]["outcome"]) == ("completed", 0, "failed")


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["rollback=off", "rollback=observe"])
def test_without_rollback_a_spike_is_told_and_nothing_is_restored(
    choice: str, tiny: Any, left: Any, tmp_path: Path
) -> None:
    summary = atlas.train(tiny(choice, "debug.inject=weights@21:3", "train.steps=50"), tmp_path / "run")
    assert (summary.status, summary.rollbacks, summary.step) == ("completed", 0, 50)
    run = left(tmp_path / "run")
    assert run.events("spike")[0]["trigger"] == "perplexity"
    assert list(run.folder.glob("checkpoints/retired-*")) == []
    assert (run.folder / "rollback_threshold.json").exists() is (choice == "rollback=observe")
    summary = atlas.train(tiny(choice, "debug.inject=nan_loss@18"), tmp_path / "nan")
    assert (summary.status, summary.step) == ("aborted", 17)
    assert summary.reason == "loss nan, gradient norm nan at step 18; no rollback is configured for it"


@pytest.mark.slow
def test_an_observed_run_writes_the_distribution(tiny: Any, left: Any, tmp_path: Path) -> None:
    config = tiny("rollback=observe", "train.steps=40", "rollback.watch_every=1")
    save_config(config, tmp_path / "given.yaml")
    run = left(Path(atlas.train(config, tmp_path / "run").folder))
    found = json.loads((run.folder / "rollback_threshold.json").read_text())
    assert found["readings"] + found["left_out"] == len(found["deltas"]) == 30
    assert found["quantiles"]["1.0"] == pytest.approx(max(found["deltas"][found["left_out"] :]), abs=1e-6)
    few = f"{found['readings']} readings after the warm-up and the steep descent are too few"
    assert run.events("notice")[-1]["message"] == f"no rollback threshold can be suggested: {few}"
