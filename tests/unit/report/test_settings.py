from __future__ import annotations

from pathlib import Path

from atlas.report.settings import Difference, differences, swept_names
from atlas.report.wording import value_text


def test_only_what_differs_is_found_with_its_short_name() -> None:
    first = {"optim.lr": 0.1, "niah.every": 5, "telemetry.every": 1, "seed": 0}
    second = first | {"optim.lr": 0.2, "niah.every": 6}
    third = first | {"optim.lr": 0.2}
    assert differences([first, second, third]) == [
        Difference("optim.lr", "lr", [0.1, 0.2, 0.2]),
        Difference("niah.every", "every", [5, 6, 5]),
    ]
    assert differences([first, first | {"telemetry.every": 2}]) == []  # how often something is written
    assert [found.key for found in differences([first, first | {"telemetry.every": 2}], swept=["telemetry.every"])] == [
        "telemetry.every"
    ]


def test_a_round_of_a_sweep_is_told_and_so_is_a_value_to_its_last_digit() -> None:
    configs = [{"sweep.round": index, "sweep.seeds": index} for index in range(2)]
    assert differences(configs, swept=["sweep.round", "sweep.seeds"]) == [Difference("sweep.round", "round", [0, 1])]
    assert differences([{"train.ema": 0.9999999}, {"train.ema": 1.0}]) == [
        Difference("train.ema", "ema", [0.9999999, 1.0])
    ]
    texts = [value_text(value) for value in (0.9999999, 1.0, 1e-4, 1e-05, 0.1, [2.0, 0.5])]
    assert texts == ["0.9999999", "1", "0.0001", "1e-05", "0.1", "[2,0.5]"]


def test_settings_that_change_together_share_a_column() -> None:
    configs = [{"model.width": 8, "model.heads": 1, "seed": 0}, {"model.width": 16, "model.heads": 2, "seed": 0}]
    assert differences(configs) == [Difference("model.width", "width", [8, 16], ("model.heads",))]
    assert differences(configs, swept=["model.heads"])[0].key == "model.heads"


def test_each_swept_setting_has_a_column_where_two_jobs_of_a_grid_are_left() -> None:
    """Of seed=0,1 optim.lr=1,2: as one column they would be two seeds of one setting."""
    configs = [{"seed": 0, "optim.lr": 1.0, "data.seed": 0}, {"seed": 1, "optim.lr": 2.0, "data.seed": 1}]
    assert differences(configs, swept=["optim.lr", "seed"]) == [
        Difference("seed", "seed", [0, 1], ("data.seed",)),
        Difference("optim.lr", "lr", [1.0, 2.0]),
    ]


def test_the_logger_is_no_difference_and_an_unreadable_config_neither() -> None:
    configs = [{"seed": 0, "logger.name": "a"}, {}, {"seed": 0, "logger.name": "b", "new": 1}]
    assert differences(configs) == [Difference("new", "new", ["(absent)", "-", 1])]


def test_the_keys_of_a_sweep_come_from_its_record(tmp_path: Path) -> None:
    assert swept_names(tmp_path) == []
    (tmp_path / "multirun.yaml").write_text("hydra: {overrides: {task: ['seed=0,1', '+x=1', 'chunk_size=c8,c16']}}\n")
    assert swept_names(tmp_path) == ["seed", "x", "chunk_size"]
    (tmp_path / "multirun.yaml").write_text("hydra: {overrides: {task: [sweep.seeds=2, 'optim.lr=1,2']}}\n")
    assert swept_names(tmp_path) == ["seed", "optim.lr"]
