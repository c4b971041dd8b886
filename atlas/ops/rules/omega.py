"""Learning rule `omega`: every token writes the gradients of the last c tokens, each with its gate (ATLAS Eq 8-10).

    W_t = W_xi - sum_{s = xi .. t} eta_s sum_{i = s-c+1 .. s} gamma_i grad l(W_xi; k_i, v_i),   then read f(q_t; W_t)
    W <- alpha W_xi - the same sum to the chunk's last token

The window reaches into the chunks before: the last c - 1 tokens are carried, and their gradients are taken at the
present chunk's start. c = 1 with gamma = 1 and alpha = 1 is `gd`. ATLAS has a gate per pair (i, t); here it is the
written token's. alpha of a chunk is the mean of its tokens' gates, used at its end only.

Legend: N rows, C tokens, c window, J = c - 1 + C written tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from atlas.config import MemoryConfig
from atlas.ops.dual_form import ChunkInputs, Coverage, Writes, token_gradients
from atlas.ops.fast_weights import FastWeights, scale, subtract
from atlas.ops.rules.rule import ChunkEnd, Control, Kept
from atlas.ops.rules.window import Window


class OmegaState(NamedTuple):
    window: Window
    gamma: Tensor  # [N, c - 1] of the window's tokens; 0 before the first one
    forget: Tensor  # [N] sum of 1 - alpha over the open chunk's tokens
    tokens: Tensor  # [N] of the open chunk


@dataclass(frozen=True)
class Omega:
    window: int  # c, tokens
    gamma: float  # of a token before training, in (0, 1]
    alpha: float = 1.0  # of a token before training, in (0, 1]; 1 = keep all, without a gate

    reads_start: ClassVar[bool] = False
    own_gradients: ClassVar[bool] = False
    chunk_end: ClassVar[ChunkEnd | None] = None

    @classmethod
    def from_config(cls, config: MemoryConfig) -> Self:
        return cls(config.omega.window, config.omega.gate, config.omega.retention)

    @property
    def reads_end(self) -> bool:
        return self.alpha < 1

    @property
    def controls(self) -> tuple[Control, ...]:
        forgets = (Control("forget", 1 - self.alpha),) * (self.alpha < 1)
        return Control("gamma", self.gamma), *forgets

    def initial(self, weights: FastWeights) -> Kept:
        window = Window.empty(weights, self.window)
        none = weights.down.new_zeros(weights.down.shape[0])
        return OmegaState(window, weights.down.new_zeros(window.key.shape[:2]), none, none)

    def write(self, start: FastWeights, kept: Kept, tokens: ChunkInputs) -> Writes:
        state = OmegaState(*kept)
        writes = token_gradients(start, *state.window.written(tokens), rate=None)
        return writes._replace(coverage=Coverage(tokens.rate, _gammas(state, tokens), self._band(tokens.rate)))

    def keep(self, kept: Kept, tokens: ChunkInputs) -> Kept:
        state, count = OmegaState(*kept), tokens.rate.shape[1]
        forget = state.forget + tokens.controls[..., 1:].sum((1, 2))
        return OmegaState(state.window.after(tokens), _gammas(state, tokens)[:, count:], forget, state.tokens + count)

    def close(self, start: FastWeights, update: FastWeights, kept: Kept) -> tuple[FastWeights, Kept]:
        state = OmegaState(*kept)
        left = start if self.alpha == 1 else scale(start, 1 - state.forget / state.tokens.clamp(min=1))
        none = torch.zeros_like(state.tokens)
        return subtract(left, update), OmegaState(state.window, state.gamma, none, none)

    def _band(self, rate: Tensor) -> Tensor:
        """1 where token s writes token j of carried and own tokens, s <= j <= s + c - 1 in that numbering: [C, J]."""
        count = rate.shape[1]
        return rate.new_ones(count, self.window - 1 + count).triu().tril(self.window - 1)


def _gammas(state: OmegaState, tokens: ChunkInputs) -> Tensor:
    """Of the written tokens: [N, J]."""
    return torch.cat((state.gamma, tokens.controls[..., 0]), dim=1)
