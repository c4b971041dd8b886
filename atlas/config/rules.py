"""The learning rules of the memory, and their settings. Settings of one rule are in its own dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Self

from atlas.config.choices import Choices
from atlas.config.errors import require

K = 5  # Newton-Schulz iterations, as ATLAS section 5 calls them; I in docs/memory.md


class Rule(StrEnum):
    gd = "gd"  # gradient descent (TNT Eq 3)
    momentum = "momentum"  # with momentum and retention (Titans)
    muon = "muon"  # momentum, orthogonalised by Newton-Schulz (ATLAS Eq 32-33)
    omega = "omega"  # gradients of the last c tokens (ATLAS Eq 8-10)
    atlas = "atlas"  # muon and omega together (ATLAS Eq 32-33); with its features too: ablation=atlas_rule


@dataclass
class MuonRuleConfig:
    prefix = "model.memory.muon."

    rate_max: float = 1.0  # of rho, the rate of an orthogonalised update; float32: docs/memory.md section 4
    rate_init: float = 0.1  # rho of a token before training
    iterations: int = K  # of Newton-Schulz
    iterations_global: int | None = None  # of the global memory; null = as the local ones

    def __post_init__(self) -> None:
        require(0 < self.rate_max <= 1, f"{self.prefix}rate_max", self.rate_max, "in (0, 1]")
        require(
            0 < self.rate_init < self.rate_max,
            f"{self.prefix}rate_init",
            self.rate_init,
            f"in (0, {self.prefix}rate_max={self.rate_max})",
        )
        for key in ("iterations", "iterations_global"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"{self.prefix}{key}", value, ">= 1")

    def of_global(self) -> Self:
        return replace(self, iterations=self.iterations_global or self.iterations)


@dataclass
class OmegaRuleConfig:
    window: int = 4  # c, tokens
    gate: float = 0.25  # gamma of a token before training; 1 = open, fixed
    retention: float = 1.0  # alpha of a token before training; 1 = keep all, fixed

    def __post_init__(self) -> None:
        require(self.window >= 1, "model.memory.omega.window", self.window, ">= 1 token")
        require(0 < self.gate <= 1, "model.memory.omega.gate", self.gate, "in (0, 1]")
        require(0 < self.retention <= 1, "model.memory.omega.retention", self.retention, "in (0, 1]")


@dataclass
class AtlasRuleConfig(MuonRuleConfig):
    prefix = "model.memory.atlas."

    iterations_global: int | None = 3
    window: int = 4  # c, tokens
    gate: float = 0.25  # gamma of a pair of tokens before training; 1 = open, fixed

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.window >= 1, "model.memory.atlas.window", self.window, ">= 1 token")
        require(0 < self.gate <= 1, "model.memory.atlas.gate", self.gate, "in (0, 1]")


@dataclass
class RuleConfig(Choices, prefix="model.memory."):
    """The part of `MemoryConfig` that chooses the learning rule."""

    rule: Rule = Rule.gd
    own_rule: dict[str, Any] = field(default_factory=dict)  # in its place, a rule of your own: `_target_` and its keys
    momentum: float = 0.5  # rules momentum, muon, atlas: theta of a token before training; 0 = none, fixed
    retention: float = 0.999  # rules momentum, muon, atlas: alpha of a token before training; 1 = keep all, fixed
    muon: MuonRuleConfig = field(default_factory=MuonRuleConfig)
    omega: OmegaRuleConfig = field(default_factory=OmegaRuleConfig)
    atlas: AtlasRuleConfig = field(default_factory=AtlasRuleConfig)

    def __post_init__(self) -> None:
        require(0 <= self.momentum < 1, "model.memory.momentum", self.momentum, "in [0, 1)")
        require(0 < self.retention <= 1, "model.memory.retention", self.retention, "in (0, 1]")

    def of_global(self) -> Self:
        """The settings of the global memory's rule: `iterations` are its own."""
        return replace(self, muon=self.muon.of_global(), atlas=self.atlas.of_global())
