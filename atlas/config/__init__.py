"""The run configuration: every setting, its default, its range, and the checks across settings.

This package imports no torch, so that `--help`, `--cfg job` and a refused value answer at once. A refused value raises
`ConfigError`, whose message names the key, the value and what is allowed.
"""

from __future__ import annotations

from atlas.config.calibration import CalibrationConfig
from atlas.config.continuing import CHANGEABLE
from atlas.config.errors import ConfigError, require, with_extra
from atlas.config.levels import LEVELS, RECALL, Level, Unit, level_of
from atlas.config.model import (
    C_G,
    C_L_OPTIONS,
    PERSISTENT_KEYS,
    S_L,
    VOCABULARY,
    ChunkSizeConfig,
    Fusion,
    MemoryConfig,
    ModelConfig,
    NativeLengths,
    Normalisation,
    ProjectionRange,
    QKProjectionConfig,
)
from atlas.config.niah import JUDGED_TASK, NIAH_TASKS, NIAHConfig
from atlas.config.parallel import ParallelConfig, ParallelKind
from atlas.config.rules import AtlasRuleConfig, K, MuonRuleConfig, OmegaRuleConfig, Rule
from atlas.config.run import (
    MOST_THREADS,
    TRITON_CHUNK,
    TRITON_RULES,
    TRITON_WIDTHS,
    DebugConfig,
    DeviceConfig,
    DeviceKind,
    Kernels,
    Precision,
    RunConfig,
    StepGraphs,
    TelemetryConfig,
)
from atlas.config.stage2 import Stage2Config
from atlas.config.sweep import SweepConfig
from atlas.config.training import (
    TRIGGERS,
    CheckpointConfig,
    CheckpointLayout,
    GateAction,
    GateConfig,
    RollbackAction,
    RollbackConfig,
    TrainConfig,
)
from atlas.config.watch import WATCHERS, WatchAction, WatchConfig

__all__ = [
    "CHANGEABLE",
    "C_G",
    "C_L_OPTIONS",
    "JUDGED_TASK",
    "LEVELS",
    "MOST_THREADS",
    "NIAH_TASKS",
    "PERSISTENT_KEYS",
    "RECALL",
    "S_L",
    "TRIGGERS",
    "TRITON_CHUNK",
    "TRITON_RULES",
    "TRITON_WIDTHS",
    "VOCABULARY",
    "WATCHERS",
    "AtlasRuleConfig",
    "CalibrationConfig",
    "CheckpointConfig",
    "CheckpointLayout",
    "ChunkSizeConfig",
    "ConfigError",
    "DebugConfig",
    "DeviceConfig",
    "DeviceKind",
    "Fusion",
    "GateAction",
    "GateConfig",
    "K",
    "Kernels",
    "Level",
    "MemoryConfig",
    "ModelConfig",
    "MuonRuleConfig",
    "NIAHConfig",
    "NativeLengths",
    "Normalisation",
    "OmegaRuleConfig",
    "ParallelConfig",
    "ParallelKind",
    "Precision",
    "ProjectionRange",
    "QKProjectionConfig",
    "RollbackAction",
    "RollbackConfig",
    "Rule",
    "RunConfig",
    "Stage2Config",
    "StepGraphs",
    "SweepConfig",
    "TelemetryConfig",
    "TrainConfig",
    "Unit",
    "WatchAction",
    "WatchConfig",
    "level_of",
    "require",
    "with_extra",
]
