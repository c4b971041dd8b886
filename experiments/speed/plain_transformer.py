"""The anchor: a Transformer as lean as a Transformer can be written, with the library's fused causal attention.

Same width, layers, heads, RoPE, RMSNorm, SwiGLU and tied head as the models of atlas; no cache, no prefix, no memory.

Legend: B sequences, T tokens, H heads, d head width, D model width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atlas.config import ModelConfig
from atlas.models.block import SwiGLU

ROPE_BASE = 10_000.0


class PlainBlock(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm, self.feedforward_norm = nn.RMSNorm(config.width), nn.RMSNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)
        self.feedforward = SwiGLU(config.width, config.feedforward)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [B, T, D], angles [T, d / 2] -> [B, T, D]."""
        query, key, value = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)  # [B, H, T, d]
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        fed: Tensor = self.feedforward(self.feedforward_norm(x))
        return x + fed


class PlainTransformer(nn.Module):
    """tokens [B, T] int64, T <= `longest` -> logits [B, T, V]."""

    cos: Tensor  # [longest, d / 2]
    sin: Tensor

    def __init__(self, config: ModelConfig, vocabulary: int, longest: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, config.width)
        self.blocks = nn.ModuleList(PlainBlock(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width)
        nn.init.normal_(self.embedding.weight, std=config.width**-0.5)
        half = config.width // config.heads // 2
        frequency = ROPE_BASE ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(longest, dtype=torch.float64).unsqueeze(-1) * frequency
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        cos, sin = (table[: tokens.shape[1]].to(x.dtype) for table in (self.cos, self.sin))
        for block in self.blocks:
            x = block(x, cos, sin)
        return F.linear(self.norm(x), self.embedding.weight)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, left * sin + right * cos), dim=-1)
