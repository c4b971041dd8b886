"""Q-K projection of the local memories' queries: the step-by-step form, and the parallel form over a stretch.

Legend: H heads, d head width, N rows, T tokens. Equations: `atlas/ops/qk_projection/`.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from atlas.config import Normalisation, ProjectionRange, QKProjectionConfig
from atlas.config.choices import member
from atlas.models.hierarchy import Run, per_row, run_periods
from atlas.models.persistent import PersistentMemory
from atlas.models.plan import ChunkPlan
from atlas.ops.features import homogeneous_features
from atlas.ops.mixed_queries import mixed_queries
from atlas.ops.own_precision import own_precision
from atlas.ops.qk_projection import EPSILON, Accumulator, project
from atlas.ops.unit_rows import unit_rows


class QKProjection:
    """The projection one token at a time, for probes and as the reference of the parallel form.

    Keys, values and queries are [..., H, d], with any leading batch dimensions. Gradients pass through all of it.
    `degree` > 1 replaces a key that is matched with a query by phi(k), phi(x).phi(y) = (x.y)^degree, so that keys of
    small cosine disturb each other less. Only probes use it.
    """

    def __init__(
        self, persistent: PersistentMemory, normalisation: Normalisation | str = Normalisation.sum, degree: int = 1
    ) -> None:
        self.persistent = persistent
        self.per_key = member(Normalisation, "normalisation", normalisation) is Normalisation.per_key
        self.degree = degree
        self.reset_at_shard_boundary()

    def reset_at_shard_boundary(self) -> None:
        """Set both sums, numerator and denominator, to their persistent values."""
        self.matrix, self.norm_sum = persistent_sums(self.persistent, self.per_key, self.degree)

    def update(self, key: Tensor) -> None:
        """Add k k^T and ||k||^2."""
        self.inject_memory(key, key)

    def inject_memory(self, key: Tensor, value: Tensor) -> None:
        """Add v k^T and ||k||^2, so that a query with k returns v; `update` is the case v = k."""
        self.inject_all(key.unsqueeze(-3), value.unsqueeze(-3))

    def inject_all(self, keys: Tensor, values: Tensor) -> None:
        """`inject_memory` for n pairs [..., n, H, d] at once."""
        features = homogeneous_features(keys, self.degree)
        square = features.square().sum(-1)  # [..., n, H]
        weighted = features / square.clamp(min=EPSILON).unsqueeze(-1) if self.per_key else features
        products = values.movedim(-3, -1) @ weighted.movedim(-3, -2)  # [..., H, d, n] @ [..., H, n, p]
        self.matrix = self.matrix + products
        self.norm_sum = self.norm_sum + square.sum(-2)

    def project(self, query: Tensor) -> Tensor:
        """q' = M q / max(norm, eps), or M q with `per_key`."""
        features = homogeneous_features(query, self.degree)
        projected = (self.matrix @ features.unsqueeze(-1)).squeeze(-1)
        return projected if self.per_key else projected / self.norm_sum.clamp(min=EPSILON).unsqueeze(-1)

    def query_memory(self, key: Tensor) -> Tensor:
        """The value stored for a key: the same read as `project`."""
        return self.project(key)


def persistent_sums(persistent: PersistentMemory, per_key: bool, degree: int = 1) -> tuple[Tensor, Tensor]:
    """Both sums at the start of a shard, per head: [H, d, d], or [H, d, p] with features, and [H].

    They are in the precision of the keys, under autocast too: small products are added to them.
    """
    with own_precision(persistent.keys):
        if degree > 1:
            features = homogeneous_features(persistent.keys, degree)  # [H, P, p]
            square = features.square().sum(-1, keepdim=True)
            weighted = features / square.clamp(min=EPSILON) if per_key else features
            return persistent.keys.mT @ weighted, square.sum((-2, -1))
        matrix = persistent.m_persistent_per_key if per_key else persistent.m_persistent
        return matrix, persistent.norm_persistent


class QueryProjector:
    """The parallel form: one q' for all local memories (range `shard`), or one for each (range `chunk`)."""

    def __init__(self, config: QKProjectionConfig, heads: int) -> None:
        self.config, self.heads = config, heads
        self.per_key = config.normalisation is Normalisation.per_key

    def periods(self, plan: ChunkPlan) -> tuple[int | None, ...]:
        """Tokens between two resets of the sums, for each distinct q'."""
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
        mix: Tensor | None = None,
    ) -> tuple[list[Tensor], tuple[Accumulator, ...]]:
        """Rows' queries and keys [N, T, d], the first token number `position` -> every distinct q' [N, T, d].

        With `mix`, lambda [H]: every distinct q + lambda q'.
        """
        batch = query.shape[0] // self.heads
        offset = position % plan.shard if plan.shard else 0
        projected: list[Tensor] = []
        after: list[Accumulator] = []
        for sums, period in zip(state, self.periods(plan), strict=True):
            per_chunk = self.config.range is ProjectionRange.chunk
            run = self._chunks(persistent, batch, period) if per_chunk else self._project
            initial = partial(self._start, persistent, batch)
            out, end = run_periods(run, initial, sums, (query, key), offset, plan.shard)
            projected.append(self._read_with(query, out, mix))
            after.append(end)
        return projected, tuple(after)

    def _read_with(self, query: Tensor, projected: Tensor, mix: Tensor | None) -> Tensor:
        if self.config.renormalise:
            return unit_rows(projected) if mix is None else mixed_queries(query, projected, mix)
        if mix is None:
            return projected
        rows = query.shape[0]
        return query + per_row(mix, rows // self.heads, rows)[:, None, None] * projected

    def _project(self, start: Accumulator, tokens: tuple[Tensor, ...]) -> tuple[Tensor, Accumulator]:
        divide = not self.config.renormalise  # does not change a q' of length 1
        return project(start, tokens[0], tokens[1], per_key=self.per_key, divide=divide)

    def _chunks(self, persistent: PersistentMemory, batch: int, chunk: int | None) -> Run[Accumulator]:
        """Sums are reset at every chunk of the memory; the open chunk has `start.tokens` tokens (see `Scan`)."""
        assert chunk is not None

        def run(start: Accumulator, tokens: tuple[Tensor, ...]) -> tuple[Tensor, Accumulator]:
            open_tokens = start.tokens if start.tokens < chunk else 0
            initial = partial(self._start, persistent, batch)
            out, end = run_periods(self._project, initial, start, tokens, open_tokens, chunk)
            # Not `_replace`: PyTorch 2.11 cannot return what it makes from a compiled block.
            return out, Accumulator(end.matrix, end.norm, end.tokens % chunk)

        return run

    def _start(self, persistent: PersistentMemory, batch: int, rows: int) -> Accumulator:
        matrix, norm = persistent_sums(persistent, self.per_key)
        return Accumulator(per_row(matrix, batch, rows), per_row(norm, batch, rows), 0)
