"""Queries, keys and values of a memory's rows from their projections.

    y_t = sum_lag weight[lag] * x_{t - lag},     q = y_q / ||y_q||,  k = y_k / ||y_k||,  v = silu(y_v)

Legend: B sequences, H heads, N = B * H rows, T tokens, d head width, D = H * d, L lags.
"""

from __future__ import annotations

from torch import Tensor

from atlas.kernels.call import takes
from atlas.ops.memory_inputs import cpp
from atlas.ops.memory_inputs import torch as plain
from atlas.ops.memory_inputs.torch import rows_of_heads

__all__ = ["memory_inputs", "rows_of_heads"]


def memory_inputs(recent: Tensor, x: Tensor, weight: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Projections `recent` [B, L - 1, 3D] before the stretch and x [B, T, 3D], weight [L, 3D] -> q, k, v [N, T, d]."""
    width, rest = divmod(x.shape[-1], 3 * heads)
    fits = not rest and x.dim() == 3 and weight.dim() == 2 and recent.shape[1:2] == (len(weight) - 1,)
    if fits and takes(recent, x, weight, widths=[width]):
        return cpp.memory_inputs(recent, x, weight, heads)
    return plain.memory_inputs(recent, x, weight, heads)
