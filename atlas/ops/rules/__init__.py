"""The learning rules of the memory, by the name that the configuration gives them."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from atlas.config import ConfigError, MemoryConfig, Rule
from atlas.config.components import make
from atlas.ops.rules.atlas import Atlas
from atlas.ops.rules.gd import GradientDescent
from atlas.ops.rules.momentum import Momentum
from atlas.ops.rules.muon import Muon
from atlas.ops.rules.omega import Omega
from atlas.ops.rules.rule import LearningRule

PARTS = [name for name in vars(LearningRule) if not name.startswith("_")]
RULES: dict[Rule, Callable[[MemoryConfig], LearningRule]] = {
    Rule.gd: lambda _: GradientDescent(),
    Rule.momentum: Momentum.from_config,
    Rule.muon: Muon.from_config,
    Rule.omega: Omega.from_config,
    Rule.atlas: Atlas.from_config,
}


def learning_rule(config: MemoryConfig) -> LearningRule:
    """The rule that the settings name. Raises `ConfigError` where one of your own lacks a part of `LearningRule`, or
    has a control without a range."""
    if not config.own_rule:
        return RULES[config.rule](config)
    rule: LearningRule = make(config.own_rule)
    missing = sorted(name for name in PARTS if not hasattr(rule, name))
    if missing:
        target = config.own_rule["_target_"]
        raise ConfigError(f"model.memory.own_rule._target_={target}: must have {', '.join(missing)}, as `LearningRule`")
    for control in rule.controls:
        if not 0 <= control.initial <= control.maximum or not 0 < control.maximum < inf:
            allowed = f"a rule with controls of 0 <= initial <= maximum and 0 < maximum, not {control}"
            raise ConfigError(f"model.memory.own_rule._target_={config.own_rule['_target_']}: must be {allowed}")
    return rule
