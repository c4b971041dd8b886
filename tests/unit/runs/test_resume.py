"""`resume=RUN OPTION`: what an option sets in other groups counts as named, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import pytest

import atlas
from atlas.config import ConfigError, RunConfig
from atlas.config.composition import save_config
from atlas.config.option_files import named_settings
from atlas.runs.resume import resumed_config
from tests.integration.sweep_commands import command


def resumed(folder: Path, started: list[str], *overrides: str) -> RunConfig:
    save_config(atlas.compose(started), folder / "config.yaml")
    return resumed_config(atlas.compose(overrides), overrides, folder)


@pytest.mark.parametrize(
    ("option", "differs"),
    [
        ("ablation=no_global", "model.memory.use_global=False instead of True"),
        ("ablation=no_memory", "model.memory.enabled=False instead of True"),
        ("chunk_size=baseline", "model.memory.use_global=False instead of True"),
        ("experiment=recall_long", "model.memory.rate_threshold=0.15 instead of 0.0"),
        ("experiment=stage2", "stage2.enabled=True instead of False"),
        ("data/task@data.recall=needles", "data.recall.pairs=24 instead of 3"),
    ],
)
def test_an_option_that_the_run_was_not_started_with_is_refused(option: str, differs: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        resumed(tmp_path, ["data.recall.pairs=3"], option)
    assert differs in str(error.value)
    assert "must be as in" in str(error.value)


def test_an_experiment_changes_only_what_it_sets(tmp_path: Path) -> None:
    started = ["experiment=recall_long", "train.steps=3333", "optim.lr=0.0007"]
    config = resumed(tmp_path, started, "experiment=recall_long", "train.steps=4000")
    assert config == atlas.compose(["experiment=recall_long", "train.steps=4000", "optim.lr=0.0007"])
    assert resumed(tmp_path, ["ablation=no_global"], "ablation=no_global") == atlas.compose(["ablation=no_global"])


@pytest.mark.parametrize("option", ["logger=[wandb,tensorboard]", "logger=none", "niah='off'"])
def test_options_that_may_change_are_taken(option: str, tmp_path: Path) -> None:
    found = resumed(tmp_path, ["data.recall.pairs=3"], option)
    assert found == atlas.compose(["data.recall.pairs=3", option])


def test_an_option_without_a_file_is_refused(tmp_path: Path) -> None:
    save_config(atlas.compose(), tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match=r"^train=mine: must be an option with a file, to continue a run"):
        resumed_config(atlas.compose(), ["train=mine"], tmp_path)


def test_options_of_the_users_own_folder_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package _global_\noptim: {lr: 0.5}\nmodel: {width: 1000}\n")
    save_config(atlas.compose(), tmp_path / "config.yaml")
    ended = command(f"resume={tmp_path}", "--config-dir", str(tmp_path / "conf"), "experiment=mine")
    told = f"atlas: model.width=1000 instead of 128: must be as in {tmp_path}/config.yaml"
    assert (ended.status, ended.err[0][: len(told)]) == (2, told)


def test_numbers_in_the_place_of_options_are_refused() -> None:
    ended = command("chunk_size=[8,16]")
    assert ended.err == ["atlas: chunk_size=[8,16]: must be one of baseline, c16, c32, c64, c8, set_a, set_b, set_c"]


def test_options_of_the_users_own_folder_count(tmp_path: Path) -> None:
    folder = tmp_path / "experiment"
    folder.mkdir()
    (folder / "base.yaml").write_text("# @package _global_\ntrain:\n  steps: 5\n")
    (folder / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - base\n  - override /ablation: [none]\n  - _self_\nmodel: {width: 64}\n"
    )
    (tmp_path / "ablation").mkdir()
    (tmp_path / "ablation" / "none.yaml").write_text("# @package model.memory\n# nothing\n")
    found = [*named_settings("experiment", "mine", [tmp_path / "missing", tmp_path])]
    assert found == ["experiment", "model.width", "experiment", "train.steps", "ablation"]


def test_latest_is_offered_where_it_is_taken(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must be auto, a run folder \(with config\.yaml\) or one of its checkp"):
        atlas.train(atlas.compose([f"resume={tmp_path}/none"]))
