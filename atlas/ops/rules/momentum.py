"""Learning rule `momentum`: gradient descent with momentum and retention at chunk ends (Titans Eq 11-15).

    S <- theta S + sum_chunk eta grad l(W_xi),     W <- alpha W_xi - S

The sum is that of `gd`, and inside the chunk a token reads its plain causal prefix. theta and alpha of a chunk are the
means of its tokens' gates, used at its end only: causal. A chunk of one token is read at its end: Titans' recurrence.
The gates are theta and 1 - alpha. theta = 0 with alpha = 1 is `gd`.

Legend: N rows, n controls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

from torch import Tensor

from atlas.config import MemoryConfig
from atlas.ops.dual_form import ChunkInputs
from atlas.ops.fast_weights import FastWeights, add, scale, subtract, zeros_like
from atlas.ops.rules.gd import GradientDescent
from atlas.ops.rules.rule import ChunkEnd, Control, Kept


class MomentumState(NamedTuple):
    momentum: FastWeights  # S after the last whole chunk
    gates: Tensor  # [N, n] sums over the open chunk's tokens
    tokens: Tensor  # [N] of the open chunk

    def means(self) -> tuple[Tensor, ...]:
        """Mean of every gate over the open chunk: n tensors [N]."""
        return (self.gates / self.tokens.clamp(min=1).unsqueeze(-1)).unbind(-1)

    def after(self, tokens: ChunkInputs) -> MomentumState:
        """With the gates of further tokens of the open chunk."""
        return MomentumState(self.momentum, self.gates + tokens.controls.sum(1), self.tokens + tokens.controls.shape[1])

    def next_chunk(self, momentum: FastWeights) -> MomentumState:
        return MomentumState(momentum, *no_gates(momentum, self.gates.shape[-1]))


def initial_momentum(weights: FastWeights, controls: int) -> MomentumState:
    return MomentumState(zeros_like(weights), *no_gates(weights, controls))


def no_gates(weights: FastWeights, controls: int) -> tuple[Tensor, Tensor]:
    """The sums of a chunk without tokens."""
    rows = weights.down.shape[0]
    return weights.down.new_zeros(rows, controls), weights.down.new_zeros(rows)


@dataclass(frozen=True)
class Momentum(GradientDescent):
    theta: float  # of a token before training, in [0, 1)
    alpha: float  # of a token before training, in (0, 1]

    chunk_end: ClassVar[ChunkEnd | None] = ChunkEnd.momentum  # a kernel does what `close` does: change both, or None
    reads_end: ClassVar[bool] = True

    @classmethod
    def from_config(cls, config: MemoryConfig) -> Self:
        return cls(config.momentum, config.retention)

    @property
    def controls(self) -> tuple[Control, ...]:  # type: ignore[override]
        return Control("theta", self.theta), Control("forget", 1 - self.alpha)

    def initial(self, weights: FastWeights) -> Kept:
        return initial_momentum(weights, len(self.controls))

    def keep(self, kept: Kept, tokens: ChunkInputs) -> Kept:
        return MomentumState(*kept).after(tokens)

    def close(self, start: FastWeights, update: FastWeights, kept: Kept) -> tuple[FastWeights, Kept]:
        state = MomentumState(*kept)
        theta, forget = state.means()
        momentum = add(scale(state.momentum, theta), update)
        return subtract(scale(start, 1 - forget), momentum), state.next_chunk(momentum)
