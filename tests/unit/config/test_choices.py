"""A text that names a member of an enum does what the member does, in every setting; any other is refused."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import is_dataclass, replace
from enum import Enum
from typing import Any

import pytest

import atlas
from atlas.config import ConfigError, MemoryConfig, ModelConfig, RunConfig
from atlas.config.choices import Choices
from atlas.generate import GenerationSettings


def choices(settings: type, prefix: str = "") -> Iterator[tuple[type, str, str, type[Enum]]]:
    """Class, field, key and enum of every choice among settings and those inside them."""
    for name, kind in typing.get_type_hints(settings).items():
        if is_dataclass(kind) and isinstance(kind, type):
            yield from choices(kind, f"{prefix}{name}.")
        elif isinstance(kind, type) and issubclass(kind, Enum):
            yield settings, name, f"{prefix}{name}", kind


NEEDED: dict[type, dict[str, Any]] = {
    GenerationSettings: {"prompt": "x"},
    RunConfig: {"model": ModelConfig(memory=MemoryConfig(enabled=False))},
}
ALL = [*choices(RunConfig), *choices(GenerationSettings)]
each_choice = pytest.mark.parametrize(("settings", "name", "key", "kind"), ALL, ids=lambda value: str(value))


def made(settings: type, **values: Any) -> Any:
    return settings(**NEEDED.get(settings, {}), **values)


@each_choice
def test_a_text_is_the_member_that_it_names(settings: type, name: str, key: str, kind: type[Enum]) -> None:
    assert issubclass(settings, Choices)
    for member in kind:
        for value in (member, member.value):
            assert getattr(made(settings, **{name: value}), name) is member
        assigned = made(settings)
        setattr(assigned, name, member.value)
        assert getattr(assigned, name) is member
        assert getattr(replace(assigned), name) is getattr(deepcopy(assigned), name) is member


@each_choice
@pytest.mark.parametrize("value", ["nothing", "", None, False, 1.5, []], ids=repr)
def test_anything_else_is_refused(settings: type, name: str, key: str, kind: type[Enum], value: object) -> None:
    message = f"{key}={value}: must be one of {', '.join(member.value for member in kind)}"
    with pytest.raises(ConfigError) as made_so:
        made(settings, **{name: value})
    config = made(settings)
    with pytest.raises(ConfigError) as assigned:
        setattr(config, name, value)
    assert str(made_so.value) == str(assigned.value) == message


def test_a_composed_configuration_takes_texts() -> None:
    config = atlas.compose(["ablation=no_projection"])
    config.model.fusion = "multiplicative"  # type: ignore[assignment]
    assert config == atlas.compose(["ablation=multiplicative", "model.memory.qk_projection.range=off"])
