"""Sliding-window attention with RoPE and a persistent prefix.

Legend: B sequences, T tokens, H heads, d head width, w window, P persistent keys, n blocks of w tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atlas.models.persistent import PersistentMemory
from atlas.models.stacked_linear import StackedLinear
from atlas.ops.banded_attention import Prefix, banded_attention, with_prefix
from atlas.ops.rotary import Rotary


class AttentionState(NamedTuple):
    """Keys (rotated) and values of the tokens that later tokens can see; with a window, always w - 1 of them."""

    keys: Tensor  # [B, H, cached, d]
    values: Tensor  # [B, H, cached, d]
    valid: Tensor  # [B, cached] bool; False before the first token of the sequence


class SlidingWindowAttention(nn.Module):
    """softmax(q k^T / sqrt(d)) v over the last w tokens, the current one included, and the persistent prefix.

    `window=0` is full causal attention. The output is not projected: the block fuses it with the memory first.
    """

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = StackedLinear(width, width, parts=3)

    def initial_state(self, batch: int) -> AttentionState:
        cached, width = max(self.window - 1, 0), self.qkv.in_features // self.heads
        empty = self.qkv.weight.new_zeros(batch, self.heads, cached, width)
        return AttentionState(empty, empty, torch.zeros(batch, cached, dtype=torch.bool, device=empty.device))

    def forward(
        self, x: Tensor, state: AttentionState, rotary: Rotary, persistent: PersistentMemory | None
    ) -> tuple[Tensor, AttentionState]:
        """x [B, T, D], whose tokens `rotary` turns by their positions -> [B, T, D] and the state after it."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [B, H, T, d]
        query, key = rotary(query), rotary(key)
        keys = torch.cat((state.keys.to(key.dtype), key), dim=2)
        values = torch.cat((state.values.to(value.dtype), value), dim=2)
        valid = torch.cat((state.valid, state.valid.new_ones(x.shape[:2])), dim=1)
        prefix = None if persistent is None else Prefix(persistent.keys, persistent.values)
        if self.window:
            out = banded_attention(query, keys, values, valid, self.window, prefix)
        else:
            out = _full_attention(query, keys, values, valid, prefix)
        keep = slice(keys.shape[2] - self.window + 1, None) if self.window else slice(None)
        return out.transpose(1, 2).flatten(2), AttentionState(keys[:, :, keep], values[:, :, keep], valid[:, keep])


def _full_attention(query: Tensor, keys: Tensor, values: Tensor, valid: Tensor, prefix: Prefix | None) -> Tensor:
    """Every query sees every valid key up to its own, and the prefix."""
    if prefix is None and keys.shape[2] == query.shape[2]:
        return F.scaled_dot_product_attention(query, keys, values, is_causal=True)
    tokens, cached = query.shape[2], keys.shape[2] - query.shape[2]
    mask = torch.ones(tokens, keys.shape[2], dtype=torch.bool, device=query.device).tril(cached)
    mask = mask & valid[:, None, None]
    if prefix is not None:
        keys, values, mask = with_prefix(keys, values, mask, prefix)
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
