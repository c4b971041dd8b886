"""Learning rule `gd`: one gradient step per token, all gradients of a chunk taken at the chunk's start (TNT Eq 3).

W_t = W_xi - sum_{j = xi .. t} eta_j grad l(W_xi; k_j, v_j),   then read f(q_t; W_t)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from atlas.ops.dual_form import ChunkInputs, Writes, token_gradients
from atlas.ops.fast_weights import FastWeights, subtract
from atlas.ops.rules.rule import ChunkEnd, Control, Kept


@dataclass(frozen=True)
class GradientDescent:
    controls: ClassVar[tuple[Control, ...]] = ()
    reads_start: ClassVar[bool] = False
    reads_end: ClassVar[bool] = False
    own_gradients: ClassVar[bool] = True  # fused forms do what `write` does: change both, or False
    chunk_end: ClassVar[ChunkEnd | None] = ChunkEnd.step  # a kernel does what `close` does: change both, or None

    def initial(self, weights: FastWeights) -> Kept:
        return ()

    def write(self, start: FastWeights, kept: Kept, tokens: ChunkInputs) -> Writes:
        return token_gradients(start, tokens.key, tokens.value, tokens.key_features, tokens.rate)

    def keep(self, kept: Kept, tokens: ChunkInputs) -> Kept:
        return kept

    def close(self, start: FastWeights, update: FastWeights, kept: Kept) -> tuple[FastWeights, Kept]:
        return subtract(start, update), kept
