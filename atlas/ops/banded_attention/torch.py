"""Window attention by PyTorch's operations: as products of blocks, and by PyTorch's fused kernel.

Legend: B sequences, H heads, T tokens, d head width, w window, n blocks of w tokens, P prefix.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Prefix(NamedTuple):
    """Pairs before the sequence that every query sees."""

    keys: Tensor  # [H, P, d]
    values: Tensor  # [H, P, d]


def block_products(
    query: Tensor, keys: Tensor, values: Tensor, valid: Tensor, window: int, prefix: Prefix | None
) -> Tensor:
    """Scores of a block, the block before it and the prefix as three products, with one softmax: no key is copied."""
    tokens = query.shape[2]
    padding = -tokens % window
    scaled = F.pad(query, (0, 0, 0, padding)) * query.shape[-1] ** -0.5
    blocks = scaled.unflatten(2, (-1, window))  # [B, H, n, w, d]
    # With one more key in front, which no query sees, the keys are n + 1 blocks of w.
    keys, values = (F.pad(pair, (0, 0, 1, padding)).unflatten(2, (-1, window)) for pair in (keys, values))
    hidden = ~F.pad(valid, (1, padding)).unflatten(1, (-1, window))[:, None, :, None]  # [B, 1, n + 1, 1, w]
    sees = F.pad(_sees(valid, window, prefix), (0, padding)).view(len(valid), 1, -1, window, 1)  # [B, 1, n, w, 1]
    later = torch.ones(window, window, dtype=torch.bool, device=query.device).triu(1)
    lowest = float("-inf")
    own = (blocks @ keys[:, :, 1:].mT).masked_fill(later | hidden[:, :, 1:] & sees, lowest)  # [B, H, n, w, w]
    before = (blocks @ keys[:, :, :-1].mT).masked_fill(~later | hidden[:, :, :-1], lowest)
    scores = [before, own]
    if prefix is not None:
        scores.append((scaled @ prefix.keys.to(scaled.dtype).mT).unflatten(2, (-1, window)))
    weights = torch.softmax(torch.cat(scores, dim=-1), dim=-1).split([part.shape[-1] for part in scores], dim=-1)
    out: Tensor = (weights[0] @ values[:, :, :-1] + weights[1] @ values[:, :, 1:]).flatten(2, 3)
    if prefix is None:
        out = out.masked_fill(~sees.flatten(2, 3), 0)
    else:
        out = out + weights[2].flatten(2, 3) @ prefix.values.to(out.dtype)
    return out[:, :, :tokens]


def one_kernel(
    query: Tensor, keys: Tensor, values: Tensor, valid: Tensor, window: int, prefix: Prefix | None
) -> Tensor:
    """The same by PyTorch's fused kernel, which does not keep the scores: for CUDA and large windows.

    PyTorch has fused kernels for four dimensions only, so the blocks are folded into the batch, M = B * n.
    """
    batch, _, tokens, _ = query.shape
    span, padding = 2 * window - 1, -tokens % window

    def folded(blocks: Tensor) -> Tensor:  # [B, H, n, ...] -> [M, H, ...]
        return blocks.transpose(1, 2).flatten(0, 1)

    query = folded(F.pad(query, (0, 0, 0, padding)).unflatten(2, (-1, window)))
    keys, values = (folded(F.pad(pair, (0, 0, 0, padding)).unfold(2, span, window).mT) for pair in (keys, values))
    seen = F.pad(valid, (0, padding), value=True).unfold(1, span, window).reshape(-1, 1, 1, span)
    sees = F.pad(_sees(valid, window, prefix), (0, padding), value=True).view(-1, 1, window, 1)
    band = torch.ones(window, span, dtype=torch.bool, device=query.device).tril(window - 1).triu()
    mask = band & (seen | ~sees)  # [M, 1, w, 2w - 1]
    if prefix is not None:
        keys, values, mask = with_prefix(keys, values, mask, prefix)
    out = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
    if prefix is None:
        out = out.masked_fill(~sees, 0)
    joined: Tensor = out.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)[:, :, :tokens]
    return joined


def _sees(valid: Tensor, window: int, prefix: Prefix | None) -> Tensor:
    """Whether each query sees a key: [B, T]. A query that sees none still gets a row of scores, since a softmax over
    nothing is NaN; its result is then set to zeros."""
    return valid.unfold(1, window, 1).any(-1) | (prefix is not None)


def with_prefix(keys: Tensor, values: Tensor, mask: Tensor, prefix: Prefix) -> tuple[Tensor, Tensor, Tensor]:
    """Put the prefix before keys and values [B, H, ..., K, d], and open the mask [..., K] to it."""

    def lead(first: Tensor, rest: Tensor) -> Tensor:
        shape = [1, first.shape[0], *[1] * (rest.dim() - 4), *first.shape[1:]]
        return torch.cat((first.to(rest.dtype).view(shape).expand(*rest.shape[:-2], -1, -1), rest), dim=-2)

    opened = F.pad(mask, (prefix.keys.shape[1], 0), value=True)
    return lead(prefix.keys, keys), lead(prefix.values, values), opened
