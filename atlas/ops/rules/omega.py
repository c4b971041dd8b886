"""Learning rule `omega`: every token writes the gradients of the last c tokens, each with its gate (ATLAS Eq 8-10).

    W_t = W_xi - sum_{s = xi .. t} eta_s sum_{i = s-c+1 .. s} gamma_i grad l(W_xi; k_i, v_i),   then read f(q_t; W_t)

The window reaches into the previous chunk: its last c - 1 tokens are carried, and their gradients are taken at the
present chunk's start. c = 1 with gamma = 1 is `gd`. ATLAS has a gate per pair (i, t); here it is the written token's.

Legend: N rows, C tokens, c window, J = c - 1 + C written tokens, d head width, p feature width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from atlas.config import MemoryConfig
from atlas.ops.dual_form import ChunkInputs, Coverage, Writes, token_gradients
from atlas.ops.fast_weights import FastWeights, subtract
from atlas.ops.rules.rule import ChunkEnd, Control, Kept


class Window(NamedTuple):
    """The last c - 1 tokens; a gate of 0 before the first one."""

    key: Tensor  # [N, c - 1, d]
    value: Tensor  # [N, c - 1, d]
    features: Tensor  # [N, c - 1, p]
    gate: Tensor  # [N, c - 1]


@dataclass(frozen=True)
class Omega:
    window: int  # c, tokens
    gate: float  # gamma of a token before training, in (0, 1]

    reads_start: ClassVar[bool] = False
    own_gradients: ClassVar[bool] = False
    chunk_end: ClassVar[ChunkEnd | None] = None

    @classmethod
    def from_config(cls, config: MemoryConfig) -> Self:
        return cls(config.omega.window, config.omega.gate)

    @property
    def controls(self) -> tuple[Control, ...]:
        return (Control("gamma", self.gate),)

    def initial(self, weights: FastWeights) -> Kept:
        shape = weights.down.shape[0], self.window - 1
        token = weights.down.new_zeros(*shape, weights.down.shape[1])
        return Window(token, token, weights.up.new_zeros(*shape, weights.up.shape[-1]), token.new_zeros(shape))

    def write(self, start: FastWeights, kept: Kept, tokens: ChunkInputs) -> Writes:
        written = _written(kept, tokens)
        writes = token_gradients(start, written.key, written.value, written.features, None)
        return writes._replace(coverage=Coverage(tokens.rate, written.gate, self._band(tokens.rate)))

    def keep(self, kept: Kept, tokens: ChunkInputs) -> Kept:
        return Window(*(field[:, tokens.rate.shape[1] :] for field in _written(kept, tokens)))

    def close(self, start: FastWeights, update: FastWeights, kept: Kept) -> tuple[FastWeights, Kept]:
        return subtract(start, update), kept

    def _band(self, rate: Tensor) -> Tensor:
        """1 where token s writes token j of carried and own tokens, s <= j <= s + c - 1 in that numbering: [C, J]."""
        count = rate.shape[1]
        return rate.new_ones(count, self.window - 1 + count).triu().tril(self.window - 1)


def _written(kept: Kept, tokens: ChunkInputs) -> Window:
    """The carried tokens, then the chunk's own."""
    own = tokens.key, tokens.value, tokens.key_features, tokens.controls[..., 0]
    return Window(*(torch.cat(pair, dim=1) for pair in zip(kept, own, strict=True)))
