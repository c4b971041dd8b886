"""Settings that nothing reads are told."""

from __future__ import annotations

import pytest

import atlas
from atlas.config.composition import options
from atlas.runs.unread_settings import unread_settings


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["momentum=0.9"], ["momentum=0.9 changes nothing with model.memory.rule=gd"]),
        (["momentum=0.9", "rule=momentum"], []),
        (["momentum=0.9", "retention=0.9", "rule=atlas"], []),
        (
            ["rule=omega", "retention=0.9", "omega.retention=0.9"],
            ["retention=0.9 changes nothing with model.memory.rule=omega"],
        ),
        (["rule=muon", "omega.window=2"], ["omega.window=2 changes nothing with model.memory.rule=muon"]),
        (["rule=muon", "muon.iterations=3", "muon.iterations_global=2"], []),
        (
            ["use_global=false", "curvature_max=1"],
            ["curvature_max=1.0 changes nothing with model.memory.use_global=false"],
        ),
        (
            ["qk_projection.range=off", "qk_projection.mix=false"],
            ["qk_projection.mix=False changes nothing with model.memory.qk_projection.range=off"],
        ),
        (["enabled=false", "hidden=32"], ["hidden=32 changes nothing with model.memory.enabled=false"]),
    ],
)
def test_a_setting_without_a_reader_is_told(overrides: list[str], told: list[str]) -> None:
    config = atlas.compose([f"model.memory.{override}" for override in overrides])
    assert unread_settings(config) == [f"model.memory.{line}" for line in told]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["gate_sharpness_max=20"], []),
        (["gate_sharpness_max=20", "fusion=multiplicative"], []),
        (["gate_sharpness_max=0", "fusion=additive"], []),
        (
            ["gate_sharpness_max=20", "fusion=additive"],
            ["gate_sharpness_max=20.0 changes nothing with model.fusion=additive"],
        ),
        (
            ["gate_sharpness_max=20", "fusion=multiplicative", "memory.enabled=false"],
            [
                "gate_sharpness_max=20.0 changes nothing with model.memory.enabled=false",
                "fusion=multiplicative changes nothing with model.memory.enabled=false",
            ],
        ),
    ],
)
def test_a_setting_of_a_gate_that_is_not_there_is_told(overrides: list[str], told: list[str]) -> None:
    config = atlas.compose([f"model.{override}" for override in overrides])
    assert unread_settings(config) == [f"model.{line}" for line in told]


OFF = "changes nothing with stage2.enabled=false (experiment=stage2 switches it on)"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["stage2.start=16", "stage2.clip=1"], [f"stage2.start=16 {OFF}", f"stage2.clip=1.0 {OFF}"]),
        (
            ["stage2.enabled=true", "stage2.start=16", "train.gradient_clip=2"],
            ["train.gradient_clip=2.0 changes nothing with stage2.enabled=true: stage2.clip is in its place"],
        ),
        (["optim.decay=0.5", "optim.lr=1"], ["optim.decay=0.5 changes nothing with optim.schedule=cosine"]),
        (["optim.decay=0.5", "optim.schedule=wsd"], []),
        (["rollback.lr_factor=0.1"], ["rollback.lr_factor=0.1 changes nothing with rollback.action=skip"]),
        (["rollback.lr_factor=0.1", "rollback.action=lower_lr"], []),
        (["calibration.tokens=64"], ["calibration.tokens=64 changes nothing with calibration.enabled=false"]),
        (
            ["ablation=additive", "train.gate.polarisation_peak=1", "train.gate.monitor=off"],
            ["train.gate.polarisation_peak=1.0 changes nothing with model.fusion=additive"],
        ),
    ],
)
def test_a_setting_of_training_without_a_reader_is_told(overrides: list[str], told: list[str]) -> None:
    assert unread_settings(atlas.compose(overrides)) == told


def test_no_option_brings_one() -> None:
    for group in ("ablation", "model", "chunk_size", "optim"):
        for option in options(group):
            assert unread_settings(atlas.compose([f"{group}={option}"])) == [], (group, option)
