"""A configuration that a program has changed is checked as one that was composed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import atlas
from atlas.config import ConfigError, RunConfig
from atlas.config.composition import checked


def change(config: RunConfig, path: str, value: Any) -> None:
    *groups, last = path.split(".")
    place: Any = config
    for group in groups:
        place = getattr(place, group)
    if isinstance(place, dict):
        place[last] = value
    else:
        setattr(place, last, value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("train.steps", -3, "train.steps=-3: must be >= 1"),
        ("train.gradient_clip", -1.0, "train.gradient_clip=-1.0: must be >= 0 (0 = off)"),
        ("train.ema", float("nan"), "train.ema=nan: must be in [0, 1) (0 = no average)"),
        ("model.heads", 3, "model.heads=3: must be a divisor of model.width=128"),
        ("optim.lr", -1, "optim.lr=-1: must be a number in (0, inf)"),
        ("seed", "x", "seed: Value 'x' of type 'str' could not be converted to Integer"),
        (
            "train.stpes",
            5,
            "train.stpes=5: must be a key that exists (--cfg job lists them); did you mean train.steps?",
        ),
        ("own", 5, "own=5: must be a key that exists (--cfg job lists them)"),
    ],
)
def test_what_cannot_be_used_is_refused_before_a_folder_is_made(
    path: str, value: Any, message: str, tmp_path: Path
) -> None:
    config = atlas.compose(["data=stdlib"])
    change(config, path, value)
    with pytest.raises(ConfigError) as error:
        atlas.train(config, tmp_path / "run")
    assert str(error.value) == message
    assert not (tmp_path / "run").exists()


def test_what_can_be_used_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("named_by_the_program")
    vars(module)["Lines"] = type("Lines", (), {})
    monkeypatch.setitem(sys.modules, "named_by_the_program", module)
    config = atlas.compose(["data=stdlib", "chunk_size=set_a", "rollback=observe", "logger=none"])
    assert checked(config) == config
    config.logger = {"_target_": "named_by_the_program.Lines"}  # without `trust`
    assert checked(config) == config
