"""How many operations a training step needs, counted from the configuration (docs/memory.md section 5).

Counted are the matrix products of the model; a multiplication with its addition is two operations. A backward pass
takes twice its forward pass. Products under a causal mask count whole, as is usual. What is done by element, computed
again, or done by the optimiser does not count.

Legend: D model width, H heads, d head width, w window, P persistent keys, h hidden width, p features, C chunk, c window
of a rule, J = C + c - 1 written tokens, I iterations of Newton-Schulz.
"""

from __future__ import annotations

from atlas.config import ChunkSizeConfig, MemoryConfig, ModelConfig, ProjectionRange, Rule
from atlas.ops.features import feature_counts
from atlas.ops.qk_projection.torch import BLOCK
from atlas.ops.rules import learning_rule

PASSES = 3  # forward, and backward for weights and for inputs


def training_flops(model: ModelConfig, chunks: ChunkSizeConfig, sequence: int) -> float | None:
    """Operations of a training step for each of its tokens, in sequences of `sequence` tokens.

    None with a learning rule of your own, whose products are not known.
    """
    if model.memory.enabled and model.memory.own_rule:
        return None
    return 2.0 * PASSES * sum(forward_products(model, chunks, sequence).values())


def forward_products(model: ModelConfig, chunks: ChunkSizeConfig, sequence: int) -> dict[str, float]:
    """Multiplications of the forward pass for each token, by part of the model."""
    width, layers = model.width, model.layers  # D
    seen = min(model.window or sequence, sequence) + model.persistent_keys  # w + P
    parts: dict[str, float] = {
        "attention": layers * (3 * width**2 + 2 * seen * width),
        "output": layers * width**2,
        "feedforward": layers * 3 * width * model.feedforward,
        "head": model.vocabulary * width,
    }
    if model.memory.enabled:
        parts["memory"] = layers * _memory(model, chunks, sequence)
        parts["gate"] = layers * width**2
    return parts


def _memory(model: ModelConfig, chunks: ChunkSizeConfig, sequence: int) -> float:
    """Of one layer: q, k, v, rates and gates of the rule; per head the Q-K projection, the features and the rule."""
    config, width, head = model.memory, model.width, model.width // model.heads  # D, d
    learnt = sum(not control.fixed for control in learning_rule(config).controls)
    periods = _periods(config, chunks)
    per_head = sum(2 * head**2 + 2 * min(BLOCK, period, sequence) * head for period in periods)
    if config.feature_width:
        mapped = 1 + config.use_global + max(len(periods), 1)  # keys, and each distinct query
        per_head += mapped * head * config.feature_width
    per_head += sum(_rule(config, head, min(chunk, sequence), is_global=False) for chunk in chunks.local)
    if config.use_global:
        per_head += _rule(config.of_global(), head, min(chunks.global_size, sequence), is_global=True)
    memories = len(chunks.local) + config.use_global
    return 3 * width**2 + width * model.heads * memories * (1 + learnt) + model.heads * per_head


def _periods(config: MemoryConfig, chunks: ChunkSizeConfig) -> list[int]:
    """Tokens between two resets of the Q-K projection, for each distinct q'."""
    if config.qk_projection.range is ProjectionRange.off:
        return []
    return chunks.local if config.qk_projection.range is ProjectionRange.chunk else [chunks.shard]


def _rule(config: MemoryConfig, head: int, chunk: int, *, is_global: bool) -> float:
    """Of one memory and head: the table of docs/memory.md section 5."""
    hidden = config.hidden
    features = sum(feature_counts(config.feature_width or head, config.degree))
    windows = {Rule.omega: config.omega.window, Rule.atlas: config.atlas.window}
    tokens = chunk + windows.get(config.rule, 1) - 1  # J
    products = 2 * hidden * features + hidden * head  # of the query
    products += tokens / chunk * (4 * hidden * features + 3 * hidden * head)  # of what is written
    orthogonal = {Rule.muon: config.muon, Rule.atlas: config.atlas}.get(config.rule)
    if not is_global and orthogonal is None:
        products += tokens * (features + 3 * hidden + head)  # of the causal prefix
    if config.rule is Rule.omega:
        products += tokens * (1 if is_global else chunk + 1)  # of the share of each write that a token has seen
    if orthogonal is not None:
        for sides in ((head, hidden), (hidden, features), (hidden, features)):
            small, large = sorted(sides)
            products += orthogonal.iterations * (2 * small**2 * large + small**3) / chunk
    return products
