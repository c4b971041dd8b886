"""Q-K projection of the local memories' queries: the step-by-step form, and the parallel form over a stretch.

Legend: H heads, d head width, N rows, T tokens. Equations: `atlas/ops/qk_projection.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from atlas.config import Normalisation, ProjectionRange, QKProjectionConfig
from atlas.models.hierarchy import per_row, run_periods
from atlas.models.persistent import PersistentMemory
from atlas.models.plan import ChunkPlan
from atlas.ops.qk_projection import EPSILON, Accumulator, project


class QKProjection:
    """The projection one token at a time, for probes and as the reference of the parallel form (P2-T3).

    Keys, values and queries are [..., H, d], with any leading batch dimensions. Nothing is cut from the gradient.
    """

    def __init__(self, persistent: PersistentMemory, normalisation: Normalisation = Normalisation.sum) -> None:
        self.persistent = persistent
        self.per_key = normalisation is Normalisation.per_key
        self.reset_at_shard_boundary()

    def reset_at_shard_boundary(self) -> None:
        """Both sums go back to the persistent values, numerator and denominator."""
        self.matrix, self.norm_sum = persistent_sums(self.persistent, self.per_key)

    def update(self, key: Tensor) -> None:
        """Add k k^T and ||k||^2."""
        self.inject_memory(key, key)

    def inject_memory(self, key: Tensor, value: Tensor) -> None:
        """Add v k^T and ||k||^2, so that a query with k gives v back; `update` is the case v = k."""
        square = key.square().sum(-1)
        weight = 1 / square.clamp(min=EPSILON) if self.per_key else torch.ones_like(square)
        self.matrix = self.matrix + weight[..., None, None] * value.unsqueeze(-1) * key.unsqueeze(-2)
        self.norm_sum = self.norm_sum + square

    def project(self, query: Tensor) -> Tensor:
        """q' = M q / max(norm, eps), or M q with `per_key`."""
        projected = (self.matrix @ query.unsqueeze(-1)).squeeze(-1)
        return projected if self.per_key else projected / self.norm_sum.clamp(min=EPSILON).unsqueeze(-1)

    def query_memory(self, key: Tensor) -> Tensor:
        """What the accumulator holds for a key: the same read as `project`."""
        return self.project(key)


def persistent_sums(persistent: PersistentMemory, per_key: bool) -> tuple[Tensor, Tensor]:
    """What both sums start from at a shard boundary, per head: [H, d, d] and [H]."""
    matrix = persistent.m_persistent_per_key if per_key else persistent.m_persistent
    return matrix, persistent.norm_persistent


class QueryProjector:
    """The parallel form over a stretch: one q' for all local memories (range `shard`) or one for each (range `chunk`)."""

    def __init__(self, config: QKProjectionConfig, heads: int) -> None:
        self.config, self.heads = config, heads
        self.per_key = config.normalisation is Normalisation.per_key

    def periods(self, plan: ChunkPlan) -> tuple[int | None, ...]:
        """After how many tokens the sums start anew; an entry per distinct q'."""
        if self.config.range is ProjectionRange.off:
            return ()
        return plan.local if self.config.range is ProjectionRange.chunk else (plan.shard,)

    def initial_state(self, persistent: PersistentMemory, batch: int, plan: ChunkPlan) -> tuple[Accumulator, ...]:
        start = self._start(persistent, batch, batch * self.heads)
        return tuple(start for _ in self.periods(plan))

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        state: tuple[Accumulator, ...],
        position: int,
        persistent: PersistentMemory,
        plan: ChunkPlan,
    ) -> tuple[list[Tensor], tuple[Accumulator, ...]]:
        """Rows' queries and keys [N, T, d], the first token number `position` -> every local memory's q' [N, T, d]."""
        batch = query.shape[0] // self.heads
        projected: list[Tensor] = []
        after: list[Accumulator] = []
        for sums, period in zip(state, self.periods(plan), strict=True):
            out, end = run_periods(
                lambda start, tokens: project(start, tokens[0], tokens[1], per_key=self.per_key),
                lambda rows: self._start(persistent, batch, rows),
                sums,
                (query, key),
                position % period if period else 0,
                period,
            )
            projected.append(F.normalize(out, dim=-1) if self.config.renormalise else out)
            after.append(end)
        each = projected or [query]
        return [each[index % len(each)] for index in range(len(plan.local))], tuple(after)

    def _start(self, persistent: PersistentMemory, batch: int, rows: int) -> Accumulator:
        matrix, norm = persistent_sums(persistent, self.per_key)
        return Accumulator(per_row(matrix, batch, rows), per_row(norm, batch, rows))
