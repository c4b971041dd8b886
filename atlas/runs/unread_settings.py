"""Settings of the memory and its gate that were changed and that nothing in this model reads: told before step 1.

Two runs that differ in such a setting alone are the same run; a sweep over it would compare a model with itself.
"""

from __future__ import annotations

from dataclasses import asdict

from atlas.config import Fusion, MemoryConfig, ModelConfig, ProjectionRange, Rule
from atlas.config.keys import flat

WITH_MOMENTUM = {Rule.momentum, Rule.muon, Rule.atlas}
READERS = {  # the rules that read a setting, or settings that begin so
    "momentum": WITH_MOMENTUM,
    "retention": WITH_MOMENTUM,
    "muon.": {Rule.muon},
    "omega.": {Rule.omega},
    "atlas.": {Rule.atlas},
}


def unread_settings(model: ModelConfig) -> list[str]:
    """A line each; [] where every changed setting has a reader."""
    return [*_of_memory(model.memory), *_of_gate(model)]


def _of_gate(model: ModelConfig) -> list[str]:
    usual, sharpest = ModelConfig(), model.gate_sharpness_max
    changed = []
    if sharpest not in (0, usual.gate_sharpness_max):  # 0: a run from before the setting
        changed.append(f"model.gate_sharpness_max={sharpest}")
    if not model.memory.enabled:
        changed += [f"model.fusion={model.fusion}"] * (model.fusion is not usual.fusion)
        return [f"{one} changes nothing with model.memory.enabled=false" for one in changed]
    gateless = model.fusion is Fusion.additive
    return [f"{one} changes nothing with model.fusion=additive" for one in changed if gateless]


def _of_memory(memory: MemoryConfig) -> list[str]:
    default = flat(asdict(type(memory)()))
    changed = {key: value for key, value in flat(asdict(memory)).items() if value != default.get(key, value)}
    found = {key: reason for key in changed if (reason := _why_unread(memory, key))}
    return [f"model.memory.{key}={changed[key]} changes nothing with {reason}" for key, reason in found.items()]


def _why_unread(memory: MemoryConfig, key: str) -> str:
    if not memory.enabled:
        return "" if key == "enabled" else "model.memory.enabled=false"
    if memory.own_rule:  # its own arguments are what it reads; of these settings it may read any
        return ""
    for start, rules in READERS.items():
        if (key == start or (start.endswith(".") and key.startswith(start))) and memory.rule not in rules:
            return f"model.memory.rule={memory.rule}"
    if key.startswith("qk_projection.") and key != "qk_projection.range":
        return "model.memory.qk_projection.range=off" * (memory.qk_projection.range is ProjectionRange.off)
    if key == "curvature_max" or key.endswith(".iterations_global"):
        return "model.memory.use_global=false" * (not memory.use_global)
    return ""
