"""Attention whose queries, keys and values pass through the memory's convolution, with the start it has there.

The memory of the default has a convolution that attention lacks. These contestants say what that alone is worth.

Legend: B sequences, T tokens, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atlas.models.attention import SlidingWindowAttention
from atlas.models.block import AtlasMAGBlock
from atlas.models.convolution import CONVOLUTION, CausalConvolution
from atlas.models.language_model import AtlasModel
from atlas.models.stacked_linear import StackedLinear


class ConvolvedLinear(nn.Module):
    """Linear, then convolution, of whole sequences: it keeps no tokens from one call to the next."""

    def __init__(self, linear: StackedLinear) -> None:
        super().__init__()
        self.linear, self.convolution = linear, CausalConvolution(linear.in_features)
        self.in_features, self.weight = linear.in_features, linear.weight
        with torch.no_grad():
            query, key, _ = linear.weight.chunk(3)
            key.copy_(query)  # as in the memory

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, D] -> [B, T, 3D]"""
        convolved: Tensor = self.convolution(F.pad(self.linear(x), (0, 0, CONVOLUTION - 1, 0)))
        return convolved


def with_convolution(model: AtlasModel, seed: int) -> AtlasModel:
    """The model with the convolution in every block."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for block in model.blocks:
            assert isinstance(block, AtlasMAGBlock)
            assert isinstance(block.attention, SlidingWindowAttention)
            block.attention.qkv = ConvolvedLinear(block.attention.qkv)  # type: ignore[assignment]
    return model
