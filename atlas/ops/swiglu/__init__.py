"""silu(x1) * x2 of two halves."""

from __future__ import annotations

from torch import Tensor

from atlas.kernels.call import takes
from atlas.ops.fast_weights import gated_units
from atlas.ops.swiglu import cpp


def swiglu(x: Tensor) -> Tensor:
    """[x1, x2] side by side, [..., 2D] -> [..., D]. Raises `ValueError` for an odd width."""
    half, odd = divmod(x.shape[-1], 2)
    if odd:
        raise ValueError(f"swiglu: x is {list(x.shape)}, its last dimension must be even")
    return cpp.swiglu(x) if takes(x, widths=[half]) else gated_units(x)
