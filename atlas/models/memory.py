"""The neural memory of a block: one global and several local memories that learn at test time (TNT Eq 5-7, 13-15).

Legend: B sequences, T tokens, D model width, H heads, N = B * H rows, d head width, h hidden width, p feature width.

    recalled_t = f(q_t; W_global at xi(t, C_G)) + sum_i f(q'_t; W_local,i at t)

With `qk_projection.mix` the local memories read with q_t + lambda q'_t, a learnable lambda per head.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from atlas.config import MemoryConfig, ProjectionRange
from atlas.config.choices import member
from atlas.models.feature_map import FeatureMap
from atlas.models.frozen_rule import require_frozen
from atlas.models.hierarchy import per_row, run_periods
from atlas.models.lasting import read_lasting
from atlas.models.memory_inputs import MemoryInputs
from atlas.models.norm import RMSNorm
from atlas.models.persistent import PersistentMemory
from atlas.models.plan import ChunkPlan, MemoryMode
from atlas.models.qk_projection import QueryProjector
from atlas.models.rule_controls import RuleControls
from atlas.ops.chunk_scan import Scan, ScanState, open_state
from atlas.ops.dual_form import ChunkInputs
from atlas.ops.fast_weights import FastWeights
from atlas.ops.features import feature_norm
from atlas.ops.qk_projection import Accumulator
from atlas.ops.rules import learning_rule
from atlas.ops.rules.rule import LearningRule


class MemoryState(NamedTuple):
    """What the memory of a block keeps between two calls, the open chunks and the open shard included."""

    recent: Tensor  # [B, 3, 3D] inputs of the convolution before the next token
    sums: tuple[Accumulator, ...]  # of the Q-K projection
    local: tuple[ScanState, ...]
    global_memory: tuple[ScanState, ...]  # one, or none
    lasting: tuple[ScanState, ...] = ()  # one for a global memory read by a plan with `lasting`


class InitialWeights(nn.Module):
    """Learnable W_init of one memory, per head. `down` starts at zero, so an unwritten memory returns its query."""

    def __init__(
        self, heads: int, width: int, features: int, config: MemoryConfig, rule: LearningRule, **curved: bool
    ) -> None:
        super().__init__()
        self.curved = curved  # which curvatures the scan sums up, see `open_state`
        self.open = partial(open_state, rule)  # a rule that is a module is a part of `AtlasMemory` alone
        # ||U|| is about 1 for a unit key: a rate near 1 writes a pair in one step.
        scale = (4 / config.hidden) ** 0.25 / feature_norm(config.degree)
        self.down = nn.Parameter(torch.zeros(heads, width, config.hidden))
        self.up = nn.Parameter(torch.randn(heads, 2 * config.hidden, features) * scale)

    def forward(self, batch: int, rows: int) -> ScanState:
        """The state before the first token, for `rows` = batch * heads * folded shards."""
        weights = FastWeights(per_row(self.down, batch, rows), per_row(self.up, batch, rows))
        return self.open(weights, **self.curved)


class AtlasMemory(nn.Module):
    """Memory branch of a MAG block."""

    def __init__(self, width: int, heads: int, local_count: int, config: MemoryConfig) -> None:
        super().__init__()
        self.config, self.heads = config, heads
        self.rule, self.global_rule = (learning_rule(one) for one in (config, config.of_global()))
        self.inputs = MemoryInputs(width, heads, local_count + config.use_global, config)
        if config.own_rule and not self.inputs.qkv.weight.is_meta:  # on meta a model is compared alone
            require_frozen(self.rule, config.own_rule)
        self.controls = RuleControls(width, heads, local_count + config.use_global, self.rule.controls)
        self.projector = QueryProjector(config.qk_projection, heads)
        mixes = config.qk_projection.mix and config.qk_projection.range is not ProjectionRange.off
        self.mix = nn.Parameter(torch.zeros(heads)) if mixes else None  # lambda [H]
        head_width = width // heads
        self.features = FeatureMap(heads, head_width, config)
        shape = (heads, head_width, self.features.count, config)
        curved, curved_local = config.curvature_max > 0, config.curvature_max_local > 0
        self.local = nn.ModuleList(
            InitialWeights(*shape, self.rule, curved_local=curved_local) for _ in range(local_count)
        )
        self.global_memory = nn.ModuleList(
            InitialWeights(*shape, self.global_rule, curved=curved) for _ in range(config.use_global)
        )
        self.norm = RMSNorm(width)

    def initial_state(self, batch: int, persistent: PersistentMemory, plan: ChunkPlan) -> MemoryState:
        rows = batch * self.heads
        global_memory = tuple(memory(batch, rows) for memory in self.global_memory)
        return MemoryState(
            self.inputs.initial_state(batch),
            self.projector.initial_state(persistent, batch, plan),
            tuple(memory(batch, rows) for memory in self.local),
            global_memory,
            global_memory if plan.lasting else (),
        )

    def forward(
        self,
        x: Tensor,
        state: MemoryState,
        position: int,
        persistent: PersistentMemory,
        plan: ChunkPlan,
        mode: MemoryMode | str,
    ) -> tuple[Tensor, MemoryState]:
        """x [B, T, D] whose first token is number `position` -> recalled [B, T, D], and the state after it.

        Raises ValueError for weights in half precision.
        """
        mode = member(MemoryMode, "mode", mode)
        dtype = self.inputs.qkv.weight.dtype
        if dtype not in (torch.float32, torch.float64):
            how = f"leave them in torch.float32 and call the model in torch.autocast(device, {dtype})"
            allowed = f"torch.float32 or torch.float64; for half precision {how}"
            raise ValueError(f"weights of {dtype}: must be of {allowed}")
        if mode is MemoryMode.off:
            return torch.zeros_like(x), state
        tokens, recent = self.inputs(x, state.recent)
        learns = mode is MemoryMode.learn
        rates, controls = self.inputs.rates(x) * learns, self.controls(x) * learns
        projected, sums = self.projector(tokens.query, tokens.key, state.sums, position, persistent, plan, self.mix)
        key_features = self.features(tokens.key)

        def inputs(query: Tensor, query_features: Tensor, memory: int) -> ChunkInputs:
            pair = tokens.key, tokens.value
            return ChunkInputs(query, *pair, query_features, key_features, rates[memory], controls[memory])

        reads: list[Tensor] = []
        global_memory, lasting, local = [], [], []
        for index, before in enumerate(state.global_memory):  # one, or none; it reads with q and is never reset
            scan, fields = self._global_scan(plan), inputs(tokens.query, self.features(tokens.query), -1)
            if plan.lasting:
                read, after, lasts = read_lasting(scan, before, state.lasting[index], fields, position, plan.lasting)
                lasting.append(lasts)
            else:
                read, after = scan(before, fields)
            reads.append(read)
            global_memory.append(after)
        distinct = [(query, self.features(query)) for query in projected or [tokens.query]]
        offset = position % plan.shard if plan.shard else 0
        for index, before in enumerate(state.local):  # reset to their W_init at every shard start
            scan, fields = self._local_scan(plan.local[index]), inputs(*distinct[index % len(distinct)], index)
            initial = partial(self.local[index], x.shape[0])
            read, after = run_periods(scan.of_fields, initial, before, fields, offset, plan.shard)
            reads.append(read)
            local.append(after)
        recalled = sum(reads[1:], reads[0]).unflatten(0, (x.shape[0], self.heads)).transpose(1, 2).flatten(2)
        return self.norm(recalled), MemoryState(recent, sums, tuple(local), tuple(global_memory), tuple(lasting))

    def _global_scan(self, plan: ChunkPlan) -> Scan:
        config, chunk = self.config, plan.global_size
        bound, limit, recompute = config.weight_norm_max, config.curvature_max, config.recompute
        return Scan(self.global_rule, chunk, bound, read_at_start=True, recompute=recompute, curvature_max=limit)

    def _local_scan(self, chunk: int) -> Scan:
        config = self.config
        bound, limit, recompute = config.weight_norm_max, config.curvature_max_local, config.recompute
        return Scan(self.rule, chunk, bound, read_at_start=False, recompute=recompute, curvature_max_local=limit)
