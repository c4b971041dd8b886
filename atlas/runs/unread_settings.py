"""Settings of model and training that were changed and that nothing in this run reads: told before step 1.

Two runs that differ in such a setting alone are the same run; a sweep over it would compare a model with itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from atlas.config import (
    CalibrationConfig,
    Fusion,
    MemoryConfig,
    ModelConfig,
    ProjectionRange,
    RollbackAction,
    RollbackConfig,
    Rule,
    RunConfig,
    Stage2Config,
    TrainConfig,
)
from atlas.config.components import own_targets
from atlas.config.keys import flat, lies_in

WITH_MOMENTUM = {Rule.momentum, Rule.muon, Rule.atlas}
GROUPS = {"stage2": Stage2Config, "train": TrainConfig, "rollback": RollbackConfig, "calibration": CalibrationConfig}
USUAL_DECAY = 0.2  # of optim.decay, in conf/optim
READERS = {  # the rules that read a setting, or settings that begin so
    "momentum": WITH_MOMENTUM,
    "retention": WITH_MOMENTUM,
    "muon.": {Rule.muon},
    "omega.": {Rule.omega},
    "atlas.": {Rule.atlas},
}


def unread_settings(config: RunConfig) -> list[str]:
    """A line each; [] where every changed setting has a reader."""
    return [*_of_memory(config.model.memory), *_of_gate(config.model), *_of_training(config)]


def _of_training(config: RunConfig) -> list[str]:
    usual = flat({name: asdict(made()) for name, made in GROUPS.items()} | {"optim": {"decay": USUAL_DECAY}})
    now = flat(asdict(config))
    changed = [key for key, value in now.items() if key in usual and value != usual[key]]
    return [
        f"{key}={now[key]} changes nothing with {reason}"
        for name, reason in _unread_in_training(config)
        for key in changed
        if lies_in(key, [name])
    ]


def _unread_in_training(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Settings or groups, and why nothing reads them."""
    if config.stage2.enabled:
        yield "train.gradient_clip", "stage2.enabled=true: stage2.clip is in its place"
    else:
        yield "stage2", "stage2.enabled=false (experiment=stage2 switches it on)"
    schedule = config.optim.get("schedule")
    if schedule != "wsd" and config.optim.get("_target_") in own_targets("optim"):
        yield "optim.decay", f"optim.schedule={schedule}"
    if config.rollback.action is RollbackAction.skip:
        yield "rollback.lr_factor", "rollback.action=skip"
    if not config.calibration.enabled:
        yield "calibration.tokens", "calibration.enabled=false"
        yield "calibration.attempts", "calibration.enabled=false"
    memory, gateless = config.model.memory.enabled, config.model.fusion is Fusion.additive
    if gateless or not memory:
        reason = "model.fusion=additive" if memory else "model.memory.enabled=false"
        for key in ("peak", "hold", "decay"):
            yield f"train.gate.polarisation_{key}", reason


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
