"""Causal attention inside a window, with a prefix that every query sees: three forms of one function.

Legend: B sequences, H heads, T tokens, d head width, w window, n blocks of w tokens, P prefix.

Blocks of w queries meet the 2w - 1 keys that any of them may see: the cost is T * (2w + P), not T^2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from atlas.ops.compiled_attention import CompiledAttention, attention_kernel


class Prefix(NamedTuple):
    """Pairs before the sequence, visible to every query."""

    keys: Tensor  # [H, P, d]
    values: Tensor  # [H, P, d]


def banded_attention(
    query: Tensor, keys: Tensor, values: Tensor, valid: Tensor, window: int, prefix: Prefix | None
) -> Tensor:
    """query [B, H, T, d], keys and values [B, H, w - 1 + T, d], `valid` [B, w - 1 + T] bool -> [B, H, T, d].

    The first w - 1 keys are those before the stretch; one that is not `valid` is seen by no query.
    """
    if query.is_cuda:
        return _one_kernel(query, keys, values, valid, window, prefix)
    kernel = attention_kernel(query, keys, values, window)
    if kernel is None:
        return _block_products(query, keys, values, valid, window, prefix)
    pairs = prefix or Prefix(*query.new_empty(2, query.shape[1], 0, query.shape[3]))
    out: Tensor = CompiledAttention.apply(kernel, window, query, keys, values, valid, *pairs)  # type: ignore[no-untyped-call]
    return out


def _block_products(
    query: Tensor, keys: Tensor, values: Tensor, valid: Tensor, window: int, prefix: Prefix | None
) -> Tensor:
    """Scores of own block, block before and prefix as three products, one softmax over them all: no key is copied."""
    tokens = query.shape[2]
    padding = -tokens % window
    scaled = F.pad(query, (0, 0, 0, padding)) * query.shape[-1] ** -0.5
    blocks = scaled.unflatten(2, (-1, window))  # [B, H, n, w, d]
    # One key more in front makes the keys n + 1 blocks of w; no query sees it.
    keys, values = (F.pad(pair, (0, 0, 1, padding)).unflatten(2, (-1, window)) for pair in (keys, values))
    unseen = ~F.pad(valid, (1, padding)).unflatten(1, (-1, window))[:, None, :-1, None]  # [B, 1, n, 1, w]
    later = torch.ones(window, window, dtype=torch.bool, device=query.device).triu(1)
    lowest = float("-inf")
    own = (blocks @ keys[:, :, 1:].mT).masked_fill(later, lowest)  # [B, H, n, w, w]
    before = (blocks @ keys[:, :, :-1].mT).masked_fill(~later | unseen, lowest)
    scores = [before, own]
    if prefix is not None:
        scores.append((scaled @ prefix.keys.to(scaled.dtype).mT).unflatten(2, (-1, window)))
    weights = torch.softmax(torch.cat(scores, dim=-1), dim=-1).split([part.shape[-1] for part in scores], dim=-1)
    out: Tensor = (weights[0] @ values[:, :, :-1] + weights[1] @ values[:, :, 1:]).flatten(2, 3)
    if prefix is not None:
        out = out + weights[2].flatten(2, 3) @ prefix.values.to(out.dtype)
    return out[:, :, :tokens]


def _one_kernel(
    query: Tensor, keys: Tensor, values: Tensor, valid: Tensor, window: int, prefix: Prefix | None
) -> Tensor:
    """The same through the library's fused kernel, which does not keep the scores: for CUDA and its large windows."""
    tokens, span = query.shape[2], 2 * window - 1
    padding = -tokens % window
    blocks = F.pad(query, (0, 0, 0, padding)).unflatten(2, (-1, window))
    keys, values = (F.pad(pair, (0, 0, 0, padding)).unfold(2, span, window).mT for pair in (keys, values))
    seen = F.pad(valid, (0, padding), value=True).unfold(1, span, window)  # [B, n, 2w - 1]
    band = torch.ones(window, span, dtype=torch.bool, device=query.device).tril(window - 1).triu()
    mask = band & seen[:, None, :, None]  # [B, 1, n, w, 2w - 1]
    if prefix is not None:
        keys, values, mask = with_prefix(keys, values, mask, prefix)
    return F.scaled_dot_product_attention(blocks, keys, values, attn_mask=mask).flatten(2, 3)[:, :, :tokens]


def with_prefix(keys: Tensor, values: Tensor, mask: Tensor, prefix: Prefix) -> tuple[Tensor, Tensor, Tensor]:
    """Put the prefix before keys and values [B, H, ..., K, d], and open the mask [..., K] to it."""

    def lead(first: Tensor, rest: Tensor) -> Tensor:
        shape = [1, first.shape[0], *[1] * (rest.dim() - 4), *first.shape[1:]]
        return torch.cat((first.to(rest.dtype).view(shape).expand(*rest.shape[:-2], -1, -1), rest), dim=-2)

    opened = F.pad(mask, (prefix.keys.shape[1], 0), value=True)
    return lead(prefix.keys, keys), lead(prefix.values, values), opened
