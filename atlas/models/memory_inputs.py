"""From a block's input to the memory's queries, keys, values and inner rates.

Legend: B sequences, T tokens, D model width, H heads, N = B * H rows, d head width.
"""

from __future__ import annotations

from math import log
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atlas.config import MemoryConfig
from atlas.models.convolution import CONVOLUTION, CausalConvolution
from atlas.models.stacked_linear import StackedLinear
from atlas.ops.memory_inputs import memory_inputs, rows_of_heads
from atlas.ops.unit_rows import unit_rows


class MemoryTokens(NamedTuple):
    query: Tensor  # [N, T, d] unit norm
    key: Tensor  # [N, T, d] unit norm
    value: Tensor  # [N, T, d]


class MemoryInputs(nn.Module):
    """q, k, v: linear, causal depthwise convolution, SiLU on v, L2 norm on q and k (Titans section 3.3).

    Titans applies SiLU to q and k too. With the Q-K projection all keys then share a mean direction (docs/memory.md
    section 8).
    """

    def __init__(self, width: int, heads: int, memories: int, config: MemoryConfig) -> None:
        super().__init__()
        self.heads, self.activate_keys = heads, config.activate_keys
        self.rate_max, self.threshold = config.rate_max, config.rate_threshold
        self.qkv = StackedLinear(width, width, parts=3)
        self.convolution = CausalConvolution(width) if config.convolution else None
        self.rate = nn.Linear(width, heads * memories)
        gate = self.threshold + (1 - self.threshold) * config.rate_init / config.rate_max
        with torch.no_grad():
            query, key, value = self.qkv.weight.chunk(3)
            key.copy_(query)  # key and query of the same content are equal at the start
            value.normal_(std=2 * (width // heads * width) ** -0.5)  # ||v|| is about 1 after the SiLU
            self.rate.weight.zero_()
            self.rate.bias.fill_(log(gate / (1 - gate)))

    def initial_state(self, batch: int) -> Tensor:
        """Inputs of the convolution before the first token: [B, 3, 3D]."""
        return self.qkv.weight.new_zeros(batch, CONVOLUTION - 1, self.qkv.out_features)

    def forward(self, x: Tensor, recent: Tensor) -> tuple[MemoryTokens, Tensor]:
        """x [B, T, D], `recent` [B, 3, 3D] -> the rows' tokens, and `recent` for the next call."""
        projected, before = self.qkv(x).to(recent.dtype), CONVOLUTION - 1
        last = torch.cat((recent, projected[:, -before:]), dim=1)[:, -before:]
        return self._tokens(recent, projected), last

    def _tokens(self, recent: Tensor, projected: Tensor) -> MemoryTokens:
        if self.convolution is not None and not self.activate_keys:
            return MemoryTokens(*memory_inputs(recent, projected, self.convolution.weight, self.heads))
        mixed = projected
        if self.convolution is not None:
            mixed = self.convolution(torch.cat((recent, projected), dim=1))
        query, key, value = rows_of_heads(mixed, self.heads)
        if self.activate_keys:
            query, key = F.silu(query), F.silu(key)
        return MemoryTokens(unit_rows(query), unit_rows(key), F.silu(value))

    def rates(self, x: Tensor) -> Tensor:
        """Inner rate eta of every memory, row and token: [memories, N, T].

        eta = rate_max * relu(sigmoid(linear(x)) - tau) / (1 - tau). With a threshold tau > 0 the rate of a token can be
        exactly 0, as in the hard concrete gate (Louizos et al. 2018). A sigmoid is never 0, and the small writes of
        thousands of noise tokens add up to more than the needle (experiments/LOG.md).
        """
        logits = self.rate(x)
        wide = torch.promote_types(logits.dtype, torch.float32)  # under autocast the rates stay exact
        gate = torch.sigmoid(logits.to(wide))
        rate = self.rate_max * torch.relu(gate - self.threshold) / (1 - self.threshold)
        rows: Tensor = rate.unflatten(-1, (-1, self.heads)).permute(2, 0, 3, 1).flatten(1, 2)
        return rows
