"""Causal attention inside a window, with a prefix that every query sees.

Legend: B sequences, H heads, T tokens, d head width, w window, P prefix.

Blocks of w queries meet the 2w - 1 keys that any of them may see: the cost is T * (2w + P), not T^2.
"""

from __future__ import annotations

from torch import Tensor
from torch import bool as boolean

from atlas.kernels.call import takes
from atlas.ops.banded_attention import cpp
from atlas.ops.banded_attention import torch as plain
from atlas.ops.banded_attention.cpp import WIDEST_WINDOW
from atlas.ops.banded_attention.torch import Prefix, with_prefix

__all__ = ["WIDEST_WINDOW", "Prefix", "banded_attention", "with_prefix"]


def banded_attention(
    query: Tensor, keys: Tensor, values: Tensor, valid: Tensor, window: int, prefix: Prefix | None
) -> Tensor:
    """query [B, H, T, d], keys and values [B, H, w - 1 + T, d], `valid` [B, w - 1 + T] bool -> [B, H, T, d].

    The first w - 1 keys are those before the stretch. No query sees a key that is not `valid`; a query that sees no key
    reads zeros. The prefix is cast to the precision of the queries. Raises `TypeError` for a mask that is not bool.
    """
    if valid.dtype is not boolean:
        raise TypeError(f"banded_attention: valid is {valid.dtype}, must be torch.bool")
    if not query.numel():
        return query
    if prefix is not None:
        prefix = Prefix(*(part.to(query.dtype) for part in prefix)) if prefix.keys.shape[1] else None
    if query.is_cuda:
        return plain.one_kernel(query, keys, values, valid, window, prefix)
    if window <= WIDEST_WINDOW and takes(query, keys, values, *(prefix or ()), widths=query.shape[3:]):
        return cpp.banded_attention(query, keys, values, valid, window, *(prefix or (None, None)))
    return plain.block_products(query, keys, values, valid, window, prefix)
