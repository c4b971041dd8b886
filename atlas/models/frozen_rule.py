"""The contract of a learning rule of your own: where all rates and controls are 0, the weights stay as they are.

Probes and watchers compare with a memory that is frozen so (`MemoryMode.frozen`).
"""

from __future__ import annotations

from math import inf
from typing import Any

import torch

from atlas.config import ConfigError
from atlas.ops.chunk_scan import Scan, open_state
from atlas.ops.dual_form import ChunkInputs
from atlas.ops.fast_weights import FastWeights
from atlas.ops.rules.rule import LearningRule

CHUNK, WIDTH, HIDDEN = 4, 4, 3  # of the memory that is tried


def require_frozen(rule: LearningRule, settings: dict[str, Any]) -> None:
    """Try two chunks. Raises `ConfigError` naming the rule, whose `settings` are those of `model.memory.own_rule`."""
    draws = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draws, dtype=torch.float64, device="cpu")

    weights = FastWeights(drawn(1, WIDTH, HIDDEN), drawn(1, 2 * HIDDEN, WIDTH))
    query, key, value = (drawn(1, 2 * CHUNK, WIDTH) for _ in range(3))
    nothing = key.new_zeros(1, 2 * CHUNK, 1 + len(rule.controls))
    tokens = ChunkInputs(query, key, value, query, key, nothing[..., 0], nothing[..., 1:])
    told = f"model.memory.own_rule._target_={settings['_target_']}: must be a rule"
    try:
        with torch.device("cpu"):  # of a rule that makes tensors; a model that is compared alone is built on meta
            _, state = Scan(rule, CHUNK, inf, read_at_start=True)(open_state(rule, weights), tokens)
        same = all(torch.equal(*pair) for pair in zip(weights, state.start, strict=True))
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{told} that takes a chunk of tokens [1, {CHUNK}, ...] ({reason})") from error
    if not same:
        raise ConfigError(f"{told} whose `close` returns its start where all rates and controls are 0 (frozen)")
