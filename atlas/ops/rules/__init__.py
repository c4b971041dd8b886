"""The learning rules of the memory, by the name that the configuration gives them."""

from __future__ import annotations

from atlas.config import MemoryConfig, Rule
from atlas.ops.rules.gd import GradientDescent
from atlas.ops.rules.momentum import Momentum
from atlas.ops.rules.muon import Muon
from atlas.ops.rules.omega import Omega
from atlas.ops.rules.rule import LearningRule


def learning_rule(config: MemoryConfig) -> LearningRule:
    match config.rule:
        case Rule.gd:
            return GradientDescent()
        case Rule.momentum:
            return Momentum(config.momentum, config.retention)
        case Rule.muon:
            step = config.muon_rate_init, config.muon_rate_max
            return Muon(config.momentum, config.retention, *step, config.muon_iterations)
        case Rule.omega:
            return Omega(config.omega_window, config.omega_gate)
