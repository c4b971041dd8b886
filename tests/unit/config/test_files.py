"""Files of a run folder are read within bounds, and refused in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from atlas.config import ConfigError
from atlas.config.components import own_targets
from atlas.config.composition import load_config
from atlas.config.files import read_yaml, require_values

YAML = {
    "a: [1\n": "plain YAML (expected ',' or ']', but got '<stream end>', line 2)",
    "a: &x [1]\nb: *x\n": "plain YAML (it holds an alias, *x)",
    "a: !!python/name:os.system\n": (
        "plain YAML (could not determine a constructor for the tag 'tag:yaml.org,2002:python/name:os.system', line 1)"
    ),
    "a: 1\na: 2\n": "plain YAML (found duplicate key a, line 2)",
    "a: 0x" + "f" * 5000: "plain YAML (Exceeds the limit (4300 digits) for integer string conversion; use"
    " sys.set_int_max_str_digits() to increase the limit)",
    "[1]\n": "plain YAML (it holds no keys)",
    "": "plain YAML (it holds no keys)",
    "a: " + "[" * 40 + "]" * 40 + "\n": "plain YAML (it is nested too deeply)",
    "x" * (1 << 20) + ": 1\n": "a file of at most 1 MiB",
}


@pytest.mark.parametrize("content", YAML)
def test_yaml_that_no_run_writes_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as error:
        read_yaml(path)
    assert str(error.value) == f"{path}: must be {YAML[content]}"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match=r"config\.yaml: must be a file that can be read \(not a regular file\)$"):
        load_config(tmp_path / "config.yaml")


def test_a_reference_to_one_value_is_a_value() -> None:
    require_values(Path("x"), {"a": {"b": 1}, "c": "${a.b}", "d": ["${c}"]})
    for text in ("${a}", "${a.b}${a.b}", "${oc.env:HOME}", "${nothing}", "${a.b.c}"):
        with pytest.raises(ConfigError) as error:
            require_values(Path("x"), {"a": {"b": 1}, "c": text})
        assert str(error.value) == f"x: must hold values, not the reference {text}"


def test_the_components_of_atlas_are_those_of_its_options() -> None:
    assert own_targets("data") == {
        *(f"atlas.data.{name}" for name in ("mixed.MixedData", "text.StdlibData", "text.TextData")),
        "atlas.data.blend.BlendData",
        *(f"atlas.data.tokens.{name}" for name in ("TokenData", "MixedTokenData")),
        *(f"atlas.data.recall.{name}" for name in ("RecallData", "RecallTask")),
    }
    assert own_targets("logger") == {"atlas.telemetry.wandb.WandbSink", "atlas.telemetry.tensorboard.TensorBoardSink"}
