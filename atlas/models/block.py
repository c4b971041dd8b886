"""MAG block: attention gated by memory (docs/memory.md section 1, Titans Eq 26-28).

a = SlidingWindowAttention(RMSNorm(x));   m = Memory(RMSNorm(x));   g = Gate(m)
x = x + (a * g) W_o                       fusion `multiplicative`: g = 0 makes the branch exactly 0
x = x + ((a + m W_g) * g) W_o             fusion `gated_sum`, the default: the content of the memory passes the gate too
x = x + (a + z) W_o                       fusion `additive`: z = m W_g + b_g, no gate
x = x + SwiGLU(RMSNorm(x))
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from atlas.config import ModelConfig
from atlas.models.attention import AttentionState, SlidingWindowAttention
from atlas.models.gate import Gate
from atlas.models.memory import AtlasMemory, MemoryState
from atlas.models.norm import RMSNorm
from atlas.models.persistent import PersistentMemory
from atlas.models.plan import ChunkPlan, MemoryMode
from atlas.models.stacked_linear import StackedLinear
from atlas.ops.rotary import Rotary
from atlas.ops.swiglu import swiglu


class BlockState(NamedTuple):
    attention: AttentionState
    memory: MemoryState | None

    @property
    def crossing(self) -> tuple[Any, ...]:
        """What goes on at the start of a shard, where local memories and the sums of the Q-K projection start anew."""
        memory = self.memory
        return self.attention, () if memory is None else (memory.recent, memory.global_memory)

    def starting_from(self, crossing: tuple[Any, ...]) -> BlockState:
        """This state before the first token, going on with what crosses the start of a shard."""
        attention, of_memory = crossing
        if self.memory is None:
            return BlockState(attention, None)
        recent, global_memory = of_memory
        return BlockState(attention, self.memory._replace(recent=recent, global_memory=global_memory))


class SwiGLU(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = StackedLinear(width, hidden, parts=2)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(swiglu(self.up(x)))
        return out


class AtlasMAGBlock(nn.Module):
    """Attention gated by memory, then a feed-forward layer; without a memory a plain Transformer block."""

    def __init__(self, config: ModelConfig, local_count: int) -> None:
        super().__init__()
        width, head_width = config.width, config.width // config.heads
        self.norm, self.feedforward_norm = RMSNorm(width), RMSNorm(width)
        self.attention = SlidingWindowAttention(width, config.heads, config.window)
        keys = config.persistent_keys
        self.persistent = PersistentMemory(config.heads, keys, head_width) if keys else None
        has_memory = config.memory.enabled
        self.memory = AtlasMemory(width, config.heads, local_count, config.memory) if has_memory else None
        self.gate = Gate(width, config.fusion, config.gate_sharpness_max) if has_memory else None
        self.out = nn.Linear(width, width, bias=False)  # no bias: a closed gate must give exactly 0
        self.feedforward = SwiGLU(width, config.feedforward)

    def initial_state(self, batch: int, plan: ChunkPlan) -> BlockState:
        attention = self.attention.initial_state(batch)
        if self.memory is None or self.persistent is None:
            return BlockState(attention, None)
        return BlockState(attention, self.memory.initial_state(batch, self.persistent, plan))

    def forward(
        self, x: Tensor, state: BlockState | None, rotary: Rotary, plan: ChunkPlan, mode: MemoryMode
    ) -> tuple[Tensor, BlockState, Tensor | None]:
        """x [B, T, D] at the positions of `rotary` -> x [B, T, D], the state after it, and the gates [B, T, D].

        Without a state it makes the initial one here, where its weights are whole (`parallel/slices.py`). The gates are
        None without a memory and with the fusion `additive`.
        """
        state = state or self.initial_state(x.shape[0], plan)
        inputs = self.norm(x)
        branch, attention = self.attention(inputs, state.attention, rotary, self.persistent)
        memory, gate = state.memory, None
        if self.memory is not None and self.gate is not None:
            recalled, memory = self.memory(inputs, memory, rotary.first, self.persistent, plan, mode)
            branch, gate = self.gate(branch, recalled)
        x = x + self.out(branch)
        x = x + self.feedforward(self.feedforward_norm(x))
        return x, BlockState(attention, memory), gate
