"""Settings of the language model and its memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from atlas.config.choices import Choices
from atlas.config.errors import require
from atlas.config.rules import RuleConfig

# Constants of the papers, and the defaults of full-size models. A small model scales all of them down together.
C_G = 2048  # chunk of the global memory, tokens (TNT section 5.1)
C_L_OPTIONS = (8, 16, 32, 64)  # chunks of the local memories, tokens
S_L = 2048  # shard of the local memories, tokens
PERSISTENT_KEYS = 64  # N_p
VOCABULARY = 256  # bytes

LIMITS = (1e-15, 1e15)  # of weights and curvature: their squares have to be numbers in float32

# Of the gates before training: their logits have unit variance, so more than 8 of 10 start below 0.1 or above 0.9.
GATE_SHARPNESS = 10.0


class Fusion(StrEnum):
    multiplicative = "multiplicative"  # a * g
    gated_sum = "gated_sum"  # (a + m W_g) * g: the memory's output has a path of its own
    additive = "additive"  # a + m W_g + b_g: an ablation, no gate can close the branch


class ProjectionRange(StrEnum):
    chunk = "chunk"
    shard = "shard"
    off = "off"


class Normalisation(StrEnum):
    sum = "sum"
    per_key = "per_key"


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
class QKProjectionConfig(Choices, prefix="model.memory.qk_projection."):
    """How local memories turn a query into `q'` (TNT Eq 7; the paper contradicts itself on range and normalisation)."""

    range: ProjectionRange = ProjectionRange.shard
    normalisation: Normalisation = Normalisation.sum
    renormalise: bool = True  # queries of the local memories are L2-normalised again
    mix: bool = True  # they read with q + lambda q' instead of q', lambda learnable per head, 0 before training


@dataclass
class MemoryConfig(RuleConfig, prefix="model.memory."):
    """The neural memory of every block; its learning rule is in `rules.py`."""

    enabled: bool = True
    use_global: bool = True
    hidden: int = 64  # h, hidden width of the gated MLP, per head
    rate_max: float = 1.0  # upper bound of the inner rate eta; above 1 float32 gradients are wrong: docs/memory.md 4
    rate_init: float = 0.1  # inner rate of a token before training
    rate_threshold: float = 0.0  # tau in [0, 1): a token whose gate is below it writes nothing; 0 = every token writes
    weight_norm_max: float = 8.0  # times sqrt(h): Frobenius norm of W1 at chunk ends, at most; W2, W3: docs/memory.md 4
    curvature_max: float = 2.0  # of a global chunk, in step sizes: its writes are scaled down to it; 0 = no limit
    curvature_max_local: float = 2.0  # sum of the rates of equal keys in a local chunk, scaled down so; 0 = no limit
    convolution: bool = True  # causal depthwise convolution of width 4 on q, k, v
    activate_keys: bool = False  # SiLU on q and k as in Titans; collapses the Q-K projection
    degree: int = 1  # of the polynomial features of keys and queries
    learnable_coefficients: bool = False  # of each degree's features, per head; 1 before training
    feature_width: int = 0  # width of keys and queries before the polynomial, by a learnable projection; 0 = head width
    recompute: bool = False  # the backward pass computes chunks again instead of keeping them: less memory, more time
    qk_projection: QKProjectionConfig = field(default_factory=QKProjectionConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.hidden >= 1, "model.memory.hidden", self.hidden, ">= 1")
        require(0 < self.rate_max <= 1, "model.memory.rate_max", self.rate_max, "in (0, 1]")
        require(
            0 < self.rate_init < self.rate_max,
            "model.memory.rate_init",
            self.rate_init,
            f"in (0, model.memory.rate_max={self.rate_max})",
        )
        require(0 <= self.rate_threshold < 1, "model.memory.rate_threshold", self.rate_threshold, "in [0, 1)")
        least, most = LIMITS
        for key in ("curvature_max", "curvature_max_local", "weight_norm_max"):
            value, off = getattr(self, key), key != "weight_norm_max"
            allowed = f"in [{least:g}, {most:g}]" + " or 0 (no limit)" * off
            require(least <= value <= most or (off and value == 0), f"model.memory.{key}", value, allowed)
        require(self.degree in (1, 2, 3), "model.memory.degree", self.degree, "1, 2 or 3")
        require(self.feature_width >= 0, "model.memory.feature_width", self.feature_width, ">= 0 (0 = head width)")


@dataclass
class NativeLengths:
    """Lengths, in tokens, that a model size is made for; other groups read them by interpolation."""

    sequence: int = 512
    shard: int = 128
    global_size: int = 128
    needle_distance: int = 64  # beyond the reach of attention: layers * (window - 1)
    # Shares of the sequence at which probes ask for needles. Two at least are that far back: with one alone the place
    # of a needle would tell which one is asked for.
    needle_depths: list[float] = field(default_factory=lambda: [0.0, 0.5, 0.85])


@dataclass
class ModelConfig(Choices, prefix="model."):
    """A language model of MAG blocks."""

    vocabulary: int = VOCABULARY  # ids; data of more ids sets their number where this is left as it is
    width: int = 128  # D
    layers: int = 2
    heads: int = 2  # H; head width d = D / H
    window: int = 32  # tokens that attention sees, itself included; 0 = all (full causal attention)
    feedforward: int = 352  # hidden width of the SwiGLU
    persistent_keys: int = PERSISTENT_KEYS  # learnable keys of the prefix and the Q-K projection; 0 = none
    fusion: Fusion = Fusion.gated_sum
    gate_sharpness_max: float = 30.0  # up to which the polarisation loss makes the gates sharper; 0 = no limit
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    native: NativeLengths = field(default_factory=NativeLengths)

    def __post_init__(self) -> None:
        require(self.vocabulary >= VOCABULARY, "model.vocabulary", self.vocabulary, f">= {VOCABULARY}")
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
        sharpest = self.gate_sharpness_max
        allowed = f"> {GATE_SHARPNESS:g}, with which gates start, or 0 (no limit)"
        require(sharpest == 0 or sharpest > GATE_SHARPNESS, "model.gate_sharpness_max", sharpest, allowed)
        require(self.window >= 0, "model.window", self.window, ">= 0 (0 = full causal attention)")
