"""Floating-point operations of the model's products, from the configuration alone (docs/memory.md section 5, "Cost").

A multiplication and an addition are two operations. What is done by element, such as norms and gates, is not counted,
nor is what a form computes twice (`recompute`, logits in pieces) or masks away.

Legend: T tokens of a sequence, D model width, H heads, d head width, h hidden width and p feature width of the memory,
C chunk, c window of a rule, I iterations of Newton-Schulz.
"""

from __future__ import annotations

from typing import NamedTuple

from atlas.config import ChunkSizeConfig, MemoryConfig, ModelConfig, ProjectionRange, Rule
from atlas.models.convolution import CONVOLUTION
from atlas.ops.features import feature_counts
from atlas.ops.rules import learning_rule


class Flops(NamedTuple):
    """Operations of one token in the forward pass, by part; the mean over the tokens of a sequence."""

    attention: float  # projections, scores, and the output projection of the blocks
    memory: float  # projections, Q-K projection, reads and writes of all memories, Newton-Schulz
    gate: float
    feedforward: float
    head: float  # logits

    @property
    def forward(self) -> float:
        return sum(self)

    @property
    def training(self) -> float:
        """Forward and backward: the gradient of a product is two products of its size."""
        return 3 * self.forward


def flops_per_token(model: ModelConfig, chunks: ChunkSizeConfig, sequence: int) -> Flops:
    """Of sequences of `sequence` tokens that start without a state."""
    width, memory = model.width, model.memory
    seen = _mean_window(model.window, sequence) + model.persistent_keys
    layer = {
        "attention": 4 * width**2 + 2 * width * seen,
        "memory": _memory(model, chunks) if memory.enabled else 0.0,
        "gate": width**2 if memory.enabled else 0,
        "feedforward": 3 * width * model.feedforward,
    }
    of_layers = {part: 2.0 * model.layers * products for part, products in layer.items()}
    return Flops(**of_layers, head=2.0 * width * model.vocabulary)


def _mean_window(window: int, sequence: int) -> float:
    """Tokens that a token sees, itself included: the mean over a sequence."""
    if window == 0 or window >= sequence:
        return (sequence + 1) / 2
    return window - window * (window - 1) / (2 * sequence)


def _memory(model: ModelConfig, chunks: ChunkSizeConfig) -> float:
    """Multiplications of a token in one layer."""
    memory, width, heads = model.memory, model.width, model.heads
    head_width = width // heads
    local = len(chunks.local)
    memories = local + memory.use_global
    gates = 1 + sum(not control.fixed for control in learning_rule(memory).controls)  # the inner rate and the rule's
    shared = 3 * width**2 + 3 * width * CONVOLUTION * memory.convolution + gates * width * heads * memories
    match memory.qk_projection.range:
        case ProjectionRange.off:
            projected = 0
        case ProjectionRange.chunk:
            projected = local
        case ProjectionRange.shard:
            projected = 1
    head = 2.0 * head_width**2 * projected  # M q and k k^T
    if memory.feature_width:  # of the keys and of every distinct query
        head += head_width * memory.feature_width * (1 + memory.use_global + max(projected, 1))
    head += sum(_chunked(memory, head_width, chunk, prefix=True) for chunk in chunks.local)
    if memory.curvature_max_local:
        head += sum(chunk * (head_width + 1) for chunk in chunks.local)  # k . k_t, and times the rates
    if memory.use_global:
        head += _chunked(memory.of_global(), head_width, chunks.global_size, prefix=False)
        head += head_width**2 * (memory.curvature_max > 0)  # k k^T
    return shared + heads * head


def _chunked(memory: MemoryConfig, width: int, chunk: int, *, prefix: bool) -> float:
    """Multiplications of a token and head in one memory: reads, writes and the end of the chunk.

    With `prefix` tokens read what was written in their chunk, unless the rule reads its start only. A rule of your own
    counts as `gd`.
    """
    rule = Rule.gd if memory.own_rule else memory.rule
    window = {Rule.omega: memory.omega.window, Rule.atlas: memory.atlas.window}.get(rule, 1)
    hidden, features = memory.hidden, sum(feature_counts(memory.feature_width or width, memory.degree))
    written = chunk + window - 1  # of a chunk
    total = hidden * (2 * features + width) + (4 * features + 3 * width) * hidden * written / chunk
    if prefix and not learning_rule(memory).reads_start:
        total += written * (features + 3 * hidden + width)
        total += chunk * written if rule is Rule.omega else 0
    total += written if rule is Rule.omega else 0
    if rule in (Rule.muon, Rule.atlas):
        iterations = (memory.muon if rule is Rule.muon else memory.atlas).iterations
        total += iterations * (_iteration(width, hidden) + 2 * _iteration(hidden, features)) / chunk
    return total


def _iteration(rows: int, columns: int) -> int:
    """Multiplications of an iteration of Newton-Schulz: Y Y^T, its square, and the product with Y."""
    small, large = sorted((rows, columns))
    return 2 * small**2 * large + small**3
