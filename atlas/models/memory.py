"""The neural memory of a block: one global and several local memories that learn at test time (TNT Eq 5-7, 13-15).

Legend: B sequences, T tokens, D model width, H heads, N = B * H rows, d head width, h hidden width, p feature width.

    m_t = f(q_t; V_xi(t, C_G)) + sum_i f(q'_t; W_t^(i))
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from atlas.config import MemoryConfig
from atlas.models.hierarchy import per_row, run_periods
from atlas.models.memory_inputs import MemoryInputs, MemoryTokens
from atlas.models.persistent import PersistentMemory
from atlas.models.plan import ChunkPlan, MemoryMode
from atlas.models.qk_projection import QueryProjector
from atlas.ops.chunk_scan import ScanState, open_state, scan
from atlas.ops.fast_weights import FastWeights
from atlas.ops.features import feature_width, polynomial_features
from atlas.ops.qk_projection import Accumulator
from atlas.ops.rules.gd import ChunkInputs


class MemoryState(NamedTuple):
    """All that a block's memory keeps between two calls; the open chunks and the open shard are part of it."""

    recent: Tensor  # [B, 3, 3D] inputs of the convolution before the next token
    sums: tuple[Accumulator, ...]  # of the Q-K projection
    local: tuple[ScanState, ...]
    global_memory: tuple[ScanState, ...]  # one, or none


class InitialWeights(nn.Module):
    """Learnable W_init of one memory, per head. `down` starts at zero: an unwritten memory gives back its query."""

    def __init__(self, heads: int, width: int, hidden: int, features: int) -> None:
        super().__init__()
        scale = (4 / hidden) ** 0.25  # ||U|| is about 1 for a unit key: a rate near 1 writes a pair in one step
        self.down = nn.Parameter(torch.zeros(heads, width, hidden))
        self.up = nn.Parameter(torch.randn(heads, 2 * hidden, features) * scale)

    def forward(self, batch: int, rows: int) -> ScanState:
        """A memory that has seen nothing, for each of `rows` = batch * heads * folded shards."""
        return open_state(FastWeights(per_row(self.down, batch, rows), per_row(self.up, batch, rows)))


class AtlasMemory(nn.Module):
    """Memory branch of a MAG block."""

    def __init__(self, width: int, heads: int, local_count: int, config: MemoryConfig) -> None:
        super().__init__()
        self.config, self.heads = config, heads
        self.inputs = MemoryInputs(width, heads, local_count + config.use_global, config)
        self.projector = QueryProjector(config.qk_projection, heads)
        head_width = width // heads
        shape = (heads, head_width, config.hidden, feature_width(head_width, config.degree))
        self.local = nn.ModuleList(InitialWeights(*shape) for _ in range(local_count))
        self.global_memory = nn.ModuleList(InitialWeights(*shape) for _ in range(config.use_global))
        self.norm = nn.RMSNorm(width)

    def initial_state(self, batch: int, persistent: PersistentMemory, plan: ChunkPlan) -> MemoryState:
        rows = batch * self.heads
        return MemoryState(
            self.inputs.initial_state(batch),
            self.projector.initial_state(persistent, batch, plan),
            tuple(memory(batch, rows) for memory in self.local),
            tuple(memory(batch, rows) for memory in self.global_memory),
        )

    def forward(
        self,
        x: Tensor,
        state: MemoryState,
        position: int,
        persistent: PersistentMemory,
        plan: ChunkPlan,
        mode: MemoryMode,
    ) -> tuple[Tensor, MemoryState]:
        """x [B, T, D] whose first token is number `position` -> what the memories recall [B, T, D], and their state."""
        if mode is MemoryMode.off:
            return torch.zeros_like(x), state
        tokens, recent = self.inputs(x, state.recent)
        rates = self.inputs.rates(x) * (mode is MemoryMode.learn)
        projected, sums = self.projector(tokens.query, tokens.key, state.sums, position, persistent, plan)
        reads: list[Tensor] = []
        global_memory, local = [], []
        for start in state.global_memory:
            fields = self._chunk_inputs(tokens.query, tokens, rates[-1])
            read, after = self._scan(start, fields, plan.global_size, read_at_start=True)
            reads.append(read)
            global_memory.append(after)
        for index, start in enumerate(state.local):
            fields = self._chunk_inputs(projected[index], tokens, rates[index])
            read, after = self._run_local(index, start, fields, position, x.shape[0], plan)
            reads.append(read)
            local.append(after)
        recalled = torch.stack(reads).sum(0).unflatten(0, (x.shape[0], self.heads)).transpose(1, 2).flatten(2)
        return self.norm(recalled), MemoryState(recent, sums, tuple(local), tuple(global_memory))

    def _chunk_inputs(self, query: Tensor, tokens: MemoryTokens, rate: Tensor) -> ChunkInputs:
        degree = self.config.degree
        features = polynomial_features(query, degree), polynomial_features(tokens.key, degree)
        return ChunkInputs(query, tokens.key, tokens.value, *features, rate)

    def _scan(self, start: ScanState, tokens: ChunkInputs, chunk: int, read_at_start: bool) -> tuple[Tensor, ScanState]:
        return scan(start, tokens, chunk, read_at_start=read_at_start, norm_max=self.config.weight_norm_max)

    def _run_local(
        self, index: int, start: ScanState, tokens: ChunkInputs, position: int, batch: int, plan: ChunkPlan
    ) -> tuple[Tensor, ScanState]:
        """Local memory `index`: reset to its W_init at every shard start."""
        return run_periods(
            lambda state, fields: self._scan(state, ChunkInputs(*fields), plan.local[index], read_at_start=False),
            lambda rows: self.local[index](batch, rows),
            start,
            tokens,
            position % plan.shard if plan.shard else 0,
            plan.shard,
        )
