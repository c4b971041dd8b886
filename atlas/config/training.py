"""Settings of the training loop, the gates, rollback and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from math import lcm

from atlas.config.choices import Choices
from atlas.config.errors import require


class GateAction(StrEnum):
    abort = "abort"
    warn = "warn"
    off = "off"


@dataclass
class GateConfig(Choices, prefix="train.gate."):
    """Gate polarisation loss (docs/memory.md section 1) and the fast-fail monitor."""

    polarisation_peak: float = 10.0  # weight of the loss during the first `polarisation_hold` of the steps
    polarisation_hold: float = 0.1
    polarisation_decay: float = 0.01  # afterwards the weight is peak * decay ** progress
    monitor: GateAction = GateAction.abort
    monitor_start: int = 100
    monitor_check: int = 500
    variance_ratio_min: float = 1.5
    nontrivial_std: float = 0.1  # gates of this std pass whatever their growth
    std_min: float = 0.01

    def __post_init__(self) -> None:
        require(self.polarisation_peak >= 0, "train.gate.polarisation_peak", self.polarisation_peak, ">= 0")
        require(0 <= self.polarisation_hold <= 1, "train.gate.polarisation_hold", self.polarisation_hold, "in [0, 1]")
        require(0 < self.polarisation_decay <= 1, "train.gate.polarisation_decay", self.polarisation_decay, "in (0, 1]")
        require(
            1 <= self.monitor_start < self.monitor_check,
            "train.gate.monitor_start",
            self.monitor_start,
            f">= 1 and < train.gate.monitor_check={self.monitor_check}",
        )
        require(self.variance_ratio_min >= 0, "train.gate.variance_ratio_min", self.variance_ratio_min, ">= 0")
        for key in ("nontrivial_std", "std_min"):
            value = getattr(self, key)
            require(0 <= value < 0.5, f"train.gate.{key}", value, "in [0, 0.5): gates in [0, 1] have no larger std")


@dataclass
class TrainConfig:
    """The training loop."""

    steps: int = 1000
    batch_size: int = 8  # sequences per optimiser step, all accumulated micro-batches together
    sequence: int = 512  # tokens per sequence
    accumulate: int = 1  # micro-batches per optimiser step
    gradient_clip: float = 1.0  # global norm; 0 = off
    carry_memory: bool = False  # truncated back-propagation: a document's next segment starts from its memory
    pad_shards: bool = False  # allow a sequence that is no multiple of the shard: its last shard is shorter
    validation_every: int = 250  # steps between validations; the last step always validates
    validation_batches: int = 4  # batches of the fixed validation set
    patience: int = 0  # validations in a row without a lower loss that end the run; 0 = never
    ema: float = 0.0  # decay per step of an average of the weights, validated beside them; 0 = none
    gate: GateConfig = field(default_factory=GateConfig)

    def __post_init__(self) -> None:
        for key in ("steps", "batch_size", "sequence", "accumulate", "validation_every", "validation_batches"):
            require(getattr(self, key) >= 1, f"train.{key}", getattr(self, key), ">= 1")
        require(self.patience >= 0, "train.patience", self.patience, ">= 0 (0 = no early stop)")
        require(0 <= self.ema < 1, "train.ema", self.ema, "in [0, 1) (0 = no average)")
        require(self.gradient_clip >= 0, "train.gradient_clip", self.gradient_clip, ">= 0 (0 = off)")
        require(
            self.batch_size % self.accumulate == 0,
            "train.accumulate",
            self.accumulate,
            f"a divisor of train.batch_size={self.batch_size}",
        )

    def require_parts(self, groups: int, context: int = 1) -> None:
        """Raise `ConfigError` where the batch cannot be cut into equal micro-batches for so many groups of `context`
        processes."""
        parts = lcm(self.accumulate, groups)
        processes = f"{groups} processes" if context == 1 else f"{groups} groups of {context} processes"
        least = f"least common multiple of train.accumulate={self.accumulate} and {processes}"
        require(self.batch_size % parts == 0, "train.batch_size", self.batch_size, f"a multiple of {parts} ({least})")


class RollbackAction(StrEnum):
    skip = "skip"  # leave out the batches between the checkpoint and the spike
    lower_lr = "lower_lr"  # multiply the learning rate by `lr_factor` and read the same batches again


TRIGGERS = ("perplexity", "non_finite", "gate", "niah")


@dataclass
class RollbackConfig(Choices, prefix="rollback."):
    """Spike watch and automatic rollback.

    The perplexity of a few fixed validation sequences is read every `watch_every` steps, and every
    `suspect_every` steps while the training loss or the last reading is suspicious.
    """

    enabled: bool = True  # False: spikes are recorded and nothing is restored
    observe: bool = False  # like False, and the distribution of ppl_delta is written at the end
    triggers: list[str] = field(default_factory=lambda: ["perplexity", "non_finite"])
    # A spike: perplexity above (1 + threshold) * its moving average, and out of line with its own recent spread.
    threshold: float = 0.05
    ema: float = 0.6  # smoothing of the moving average, per reading; more lags behind a run that learns
    warmup: int = 100  # steps before a finite perplexity can trigger; the other triggers do not wait
    patience: int = 3  # consecutive readings above the threshold that make a spike
    watch_every: int = 20  # steps between readings of a calm run
    suspect_every: int = 4  # steps between readings while something is suspicious
    watch_rows: int = 2  # sequences read, of the first validation batch
    action: RollbackAction = RollbackAction.skip
    lr_factor: float = 0.5
    limit: int = 3  # rollbacks; the next trigger aborts the run

    def __post_init__(self) -> None:
        for trigger in self.triggers:
            require(trigger in TRIGGERS, "rollback.triggers", self.triggers, f"some of {list(TRIGGERS)}")
        require(self.threshold > 0, "rollback.threshold", self.threshold, "> 0")
        require(0 <= self.ema < 1, "rollback.ema", self.ema, "in [0, 1)")
        require(self.warmup >= 0, "rollback.warmup", self.warmup, ">= 0")
        for key in ("patience", "watch_every", "suspect_every", "watch_rows"):
            require(getattr(self, key) >= 1, f"rollback.{key}", getattr(self, key), ">= 1")
        require(0 < self.lr_factor <= 1, "rollback.lr_factor", self.lr_factor, "in (0, 1]")
        require(self.limit >= 0, "rollback.limit", self.limit, ">= 0")


class CheckpointLayout(StrEnum):
    whole = "whole"  # one file, written by one process
    sharded = "sharded"  # every process writes its part, into a folder that all of them see


@dataclass
class CheckpointConfig(Choices, prefix="checkpoint."):
    every: int = 250  # steps; the last step is always saved
    keep: int = 3  # newest checkpoints kept, besides the best one
    on_stop: bool = True  # Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 save the step that the run has reached
    layout: CheckpointLayout = CheckpointLayout.whole

    def __post_init__(self) -> None:
        require(self.every >= 1, "checkpoint.every", self.every, ">= 1")
        require(self.keep >= 2, "checkpoint.keep", self.keep, ">= 2 (the newest may be damaged)")
