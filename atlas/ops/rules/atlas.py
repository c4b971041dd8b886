"""Learning rule `atlas`: window, momentum, retention and Newton-Schulz together (ATLAS Eq 32-33).

    S <- theta S + sum_{s in chunk} eta_s sum_{i = s-c+1 .. s} gamma_{s,i} grad l(W_xi; k_i, v_i)
    W <- alpha W_xi - rho NS(S)

As in `muon`, reads are at the chunk's start, or at the end of a chunk of one token, and theta, alpha and rho of a chunk
are the means of its tokens' gates. gamma is a gate per pair of writing and written token, as in ATLAS: each token
has one for each of its c lags.

No token reads a part of the sum, so each gradient is computed once and weighted by the sum over its writers.

Legend: N rows, C tokens, c window, J = c - 1 + C written tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

from torch import Tensor
from torch.nn import functional as F

from atlas.config import MemoryConfig
from atlas.ops.dual_form import ChunkInputs, Writes, token_gradients
from atlas.ops.fast_weights import FastWeights
from atlas.ops.rules.momentum import MomentumState, initial_momentum
from atlas.ops.rules.muon import Muon
from atlas.ops.rules.rule import ChunkEnd, Control, Kept
from atlas.ops.rules.window import Window


class AtlasState(NamedTuple):
    sums: MomentumState
    window: Window

    @property
    def momentum(self) -> FastWeights:
        return self.sums.momentum


@dataclass(frozen=True)
class Atlas:
    muon: Muon  # closes the chunk
    window: int  # c, tokens
    gamma: float  # of a pair before training, in (0, 1]

    reads_start: ClassVar[bool] = True
    reads_end: ClassVar[bool] = True
    own_gradients: ClassVar[bool] = False
    chunk_end: ClassVar[ChunkEnd | None] = None

    @classmethod
    def from_config(cls, config: MemoryConfig) -> Self:
        return cls(Muon.of(config, config.atlas), config.atlas.window, config.atlas.gate)

    @property
    def controls(self) -> tuple[Control, ...]:
        return *self.muon.controls, *(Control(f"gamma of lag {lag}", self.gamma) for lag in range(self.window))

    def initial(self, weights: FastWeights) -> Kept:
        return AtlasState(initial_momentum(weights, len(self.muon.controls)), Window.empty(weights, self.window))

    def write(self, start: FastWeights, kept: Kept, tokens: ChunkInputs) -> Writes:
        return token_gradients(start, *AtlasState(*kept).window.written(tokens), rate=self._shares(tokens))

    def _shares(self, tokens: ChunkInputs) -> Tensor:
        """sum_s eta_s gamma_{s,j} of every written token j: [N, J]."""
        given = tokens.rate.unsqueeze(-1) * tokens.controls[..., len(self.muon.controls) :]  # [N, C, c]
        shares = [F.pad(given[..., lag], (self.window - 1 - lag, lag)) for lag in range(self.window)]
        return sum(shares[1:], shares[0])

    def keep(self, kept: Kept, tokens: ChunkInputs) -> Kept:
        state = AtlasState(*kept)
        of_muon = tokens._replace(controls=tokens.controls[..., : len(self.muon.controls)])
        return AtlasState(state.sums.after(of_muon), state.window.after(tokens))

    def close(self, start: FastWeights, update: FastWeights, kept: Kept) -> tuple[FastWeights, Kept]:
        state = AtlasState(*kept)
        weights, sums = self.muon.close(start, update, state.sums)
        return weights, AtlasState(MomentumState(*sums), state.window)
