"""Queries, keys and values of a memory's rows from their projections.

    y_t = sum_lag w[lag] * x_{t - lag},     q = y_q / ||y_q||,  k = y_k / ||y_k||,  v = silu(y_v)

Legend: B sequences, H heads, N = B * H rows, T tokens, d head width, D = H * d, L lags.
"""

from __future__ import annotations

from torch import Tensor

from atlas.kernels.call import takes
from atlas.ops.memory_inputs import cpp
from atlas.ops.memory_inputs import torch as plain
from atlas.ops.memory_inputs.torch import rows_of_heads

__all__ = ["memory_inputs", "rows_of_heads"]


def memory_inputs(led: Tensor, weight: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """x [B, L - 1 + T, 3D] led by the projections before the stretch, w [L, 3D] -> q, k, v [N, T, d]."""
    width, rest = divmod(led.shape[-1], 3 * heads)
    fits = not rest and led.dim() == 3 and weight.dim() == 2 and 0 < len(weight) <= led.shape[1] + 1
    if fits and takes(led, weight, widths=[width]):
        return cpp.memory_inputs(led, weight, heads)
    return plain.memory_inputs(led, weight, heads)
