"""Queries mixed with their projections.

    o = y / ||y||,   y = q + lambda q' / ||q'||

Legend: H heads, N = B * H rows, T tokens, d head width, lambda [H].
"""

from __future__ import annotations

from torch import Tensor

from atlas.kernels.call import takes
from atlas.ops.mixed_queries import cpp
from atlas.ops.mixed_queries import torch as plain


def mixed_queries(query: Tensor, projected: Tensor, mix: Tensor) -> Tensor:
    """q and q' [N, T, d], lambda [H] -> rows of length 1 [N, T, d]."""
    fits = query.dim() == 3 and query.shape == projected.shape and mix.dim() == 1
    whole = fits and len(mix) > 0 and len(query) % len(mix) == 0
    if whole and takes(query, projected, mix, widths=query.shape[2:]):
        return cpp.mixed_queries(query, projected, mix)
    return plain.mixed_queries(query, projected, mix)
