from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from atlas import compose
from atlas.config.keys import flat, lies_in, nested, override_name, plain


def test_nested_settings_become_flat_and_nested_again() -> None:
    settings = {"a": {"b": 1, "c": {"d": [2]}}, "e": {}, "f": None}
    assert flat(settings) == {"a.b": 1, "a.c.d": [2], "e": {}, "f": None}
    assert flat(settings, separator="/") == {"a/b": 1, "a/c/d": [2], "e": {}, "f": None}
    assert nested(flat(settings)) == settings


def test_a_key_lies_in_itself_and_in_the_groups_above_it() -> None:
    assert [lies_in("a.b.c", [name]) for name in ("a", "a.b", "a.b.c")] == [True, True, True]
    assert [lies_in("a.b.c", [name]) for name in ("a.b.c.d", "a.bb", "b", "")] == [False, False, False, False]
    assert lies_in("a.b", ("x", "a"))
    assert not lies_in("a.b", ())


def test_the_name_of_an_override_stands_without_hydra_s_signs() -> None:
    overrides = ("train.steps=3", "+a.b=1=2", "++a=", "~a", "model@student=tiny", "niah")
    assert [override_name(text) for text in overrides] == ["train.steps", "a.b", "a", "a", "model", "niah"]


@pytest.mark.parametrize("overrides", [[], ["optim=adamw", "niah=thorough", "logger=[wandb,tensorboard]", "seed=7"]])
def test_plain_settings_are_those_of_the_file(overrides: list[str]) -> None:
    config = compose(overrides)
    assert plain(config) == OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
