"""The tokens that rules with a window write again: the last c - 1 before the chunk, or before the part of it.

Their gradients are taken at the weights of the present chunk's start.

Legend: N rows, C tokens, c window, J = c - 1 + C written tokens, d head width, p feature width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from atlas.ops.dual_form import ChunkInputs
from atlas.ops.fast_weights import FastWeights


class Window(NamedTuple):
    """Before the first token it holds zeros: their gradient is zero at any weights."""

    key: Tensor  # [N, c - 1, d]
    value: Tensor  # [N, c - 1, d]
    features: Tensor  # [N, c - 1, p]

    @staticmethod
    def empty(weights: FastWeights, length: int) -> Window:
        """Of a rule whose window has c = `length` tokens, of which c - 1 are carried."""
        rows, width = weights.down.shape[:2]
        token = weights.down.new_zeros(rows, length - 1, width)
        return Window(token, token, weights.up.new_zeros(rows, length - 1, weights.up.shape[-1]))

    def written(self, tokens: ChunkInputs) -> Window:
        """The carried tokens, then the chunk's own: [N, J, ...]."""
        own = tokens.key, tokens.value, tokens.key_features
        return Window(*(torch.cat(pair, dim=1) for pair in zip(self, own, strict=True)))

    def after(self, tokens: ChunkInputs) -> Window:
        """The last c - 1 tokens."""
        return Window(*(field[:, tokens.rate.shape[1] :] for field in self.written(tokens)))
