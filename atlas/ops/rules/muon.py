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
from atlas.ops.fast_weights import FastWeights, add, scale, subtract
from atlas.ops.newton_schulz import newton_schulz
from atlas.ops.rules.momentum import Momentum, MomentumState
from atlas.ops.rules.rule import ChunkEnd, Control, Kept

FLOOR = 0.01


@dataclass(frozen=True)
class Muon(Momentum):
    rho: float  # of a token before training, in (0, rho_max)
    rho_max: float
    iterations: int  # of Newton-Schulz

    chunk_end: ClassVar[ChunkEnd | None] = None
    reads_start: ClassVar[bool] = True

    @classmethod
    def from_config(cls, config: MemoryConfig) -> Self:
        return cls.of(config, config.muon)

    @classmethod
    def of(cls, config: MemoryConfig, own: MuonRuleConfig) -> Self:
        """With rho and the iterations of `own`."""
        return cls(config.momentum, config.retention, own.rate_init, own.rate_max, own.iterations)

    @property
    def controls(self) -> tuple[Control, ...]:  # type: ignore[override]
        rho = Control("rho", self.rho, self.rho_max)  # no super(): torch.compile cannot trace it
        return Control("theta", self.theta), Control("forget", 1 - self.alpha), rho

    def close(self, start: FastWeights, update: FastWeights, kept: Kept) -> tuple[FastWeights, Kept]:
        state = MomentumState(*kept)
        theta, forget, rho = state.means()
        momentum = add(scale(state.momentum, theta), update)
        step = scale(self._orthogonal(momentum), rho)
        return subtract(scale(start, 1 - forget), step), state.next_chunk(momentum)

    def _orthogonal(self, momentum: FastWeights) -> FastWeights:
        up = newton_schulz(momentum.up.unflatten(-2, (2, -1)), self.iterations, FLOOR)  # W2 and W3: [N, 2, h, p]
        return FastWeights(newton_schulz(momentum.down, self.iterations, FLOOR), up.flatten(1, 2))
