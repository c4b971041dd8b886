"""Learning rule `muon`: momentum whose every matrix is orthogonalised before it is written (ATLAS Eq 32-33).

    S <- theta S + sum_chunk eta grad l(W_xi),     W <- alpha W_xi - rho NS(S)

Reads are at the chunk's start, or at the end of a chunk of one token. W1, W2, W3 are orthogonalised separately; theta,
alpha and rho of a chunk are the means of its tokens' gates. Departure: `FLOOR` under the norm in NS, for at S = 0
the gradient through NS is unbounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from atlas.config import MemoryConfig, MuonRuleConfig
from atlas.ops.dual_form import ChunkInputs, Writes, token_gradients
from atlas.ops.fast_weights import FastWeights, add, scale, subtract
from atlas.ops.newton_schulz import newton_schulz
from atlas.ops.rules.momentum import MomentumState, initial_momentum
from atlas.ops.rules.rule import ChunkEnd, Control, Kept

FLOOR = 0.01


@dataclass(frozen=True)
class Muon:
    theta: float  # of a token before training, in [0, 1)
    alpha: float  # of a token before training, in (0, 1]
    rate: float  # rho of a token before training, in (0, rate_max)
    rate_max: float
    iterations: int  # of Newton-Schulz

    own_gradients: ClassVar[bool] = True  # fused forms do what `write` does: change both, or False
    chunk_end: ClassVar[ChunkEnd | None] = None
    reads_start: ClassVar[bool] = True
    reads_end: ClassVar[bool] = True

    @classmethod
    def from_config(cls, config: MemoryConfig) -> Self:
        return cls.of(config, config.muon)

    @classmethod
    def of(cls, config: MemoryConfig, own: MuonRuleConfig) -> Self:
        """With the rate and the iterations of `own`."""
        return cls(config.momentum, config.retention, own.rate_init, own.rate_max, own.iterations)

    @property
    def controls(self) -> tuple[Control, ...]:
        rho = Control("rho", self.rate, self.rate_max)
        return Control("theta", self.theta), Control("forget", 1 - self.alpha), rho

    def initial(self, weights: FastWeights) -> Kept:
        return initial_momentum(weights, len(self.controls))

    def write(self, start: FastWeights, kept: Kept, tokens: ChunkInputs) -> Writes:
        return token_gradients(start, tokens.key, tokens.value, tokens.key_features, tokens.rate)

    def keep(self, kept: Kept, tokens: ChunkInputs) -> Kept:
        return MomentumState(*kept).after(tokens)

    def close(self, start: FastWeights, update: FastWeights, kept: Kept) -> tuple[FastWeights, Kept]:
        state = MomentumState(*kept)
        theta, forget, rate = state.means()
        momentum = add(scale(state.momentum, theta), update)
        step = scale(self._orthogonal(momentum), rate)
        return subtract(scale(start, 1 - forget), step), state.next_chunk(momentum)

    def _orthogonal(self, momentum: FastWeights) -> FastWeights:
        up = newton_schulz(momentum.up.unflatten(-2, (2, -1)), self.iterations, FLOOR)  # W2 and W3: [N, 2, h, p]
        return FastWeights(newton_schulz(momentum.down, self.iterations, FLOOR), up.flatten(1, 2))
