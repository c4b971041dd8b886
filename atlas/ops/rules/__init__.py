"""The learning rules of the memory, by the name that the configuration gives them."""

from __future__ import annotations

from collections.abc import Callable

from atlas.config import MemoryConfig, Rule
from atlas.ops.rules.atlas import Atlas
from atlas.ops.rules.gd import GradientDescent
from atlas.ops.rules.momentum import Momentum
from atlas.ops.rules.muon import Muon
from atlas.ops.rules.omega import Omega
from atlas.ops.rules.rule import LearningRule

RULES: dict[Rule, Callable[[MemoryConfig], LearningRule]] = {
    Rule.gd: lambda _: GradientDescent(),
    Rule.momentum: Momentum.from_config,
    Rule.muon: Muon.from_config,
    Rule.omega: Omega.from_config,
    Rule.atlas: Atlas.from_config,
}
