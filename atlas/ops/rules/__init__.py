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
CLAIMS = {"write": ("own_gradients", False), "close": ("chunk_end", None)}  # with any other value a form stands in
RULES: dict[Rule, Callable[[MemoryConfig], LearningRule]] = {
    Rule.gd: lambda _: GradientDescent(),
    Rule.momentum: Momentum.from_config,
    Rule.muon: Muon.from_config,
    Rule.omega: Omega.from_config,
    Rule.atlas: Atlas.from_config,
}


def learning_rule(config: MemoryConfig) -> LearningRule:
    """The rule that the settings name. Raises `ConfigError` where one of your own lacks a part of `LearningRule`, has a
    method that would not be called, or a control without a range."""
    if not config.own_rule:
        return RULES[config.rule](config)
    rule: LearningRule = make(config.own_rule)
    missing = sorted(name for name in PARTS if not hasattr(rule, name))
    if missing:
        target = config.own_rule["_target_"]
        raise ConfigError(f"model.memory.own_rule._target_={target}: must have {', '.join(missing)}, as `LearningRule`")
    for method, (claim, called) in CLAIMS.items():
        if getattr(rule, claim) != called and _since(rule, method) < _since(rule, claim):
            told = f"model.memory.own_rule._target_={config.own_rule['_target_']}: must set {claim}={called}"
            raise ConfigError(f"{told}: it inherits another one, with which its own `{method}` is not called")
    for control in rule.controls:
        if not 0 <= control.initial <= control.maximum or not 0 < control.maximum < inf:
            allowed = f"a rule with controls of 0 <= initial <= maximum and 0 < maximum, not {control}"
            raise ConfigError(f"model.memory.own_rule._target_={config.own_rule['_target_']}: must be {allowed}")
    return rule


def _since(rule: LearningRule, name: str) -> int:
    """How many classes above that of the rule the one stands that sets `name`; -1 where the object itself does."""
    classes = enumerate([rule, *type(rule).__mro__], -1)
    return next(number for number, one in classes if name in getattr(one, "__dict__", ()))
