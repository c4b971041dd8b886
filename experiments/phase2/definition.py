"""The Q-K projection as it is defined, token by token from the keys: what G2-3 holds the model's own against.

The sums are formed here anew and share no code with `atlas/ops` and `atlas/models`.

Legend: B sequences, H heads, N = B * H rows, T tokens, d head width, P persistent keys.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from atlas.models.persistent import PersistentMemory
from atlas.models.plan import ChunkPlan
from atlas.models.qk_projection import QueryProjector
from atlas.ops.qk_projection import Accumulator


def persistent_start(keys: Tensor, per_key: bool) -> tuple[Tensor, Tensor]:
    """sum_p k_p k_p^T [H, d, d] and sum_p ||k_p||^2 [H], of keys [H, P, d]."""
    heads, _, width = keys.shape
    matrix, norm = keys.new_zeros(heads, width, width), keys.new_zeros(heads)
    for key in keys.unbind(1):
        matrix, norm = _with_key(matrix, norm, key, per_key)
    return matrix, norm


def defined_sums(
    key: Tensor, persistent_keys: Tensor, per_key: bool, period: int | None, shard: int | None
) -> tuple[Tensor, Tensor]:
    """Both sums of every row after the last token of key [N, T, d]."""
    *_, (matrix, norm) = _series(key, persistent_keys, per_key, period, shard)
    return matrix, norm


class DefinedProjector(QueryProjector):
    """Takes the place of a projector: the same q', by its definition. Works for stretches that begin with a shard."""

    def __init__(self, projector: QueryProjector) -> None:
        super().__init__(projector.config, projector.heads)

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        state: tuple[Accumulator, ...],
        position: int,
        persistent: PersistentMemory,
        plan: ChunkPlan,
        mix: Tensor | None = None,
    ) -> tuple[list[Tensor], tuple[Accumulator, ...]]:
        assert position == 0
        assert mix is None
        projected = []
        for period in self.periods(plan):
            series = _series(key, persistent.keys, self.per_key, period, plan.shard)
            steps = [
                torch.einsum("nij,nj->ni", matrix, query[:, t]) / (1.0 if self.per_key else norm.unsqueeze(-1))
                for t, (matrix, norm) in enumerate(series)
            ]
            out = torch.stack(steps, dim=1)
            projected.append(out / out.norm(dim=-1, keepdim=True) if self.config.renormalise else out)
        return projected, state


def _series(
    key: Tensor, persistent_keys: Tensor, per_key: bool, period: int | None, shard: int | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """(M_t, norm_t) for every token of key [N, T, d]: [N, d, d] and [N]."""
    batch = key.shape[0] // persistent_keys.shape[0]
    start, start_norm = persistent_start(persistent_keys, per_key)
    start, start_norm = start.repeat(batch, 1, 1), start_norm.repeat(batch)  # row b * H + h
    matrix, norm = start, start_norm
    for t, token in enumerate(key.unbind(1)):
        if any(length and t % length == 0 for length in (period, shard)):
            matrix, norm = start, start_norm
        matrix, norm = _with_key(matrix, norm, token, per_key)
        yield matrix, norm


def _with_key(matrix: Tensor, norm: Tensor, key: Tensor, per_key: bool) -> tuple[Tensor, Tensor]:
    """Add one key [N, d] to every row's sums; with `per_key` divided by its own square, where it is not 0."""
    square = (key * key).sum(-1)
    outer = key.unsqueeze(-1) * key.unsqueeze(-2)
    divisor = square.where(square > 0, 1.0) if per_key else torch.ones_like(square)
    return matrix + outer / divisor[:, None, None], norm + square
