"""The run configuration: every setting, its default, its range, and the checks across settings.

This module imports no torch, so that `--help`, `--cfg job` and a refused value answer at once. A refused value raises
`ConfigError`, whose message names the key, the value and what is allowed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

# Constants of the papers, and the defaults of full-size models. A small model scales all of them down together.
C_G = 2048  # chunk of the global memory, tokens (TNT section 5.1)
C_L_OPTIONS = (8, 16, 32, 64)  # chunks of the local memories, tokens
S_L = 2048  # shard of the local memories, tokens
K = 5  # Newton-Schulz iterations (ATLAS section 5)
PERSISTENT_KEYS = 64  # N_p
VOCABULARY = 256  # bytes
# May differ when a run is continued: where and how often something is written, not its numbers.
CHANGEABLE = ("logger", "telemetry", "checkpoint", "device.threads", "debug", "resume")


class ConfigError(ValueError):
    """A setting that cannot be used. The message is meant to be shown to the user as it is."""


def require(holds: bool, key: str, value: object, allowed: str) -> None:
    """Raise `ConfigError` unless `holds`; the message names key, value and what is allowed."""
    if not holds:
        raise ConfigError(f"{key}={value}: must be {allowed}")


class Fusion(StrEnum):
    multiplicative = "multiplicative"
    additive = "additive"


class Rule(StrEnum):
    gd = "gd"  # gradient descent (TNT Eq 3)
    momentum = "momentum"  # with momentum and retention (Titans)
    muon = "muon"  # momentum, orthogonalised by Newton-Schulz (ATLAS Eq 32-33)
    omega = "omega"  # gradients of the last c tokens (ATLAS Eq 8-10)


class ProjectionRange(StrEnum):
    chunk = "chunk"
    shard = "shard"
    off = "off"


class Normalisation(StrEnum):
    sum = "sum"
    per_key = "per_key"


class GateAction(StrEnum):
    abort = "abort"
    warn = "warn"
    off = "off"


class DeviceKind(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(StrEnum):
    auto = "auto"  # bf16 on CUDA, fp32 elsewhere
    fp32 = "fp32"
    bf16 = "bf16"


@dataclass
class ChunkSizeConfig:
    """Chunks and shard of the memories, in tokens (TNT Eq 5-6). One local memory per entry of `local`."""

    local: list[int] = field(default_factory=lambda: [16])
    global_size: int = C_G
    shard: int = S_L

    def __post_init__(self) -> None:
        require(len(self.local) > 0, "chunk_size.local", self.local, "a list of at least one chunk size")
        require(self.shard >= 1, "chunk_size.shard", self.shard, ">= 1")
        require(self.global_size >= 1, "chunk_size.global_size", self.global_size, ">= 1")
        for size in self.local:
            require(
                size >= 1 and self.shard % size == 0,
                "chunk_size.local",
                self.local,
                f"positive divisors of chunk_size.shard={self.shard}; {size} is not one",
            )


@dataclass
class QKProjectionConfig:
    """How local memories turn a query into `q'` (TNT Eq 7; the paper contradicts itself on range and normalisation)."""

    range: ProjectionRange = ProjectionRange.shard
    normalisation: Normalisation = Normalisation.sum
    renormalise: bool = True  # q' is L2-normalised again before the memory reads it


@dataclass
class MemoryConfig:
    """The neural memory of every block."""

    enabled: bool = True
    use_global: bool = True
    rule: Rule = Rule.gd
    hidden: int = 64  # h, hidden width of the gated MLP, per head
    rate_max: float = 1.0  # upper bound of the inner rate eta
    rate_init: float = 0.1  # inner rate of a token before training
    weight_norm_max: float = 8.0  # Frobenius norm that each fast weight is scaled back to at chunk ends
    convolution: bool = True  # causal depthwise convolution of width 4 on q, k, v
    activate_keys: bool = False  # SiLU on q and k as in Titans; collapses the Q-K projection
    degree: int = 1  # of the polynomial features of keys and queries
    feature_width: int = 0  # width of keys and queries before the polynomial, by a learnable projection; 0 = head width
    momentum: float = 0.5  # rules momentum, muon: theta of a token before training; 0 = none, fixed
    retention: float = 0.999  # rules momentum, muon: alpha of a token before training; 1 = keep all, fixed
    muon_rate_max: float = 1.0  # rule muon: upper bound of the rate of an orthogonalised update
    muon_rate_init: float = 0.1  # rule muon: that rate before training
    muon_iterations: int = K  # rule muon: Newton-Schulz iterations
    omega_window: int = 4  # rule omega: c, tokens
    omega_gate: float = 0.25  # rule omega: gamma of a token before training; 1 = open, fixed
    recompute: bool = False  # the backward pass computes chunks again instead of keeping them: less memory, more time
    qk_projection: QKProjectionConfig = field(default_factory=QKProjectionConfig)

    def __post_init__(self) -> None:
        require(self.hidden >= 1, "model.memory.hidden", self.hidden, ">= 1")
        require(0 < self.rate_max <= 4, "model.memory.rate_max", self.rate_max, "in (0, 4]")
        require(
            0 < self.rate_init < self.rate_max,
            "model.memory.rate_init",
            self.rate_init,
            f"in (0, model.memory.rate_max={self.rate_max})",
        )
        require(self.weight_norm_max > 0, "model.memory.weight_norm_max", self.weight_norm_max, "> 0")
        require(self.degree in (1, 2), "model.memory.degree", self.degree, "1 or 2")
        require(self.feature_width >= 0, "model.memory.feature_width", self.feature_width, ">= 0 (0 = head width)")
        self._check_rules()

    def _check_rules(self) -> None:
        require(0 <= self.momentum < 1, "model.memory.momentum", self.momentum, "in [0, 1)")
        require(0 < self.retention <= 1, "model.memory.retention", self.retention, "in (0, 1]")
        require(0 < self.muon_rate_max <= 4, "model.memory.muon_rate_max", self.muon_rate_max, "in (0, 4]")
        require(
            0 < self.muon_rate_init < self.muon_rate_max,
            "model.memory.muon_rate_init",
            self.muon_rate_init,
            f"in (0, model.memory.muon_rate_max={self.muon_rate_max})",
        )
        require(self.muon_iterations >= 1, "model.memory.muon_iterations", self.muon_iterations, ">= 1")
        require(self.omega_window >= 1, "model.memory.omega_window", self.omega_window, ">= 1 token")
        require(0 < self.omega_gate <= 1, "model.memory.omega_gate", self.omega_gate, "in (0, 1]")


@dataclass
class NativeLengths:
    """Lengths, in tokens, that a model size is made for; other groups read them by interpolation."""

    sequence: int = 512
    shard: int = 128
    global_size: int = 128
    needle_distance: int = 64  # beyond the reach of attention: layers * (window - 1)


@dataclass
class ModelConfig:
    """A language model of MAG blocks."""

    width: int = 128  # D
    layers: int = 2
    heads: int = 2  # H; head width d = D / H
    window: int = 32  # tokens that attention sees, itself included; 0 = all (full causal attention)
    feedforward: int = 352  # hidden width of the SwiGLU
    persistent_keys: int = PERSISTENT_KEYS  # learnable keys of the prefix and the Q-K projection; 0 = none
    fusion: Fusion = Fusion.multiplicative
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    native: NativeLengths = field(default_factory=NativeLengths)

    def __post_init__(self) -> None:
        for key in ("width", "layers", "heads", "feedforward"):
            require(getattr(self, key) >= 1, f"model.{key}", getattr(self, key), ">= 1")
        require(
            self.width % self.heads == 0,
            "model.heads",
            self.heads,
            f"a divisor of model.width={self.width}",
        )
        require(
            (self.width // self.heads) % 2 == 0,
            "model.heads",
            self.heads,
            f"such that the head width model.width/model.heads={self.width / self.heads:g} is even (RoPE)",
        )
        require(
            self.persistent_keys >= self.memory.enabled,
            "model.persistent_keys",
            self.persistent_keys,
            ">= 1 with a memory, >= 0 without",
        )
        require(self.window >= 0, "model.window", self.window, ">= 0 (0 = full causal attention)")


@dataclass
class GateConfig:
    """Gate polarisation loss (AC-P1-2) and the fast-fail monitor."""

    polarisation_peak: float = 10.0  # lambda during the first `polarisation_hold` of the steps
    polarisation_hold: float = 0.1
    polarisation_decay: float = 0.01  # afterwards lambda = peak * decay ** progress
    monitor: GateAction = GateAction.abort
    monitor_start: int = 100
    monitor_check: int = 500
    variance_ratio_min: float = 1.5
    nontrivial_std: float = 0.1  # gates of this std pass whatever their growth (AC-P1-5)
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
    gate: GateConfig = field(default_factory=GateConfig)

    def __post_init__(self) -> None:
        for key in ("steps", "batch_size", "sequence", "accumulate", "validation_every", "validation_batches"):
            require(getattr(self, key) >= 1, f"train.{key}", getattr(self, key), ">= 1")
        require(self.gradient_clip >= 0, "train.gradient_clip", self.gradient_clip, ">= 0 (0 = off)")
        require(
            self.batch_size % self.accumulate == 0,
            "train.accumulate",
            self.accumulate,
            f"a divisor of train.batch_size={self.batch_size}",
        )


NIAH_LEVELS = ("accumulator", "memory", "recall")
NIAH_TASKS = ("single", "multi_key", "multi_query", "text", "mqar", "ruler")


@dataclass
class NIAHConfig:
    """Needle-in-a-haystack probes. `samples` is needles per cell of the recall grid, per layer at the key levels."""

    enabled: bool = True
    every: int = 1000  # steps; the last step is always probed
    levels: list[str] = field(default_factory=lambda: list(NIAH_LEVELS))
    haystack: int = 100  # keys (accumulator) or tokens (memory) written after the needle
    accumulator_degree: int = 2  # of the features that accumulator keys pass or fail on; 1 = the keys themselves
    threshold: float = 0.8
    lengths: list[int] = field(default_factory=list)  # tokens; empty: the trained length times `length_factors`
    length_factors: list[int] = field(default_factory=lambda: [1])
    depths: list[float] = field(default_factory=lambda: [0.0, 0.5, 0.85])  # of the needle, 0 = the start
    tasks: list[str] = field(default_factory=lambda: ["single", "text"])
    all_depths: bool = False  # every task over all depths; otherwise only `single`, the rest at the first depth
    distractors: int = 3  # other needles of the tasks multi_key and multi_query
    frozen: bool = False  # a second control: a memory that reads and never writes
    samples: int = 8
    seed: int = 1234

    def __post_init__(self) -> None:
        require(self.every >= 1, "niah.every", self.every, ">= 1 (niah=off switches the probes off)")
        require(len(self.levels) > 0, "niah.levels", self.levels, "at least one (niah=off switches the probes off)")
        for level in self.levels:
            require(level in NIAH_LEVELS, "niah.levels", self.levels, f"some of {list(NIAH_LEVELS)}")
        require(self.haystack >= 1, "niah.haystack", self.haystack, ">= 1")
        require(self.accumulator_degree in (1, 2), "niah.accumulator_degree", self.accumulator_degree, "1 or 2")
        require(0 < self.threshold <= 1, "niah.threshold", self.threshold, "in (0, 1]")
        require(all(length >= 1 for length in self.lengths), "niah.lengths", self.lengths, ">= 1")
        factors = self.length_factors
        require(len(factors) > 0 and min(factors) >= 1, "niah.length_factors", factors, "at least one, each >= 1")
        require(len(self.depths) > 0, "niah.depths", self.depths, "at least one")
        require(all(0 <= d <= 1 for d in self.depths), "niah.depths", self.depths, "in [0, 1]")
        known = all(task in NIAH_TASKS for task in self.tasks)
        require(known and "single" in self.tasks, "niah.tasks", self.tasks, f"single and some of {list(NIAH_TASKS)}")
        require(1 <= self.distractors <= 100, "niah.distractors", self.distractors, "in [1, 100]")
        require(self.samples >= 1, "niah.samples", self.samples, ">= 1")
        require(0 <= self.seed < 2**63, "niah.seed", self.seed, "in [0, 2**63)")


class RollbackAction(StrEnum):
    skip = "skip"  # leave out the batches between the checkpoint and the spike
    lower_lr = "lower_lr"  # multiply the learning rate by `lr_factor` and read the same batches again


TRIGGERS = ("perplexity", "non_finite", "gate", "niah")


@dataclass
class RollbackConfig:
    """Spike watch and automatic rollback.

    Watched is the perplexity of a few fixed validation rows: it is read every `watch_every` steps, and every
    `suspect_every` steps while the training loss or the last reading is suspicious.
    """

    enabled: bool = True  # False: spikes are recorded and nothing is restored
    observe: bool = False  # like False, and the distribution of ppl_delta is written at the end (protocol 4.3)
    triggers: list[str] = field(default_factory=lambda: ["perplexity", "non_finite"])
    # A spike: perplexity above (1 + threshold) * its moving average, and out of line with its own recent spread.
    threshold: float = 0.05
    ema: float = 0.6  # smoothing of the moving average, per reading; more lags behind a run that learns
    warmup: int = 100  # steps before the watch can trigger
    patience: int = 3  # consecutive readings above the threshold that make a spike
    watch_every: int = 20  # steps between readings of a calm run
    suspect_every: int = 4  # steps between readings while something is suspicious
    watch_rows: int = 2  # sequences read
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


@dataclass
class CheckpointConfig:
    every: int = 250  # steps; the last step is always saved
    keep: int = 3  # newest checkpoints kept, besides the best one

    def __post_init__(self) -> None:
        require(self.every >= 1, "checkpoint.every", self.every, ">= 1")
        require(self.keep >= 2, "checkpoint.keep", self.keep, ">= 2 (the newest may be damaged)")


@dataclass
class DeviceConfig:
    kind: DeviceKind = DeviceKind.auto
    precision: Precision = Precision.auto
    threads: int = 0  # CPU threads; 0 = torch's own choice
    compile: bool = False  # compile the chunk step of the memory


@dataclass
class TelemetryConfig:
    every: int = 100  # steps between rows of metrics.jsonl

    def __post_init__(self) -> None:
        require(self.every >= 1, "telemetry.every", self.every, ">= 1")


@dataclass
class DebugConfig:
    inject: str | None = None


@dataclass
class RunConfig:
    """One run. `data`, `optim` and `logger` are components: a `_target_` with its keyword arguments."""

    model: ModelConfig = field(default_factory=ModelConfig)
    chunk_size: ChunkSizeConfig = field(default_factory=ChunkSizeConfig)
    data: dict[str, Any] = field(default_factory=dict)
    optim: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)
    train: TrainConfig = field(default_factory=TrainConfig)
    niah: NIAHConfig = field(default_factory=NIAHConfig)
    rollback: RollbackConfig = field(default_factory=RollbackConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    debug: DebugConfig = field(default_factory=DebugConfig)
    seed: int = 0
    resume: str | None = None
    init_from: str | None = None

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, "seed", self.seed, "in [0, 2**63)")
        if self.model.memory.enabled:
            self._check_chunks()
        if self.niah.enabled and "recall" in self.niah.levels:
            self._check_needle_lengths()

    def _check_needle_lengths(self) -> None:
        """A needle that attention can see says nothing about the memory."""
        reach = self.model.layers * (self.model.window - 1)
        for length in self.niah.lengths:
            allowed = f"> {reach} tokens, the reach of attention (model.layers * (model.window - 1)); {length} is not"
            require(length > reach, "niah.lengths", self.niah.lengths, allowed)

    def _check_chunks(self) -> None:
        sequence, shard = self.train.sequence, self.chunk_size.shard
        padded = self.train.pad_shards
        smallest = min(*self.chunk_size.local, self.chunk_size.global_size)
        window = self.model.memory.omega_window
        require(
            self.model.memory.rule is not Rule.omega or window <= smallest,
            "model.memory.omega_window",
            window,
            f"<= {smallest}, the smallest chunk of chunk_size",
        )
        require(
            shard <= sequence or padded,
            "chunk_size.shard",
            shard,
            f"<= train.sequence={sequence} (or set train.pad_shards=true)",
        )
        require(
            sequence % shard == 0 or padded,
            "train.sequence",
            sequence,
            f"a multiple of chunk_size.shard={shard} (or set train.pad_shards=true)",
        )
        carried = self.train.carry_memory
        if self.model.memory.use_global:
            require(
                self.chunk_size.global_size <= sequence or carried,
                "chunk_size.global_size",
                self.chunk_size.global_size,
                f"<= train.sequence={sequence}, else the global memory is never written"
                " (or set train.carry_memory=true)",
            )
        if carried:
            grid_fits = sequence % shard == 0 and sequence % min(self.chunk_size.global_size, sequence) == 0
            require(
                grid_fits,
                "train.carry_memory",
                carried,
                f"used with train.sequence={sequence} a multiple of chunk_size.shard and of chunk_size.global_size",
            )
