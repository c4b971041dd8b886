"""The contract of a learning rule of your own: where all rates and controls are 0, the weights stay as they are, and
what it keeps has a part for each row.

Probes and watchers compare with a memory that is frozen so (`MemoryMode.frozen`). A state is split by its rows.
"""

from __future__ import annotations

from copy import deepcopy
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from atlas.config import ConfigError
from atlas.ops.chunk_scan import Scan, open_state
from atlas.ops.dual_form import ChunkInputs
from atlas.ops.fast_weights import FastWeights
from atlas.ops.rules.rule import Kept, LearningRule

ROWS, CHUNK, WIDTH, HIDDEN = 2, 4, 4, 3  # of the memory that is tried


def require_frozen(rule: LearningRule, settings: dict[str, Any]) -> None:
    """Try two chunks and a token. Raises `ConfigError`; `settings` are those of `model.memory.own_rule`."""
    draws = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(ROWS, *shape, generator=draws, dtype=torch.float64, device="cpu")

    weights = FastWeights(drawn(WIDTH, HIDDEN), drawn(2 * HIDDEN, WIDTH))
    query, key, value = (drawn(2 * CHUNK + 1, WIDTH) for _ in range(3))
    nothing = key.new_zeros(ROWS, 2 * CHUNK + 1, 1 + len(rule.controls))
    tokens = ChunkInputs(query, key, value, query, key, nothing[..., 0], nothing[..., 1:])
    told = f"model.memory.own_rule._target_={settings['_target_']}: must be a rule"
    held = [name for name, value in getattr(rule, "__dict__", {}).items() if isinstance(value, nn.Parameter)]
    if held:  # a module has them in a dictionary of its own
        raise ConfigError(f"{told} that is a torch.nn.Module, or its parameters ({', '.join(held)}) are never trained")
    if isinstance(rule, nn.Module):
        rule = deepcopy(rule).to("cpu", torch.float64)
    try:
        with torch.device("cpu"):  # of a rule that makes tensors
            before = open_state(rule, weights)
            _, state = Scan(rule, CHUNK, inf, read_at_start=True)(before, tokens)
        same = all(torch.equal(*pair) for pair in zip(weights, state.start, strict=True))
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{told} that takes a chunk of tokens [{ROWS}, {CHUNK}, ...] ({reason})") from error
    if not same:
        raise ConfigError(f"{told} whose `close` returns its start where all rates and controls are 0 (frozen)")
    _require_rows(told, before.kept)
    first, last = (
        [list(leaf.shape) for leaf in pytree.tree_leaves(kept) if isinstance(leaf, Tensor)]
        for kept in (before.kept, state.kept)
    )
    if first != last:
        raise ConfigError(f"{told} that keeps tensors of the same shapes, not {first} at first and {last} later")


def _require_rows(told: str, kept: Kept) -> None:
    """A number is for all rows, such as a count of chunks. What PyTorch finds no tensors in cannot be split."""
    for leaf in pytree.tree_leaves(kept):
        if isinstance(leaf, Tensor):
            good, found = leaf.shape[:1] == (ROWS,), f"a tensor of shape {list(leaf.shape)}"
        else:
            good, found = isinstance(leaf, int | float | None), type(leaf).__name__
        if not good:
            raise ConfigError(f"{told} that keeps a NamedTuple of tensors [rows={ROWS}, ...], not {found}")
